"""Shapes that no layer tells and one finds: by what a linear layer complains of when it is given something else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from converters.axes import Guess
from converters.sampling import TRACE_BATCH, random_feeds
from converters.torch_runner import TorchRunner
from schemas.descriptor import BATCH_AXIS, Dim, DType, KnownBy, TensorSpec
from schemas.errors import ModelFailed

Shape = tuple[DType, tuple[Dim, ...], dict[str, int]]
"""An input's dtype, its shape with axes named, and their sizes (the batch aside)."""

_SPATIAL_AXES = frozenset({"length", "height", "width", "depth"})
_LARGEST_FITTED = 1024
_JOINED_TO = 8
"""Shapes of the others that an input of unknown width is tried beside."""
_MISFIT = re.compile(r"shapes cannot be multiplied \((\d+)x(\d+) and (\d+)x\d+\)")


def joined(shapes: Mapping[str, Shape], batch: int) -> Guess:
    """Return the guess of all inputs together; axes of one name and other sizes get names of their own."""
    sizes: dict[str, int] = {}
    specs = []
    for name, (dtype, shape, own) in shapes.items():
        renamed: dict[str, str] = {}
        for axis, size in own.items():
            # Equal names with other sizes are other axes.
            renamed[axis] = axis if sizes.get(axis, size) == size else f"{name}_{axis}"
            sizes[renamed[axis]] = size
        dims = tuple(renamed.get(dim, dim) if isinstance(dim, str) else dim for dim in shape)
        if BATCH_AXIS in dims:
            sizes[BATCH_AXIS] = batch
        specs.append(TensorSpec(name=name, dtype=dtype, shape=dims, known_by=KnownBy.GUESS))
    return Guess(tuple(specs), sizes)


def fitted(runner: TorchRunner, name: str, shapes: Sequence[Shape]) -> Shape | None:
    """Return a shape whose size fits the linear layer behind the convolutions, found by what that layer complains of.

    Axes of one size each are looked for, so an image comes out square; None when no such size fits.
    """
    for dtype, shape, sizes in shapes:
        if not sizes or not set(sizes) <= _SPATIAL_AXES:
            continue
        low, high, size, fits = 0, 0, 8, 0
        while size <= _LARGEST_FITTED and high - low != 1:
            specs = (TensorSpec(name=name, dtype=dtype, shape=shape, known_by=KnownBy.GUESS),)
            own = {**dict.fromkeys(sizes, size), BATCH_AXIS: 1}
            try:
                runner.run(random_feeds(specs, own, np.random.default_rng(0), runner.domains))
            except ModelFailed as error:
                found = _MISFIT.search(str(error.args[0]))
                # What does not even reach the layer is too small for the kernels before it.
                if found is None or int(found[1]) * int(found[2]) < int(found[3]):
                    low = size
                else:
                    high = size
            else:
                # Pooling rounds down, so that several sizes may fit; the smallest is the one that loses nothing.
                high = fits = size
            size = (low + high) // 2 if high else size * 2
        return (dtype, shape, dict.fromkeys(sizes, fits)) if fits else None
    return None


def beside(
    runner: TorchRunner, names: Sequence[str], together: Sequence[dict[str, Shape]]
) -> Iterator[dict[str, Shape]]:
    """Yield shapes with the one input that no weight touches as wide as a linear layer behind all of them asks for.

    It is joined to what the others became before that layer, which complains of what lacks when it is given one column.
    """
    unknown = [name for name in names if name not in together[0]]
    for known in together[:_JOINED_TO] if len(unknown) == 1 else ():
        column: Shape = ("float32", (BATCH_AXIS, 1), {})
        shapes = {name: known.get(name, column) for name in names}
        guess = joined(shapes, TRACE_BATCH)
        try:
            runner.run(random_feeds(guess.inputs, guess.sizes, np.random.default_rng(0), runner.domains))
        except ModelFailed as error:
            found = _MISFIT.search(str(error.args[0]))
            if found is not None and (lacking := int(found[3]) - int(found[2])) > 0:
                yield {**shapes, unknown[0]: ("float32", (BATCH_AXIS, 1 + lacking), {})}
