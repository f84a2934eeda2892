"""Guesses for ONNX: its header tells shapes; which of the declared dynamic axes are real, only running tells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from converters.arrays import Arrays
from converters.axes import Guess
from converters.sampling import TRACE_BATCH, axes_of, sizes_of, usual_size
from converters.whole_sample import fits, holds, is_whole
from schemas.descriptor import TensorSpec

_LENGTHS = (16, 8, 32, 64, 128, 1, 10)
_IMAGE_SIZES = (224, 32, 64, 28, 256, 416, 512, 640)


def sampled_guesses(specs: Sequence[TensorSpec], sample: Arrays) -> Iterator[Guess]:
    """Yield the declared inputs at the sizes of a person's sample, with less and less left to chance."""
    if not sample or not fits(specs, sample):
        return
    inputs, sizes = tuple(specs), sizes_of(specs, sample)
    leading = {spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], str)}
    batches = (None,) if is_whole(specs, sample) or not leading else (TRACE_BATCH, 1)
    for held in holds(specs, sample):
        for batch in batches:
            rows = {} if batch is None else {str(axis): batch for axis in leading}
            yield Guess(inputs, {**sizes, **rows}, domains=held)


def onnx_guesses(specs: Sequence[TensorSpec]) -> Iterator[Guess]:
    """Yield the declared inputs at usual sizes, at a batch of two and, for graphs that froze it, of one."""
    inputs = tuple(specs)
    leading = {spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], str)}
    images = {dim for spec in inputs if len(spec.shape) == 4 for dim in spec.shape[2:] if isinstance(dim, str)}
    others = [axis for axis in axes_of(inputs) if axis not in leading]
    seen = []
    for batch in (TRACE_BATCH, 1):
        for number in range(max(len(_LENGTHS), len(_IMAGE_SIZES)) if others else 1):
            sizes = {str(axis): batch for axis in leading}
            for axis in others:
                if axis in images:
                    sizes[axis] = _IMAGE_SIZES[number % len(_IMAGE_SIZES)]
                else:
                    sizes[axis] = usual_size(axis) if number == 0 else _LENGTHS[number % len(_LENGTHS)]
            if sizes not in seen:
                seen.append(sizes)
                yield Guess(inputs, sizes)
