"""Paired ratios of two contenders and a distribution-free interval of their median."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

LEAST_ROUNDS: Final = 5
"""Fewer paired rounds give no interval: with four, even a clean sweep happens by chance in one case of sixteen."""
CONFIDENCE: Final = 0.95


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios with its interval; ``low`` and ``high`` are None below LEAST_ROUNDS rounds."""

    median: float
    low: float | None
    high: float | None
    rounds: int

    @property
    def faster(self) -> bool:
        """Whether the whole interval lies above 1."""
        return self.low is not None and self.low > 1.0

    @property
    def slower(self) -> bool:
        """Whether the whole interval lies below 1."""
        return self.high is not None and self.high < 1.0


def ratio_of(numerator: Sequence[float], denominator: Sequence[float]) -> Ratio | None:
    """Return the median of ``numerator[i] / denominator[i]`` with its 95% interval; None without a usable pair.

    Round i of both is a pair: they ran one after the other, so that what slowed the machine slowed both. Pairs with a
    value that is not finite and positive are left out.
    """
    ratios = sorted(
        a / b
        for a, b in zip(numerator, denominator, strict=False)
        if math.isfinite(a) and math.isfinite(b) and a > 0 and b > 0 and 0 < a / b < math.inf
    )
    if not ratios:
        return None
    rank = _rank(len(ratios))
    if rank is None:
        return Ratio(median(ratios), None, None, len(ratios))
    return Ratio(median(ratios), ratios[rank - 1], ratios[-rank], len(ratios))


def _rank(number: int) -> int | None:
    """Return k, so that the k-th smallest and the k-th largest of ``number`` values bound the median.

    The median lies outside [x(k), x(n+1-k)] with probability 2 P(Bin(n, 1/2) < k), whatever the distribution; k is
    the largest for which that is at most 5%. Five values have no such k: their extremes are taken, which leaves
    3.1% on either side, so that a decision that looks at one side only errs less often than one time in twenty.

    Source: H. A. David, H. N. Nagaraja, Order Statistics, 3rd ed. 2003, section 7.1; the table of ranks is
    J.-Y. Le Boudec, Performance Evaluation of Computer and Communication Systems, 2010, appendix A.
    """
    if number < LEAST_ROUNDS:
        return None
    below = 0.0
    rank = 0
    for k in range(number // 2):
        below += math.comb(number, k) / 2**number
        if 2 * below > 1 - CONFIDENCE:
            break
        rank = k + 1
    return max(rank, 1)
