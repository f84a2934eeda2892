"""Batching: prove that running rows together gives what running them one by one gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from converters.arrays import Array, Arrays
from converters.comparison import compare
from schemas.descriptor import BATCH_AXIS, TensorSpec
from schemas.errors import ModelFailed
from schemas.evidence import BatchProof
from schemas.target import Tolerance

Run = Callable[[Mapping[str, Array]], Arrays]

ROWS_AT_ONCE = 32
"""Rows of a large sample that go through a model together."""
_ROWS_ALONE = 4
"""Rows of each case that are also run one by one, spread over it from the first to the last. What mixes rows shows in
all of them, in all but the first (a running sum), or in those that fall behind a border."""


def has_batch_axis(specs: Sequence[TensorSpec]) -> bool:
    """Whether every one of ``specs`` leads with the batch axis."""
    return bool(specs) and all(spec.shape and spec.shape[0] == BATCH_AXIS for spec in specs)


def fixed_rows(specs: Sequence[TensorSpec]) -> int | None:
    """Return the fixed leading size that every one of ``specs`` shares; None when there is none, or it is 0."""
    leading = {spec.shape[0] if spec.shape else None for spec in specs}
    size = leading.pop() if len(leading) == 1 else None
    return size if isinstance(size, int) and size else None


def take(feeds: Mapping[str, Array], rows: Array | slice) -> Arrays:
    """Return the given rows of every array."""
    return {name: array[rows] for name, array in feeds.items()}


def row_count(feeds: Mapping[str, Array]) -> int:
    """Return the leading size that all arrays share; 1 when there is none."""
    sizes = {array.shape[0] if array.ndim else -1 for array in feeds.values()}
    return max(sizes.pop(), 1) if len(sizes) == 1 else 1


def run_rows(run: Run, feeds: Mapping[str, Array], rows_at_once: int) -> Arrays:
    """Run all rows, ``rows_at_once`` at a time, and return the outputs joined. Outputs must lead with the rows."""
    count = row_count(feeds)
    if count <= rows_at_once:
        return run(feeds)
    parts = [run(take(feeds, slice(start, start + rows_at_once))) for start in range(0, count, rows_at_once)]
    sizes = [min(rows_at_once, count - start) for start in range(0, count, rows_at_once)]
    for name in parts[0]:
        if any(part[name].ndim == 0 or part[name].shape[0] != size for part, size in zip(parts, sizes, strict=True)):
            raise ModelFailed(
                f"Output {name!r} does not have one row for each row of the inputs.",
                hint="Leave 'samples' out of the sidecar, or give no more rows than the model takes at once.",
            )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def prove(run: Run, cases: Sequence[tuple[Arrays, Arrays]], tolerance: Tolerance, *, lossy: bool = False) -> BatchProof:
    """Run rows of ``cases`` (inputs, outputs together) alone and compare with the outputs together.

    Of every case a few rows are run, spread evenly, the last among them. The caller has checked that every input leads
    with the batch axis. A reason is one sentence in any case.
    """
    sizes = sorted({row_count(feeds) for feeds, _ in cases})
    usable = [(feeds, outputs) for feeds, outputs in cases if row_count(feeds) > 1]
    if not usable:
        return BatchProof(holds=False, reason="Only one row was ever run, which proves nothing.", sizes=tuple(sizes))
    tried = tuple(sizes)
    for feeds, together in usable:
        count = row_count(feeds)
        for name, array in together.items():
            if array.ndim == 0 or array.shape[0] != count:
                shape = list(array.shape)
                return BatchProof(
                    holds=False, sizes=tried, reason=f"Output {name!r} has shape {shape} for {count} rows of input."
                )
        for row in _spread(count):
            part = slice(row, row + 1)
            try:
                alone = run(take(feeds, part))
            except ModelFailed as error:
                return BatchProof(holds=False, sizes=tried, reason=f"One row alone does not run: {error.args[0]}"[:500])
            for name, array in together.items():
                found = compare(array[part], alone[name], tolerance, lossy=lossy)
                if not found.passed:
                    reason = f"Output {name!r} of row {row} among {count} {found.why} from the same row run alone."
                    return BatchProof(holds=False, sizes=tried, reason=reason)
    listed = ", ".join(str(size) for size in tried)
    return BatchProof(holds=True, sizes=tried, reason=f"Rows run together gave what each gave alone, at {listed} rows.")


def _spread(count: int) -> list[int]:
    return sorted({round(n * (count - 1) / (_ROWS_ALONE - 1)) for n in range(_ROWS_ALONE)})


def no_batch_axis(specs: Sequence[TensorSpec]) -> BatchProof:
    """Return the proof's answer for inputs that do not all lead with the batch axis."""
    for spec in specs:
        if not spec.shape or spec.shape[0] != BATCH_AXIS:
            what = "no axes" if not spec.shape else f"a first axis {_axis(spec.shape[0])}"
            return BatchProof(holds=False, reason=f"{spec.name!r} has {what}, so rows cannot be put together.")
    return BatchProof(holds=False, reason="The model has no inputs.")


def _axis(dim: int | str) -> str:
    return f"fixed at {dim}" if isinstance(dim, int) else f"called {dim!r}, over which rows are not independent"
