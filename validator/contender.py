"""Contender: one candidate, or the original, with everything the verdict looks at."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.evidence import Measurement, ParityReport
from schemas.precision import Precision


@dataclass(frozen=True)
class Contender:
    """One candidate, or the original with id 'original'. ``measurements`` are those of this job's measuring run."""

    id: str
    precision: Precision
    steps: int
    size_bytes: int
    parity: ParityReport | None
    measurements: tuple[Measurement, ...] = ()
    failure: str | None = None
    """Why it does not exist or could not be run, one sentence; None when nothing failed."""

    def at(self, batch: int) -> Measurement | None:
        """Return the measurement at ``batch``; the one with the most rounds where there are several."""
        found = [m for m in self.measurements if m.batch == batch]
        return max(found, key=lambda m: (len(m.rounds_ms), -m.median_ms), default=None)
