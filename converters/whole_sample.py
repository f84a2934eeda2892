"""WholeSample: a person's arrays that are one set of inputs in the inputs' own shapes, for models without rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from converters.arrays import Array, Arrays, kind
from converters.domain import Domain
from schemas.descriptor import TensorSpec


def fits(specs: Sequence[TensorSpec], arrays: Mapping[str, Array]) -> bool:
    """Whether ``arrays`` have one array for each of ``specs``, in its own shape."""
    return all(spec.name in arrays and _fits(spec, arrays[spec.name]) for spec in specs)


def is_whole(specs: Sequence[TensorSpec], arrays: Mapping[str, Array]) -> bool:
    """Whether ``arrays`` fit ``specs`` as they are and cannot be rows: no leading axis is shared by all, or it is 0.

    A shape, an axis or a threshold that comes in as an input beside the data has no row for each row of the data.
    """
    if not fits(specs, arrays):
        return False
    leading = {spec.shape[0] if spec.shape else None for spec in specs}
    counts = {array.shape[0] if array.ndim else None for array in (arrays[spec.name] for spec in specs)}
    return len(leading) > 1 or len(counts) > 1 or None in counts or counts == {0}


def holds(specs: Sequence[TensorSpec], sample: Arrays) -> Iterator[dict[str, Domain]]:
    """Yield what to hold at the sample's values, the least first: nothing, all but floats, everything.

    Integers beside data without rows in common say where or how often, and random ones may ask for terabytes: there,
    nothing is not tried.
    """
    if not sample or not fits(specs, sample):
        yield {}
        return
    if not is_whole(specs, sample):
        yield {}
    yield {spec.name: Domain(value=sample[spec.name]) for spec in specs if kind(spec.dtype) != "float"}
    yield {spec.name: Domain(value=sample[spec.name]) for spec in specs}


def _fits(spec: TensorSpec, array: Array) -> bool:
    return array.ndim == len(spec.shape) and all(
        isinstance(dim, str) or dim == size for dim, size in zip(spec.shape, array.shape, strict=True)
    )
