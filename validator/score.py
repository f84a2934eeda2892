"""What the measurements say by the target's objective: a cost per round for each contender, the less the better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from schemas.evidence import Measurement
from schemas.objective import Objective
from schemas.plan import ORIGINAL
from schemas.target import TargetProfile
from validator.contender import Contender
from validator.paired import Ratio, ratio_of
from validator.sentences import time_in_words


@dataclass(frozen=True)
class Score:
    """Costs by contender. ``rounds[id][i]`` is milliseconds, or milliseconds a row, in round i; all are one run's."""

    objective: Objective
    batch: int | None
    rounds: dict[str, tuple[float, ...]]
    used: dict[str, Measurement]
    speedups: dict[str, Ratio]
    """original / contender in latency at ``batch``, whatever the objective."""

    @property
    def where(self) -> str:
        """The batch that decides, for a sentence."""
        return (
            "at any batch size"
            if self.objective is Objective.THROUGHPUT or self.batch is None
            else (f"at batch {self.batch}")
        )

    @property
    def basis(self) -> str:
        """Objective and batch size that decided."""
        match self.objective:
            case Objective.THROUGHPUT:
                return "Most rows per second, each at its best batch size"
            case Objective.SIZE:
                return f"Fewest bytes among those not slower {self.where}"
            case _:
                return f"Least latency {self.where}"

    def cost(self, contender: Contender) -> float:
        """Return the median cost; infinite without a measurement."""
        rounds = self.rounds.get(contender.id)
        return median(rounds) if rounds else math.inf

    def against_original(self, contender: Contender) -> Ratio | None:
        """Return original / contender: above 1 where the contender is better."""
        if ORIGINAL not in self.rounds or contender.id not in self.rounds:
            return None
        return ratio_of(self.rounds[ORIGINAL], self.rounds[contender.id])

    def between(self, contender: Contender, better: Contender) -> Ratio | None:
        """Return contender / better: above 1 where ``better`` is better."""
        if contender.id not in self.rounds or better.id not in self.rounds:
            return None
        return ratio_of(self.rounds[contender.id], self.rounds[better.id])

    def words(self, contender: Contender) -> str:
        """Return the contender's number: ``9.43 ms at batch 1``, ``231 rows a second at batch 8``."""
        used = self.used.get(contender.id)
        if used is None:
            return "an unknown time"
        if self.objective is Objective.THROUGHPUT:
            return f"{1000 / self.cost(contender):,.4g} rows a second at batch {used.batch}"
        return f"{time_in_words(self.cost(contender))} at batch {used.batch}"


def scores_of(target: TargetProfile, contenders: Sequence[Contender], original: Contender | None) -> Score:
    """Score every contender that has a usable measurement."""
    batch = _deciding_batch(target, contenders, original)
    used: dict[str, Measurement] = {}
    speedups: dict[str, Ratio] = {}
    baseline = original.at(batch) if original is not None and batch is not None else None
    for contender in contenders:
        at_batch = contender.at(batch) if batch is not None else None
        chosen = _best_batch(contender) if target.objective is Objective.THROUGHPUT else at_batch
        if chosen is not None and _usable(chosen):
            used[contender.id] = chosen
        if baseline is not None and at_batch is not None:
            ratio = ratio_of(baseline.rounds_ms, at_batch.rounds_ms)
            if ratio is not None:
                speedups[contender.id] = ratio
    rows = {id_: (m.batch if target.objective is Objective.THROUGHPUT else 1) for id_, m in used.items()}
    rounds = {id_: tuple(value / rows[id_] for value in m.rounds_ms) for id_, m in used.items()}
    return Score(target.objective, batch, rounds, used, speedups)


def _usable(measurement: Measurement) -> bool:
    # One round that is not a time makes the whole series suspect.
    return bool(measurement.rounds_ms) and all(math.isfinite(value) and value > 0 for value in measurement.rounds_ms)


def _deciding_batch(target: TargetProfile, contenders: Sequence[Contender], original: Contender | None) -> int | None:
    """Return the target's first batch size that the original was measured at, else the smallest it was measured at.

    A model with a fixed batch axis is measured at that size only. Without a measured original, the batch size that
    most contenders have decides, the target's order breaking ties.
    """
    if original is not None:
        have = {m.batch for m in original.measurements if _usable(m)}
        if have:
            return next((size for size in target.batch_sizes if size in have), min(have))
    counts: dict[int, int] = {}
    for contender in contenders:
        for size in {m.batch for m in contender.measurements if _usable(m)}:
            counts[size] = counts.get(size, 0) + 1
    order = {size: place for place, size in reversed(list(enumerate(target.batch_sizes)))}
    return min(counts, key=lambda size: (-counts[size], order.get(size, len(order)), size), default=None)


def _best_batch(contender: Contender) -> Measurement | None:
    found = [m for size in {m.batch for m in contender.measurements} if (m := contender.at(size)) and _usable(m)]
    return min(found, key=lambda m: (median(m.rounds_ms) / m.batch, m.batch), default=None)
