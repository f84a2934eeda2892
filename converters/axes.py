"""Axes: find out by running which axes of a model's inputs may change, and what its outputs are."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from converters.arrays import Arrays, dtype_name
from converters.batching import Run, has_batch_axis, prove
from converters.domain import Domain
from converters.sampling import ROWS_AXIS, random_feeds
from schemas.descriptor import BATCH_AXIS, Dim, KnownBy, TensorSpec
from schemas.errors import ModelFailed
from schemas.precision import Precision
from schemas.target import DEFAULT_TOLERANCES

_BATCHES = (1, 2, 3)
"""Two of them are tried beside the size that was guessed; larger ones are the reference's."""


@dataclass(frozen=True)
class Guess:
    """Inputs to try: names in shapes are axes that may turn out dynamic, ``sizes`` is where each starts."""

    inputs: tuple[TensorSpec, ...]
    sizes: Mapping[str, int]
    feeds: Arrays | None = None
    """Real arrays of those sizes, where there are some."""
    domains: Mapping[str, Domain] = field(default_factory=dict)
    """What inputs are held to beside what the model itself tells."""

    def __str__(self) -> str:
        return ", ".join(
            f"{s.name} {s.dtype}{[d if isinstance(d, int) else self.sizes[d] for d in s.shape]}" for s in self.inputs
        )


@dataclass
class Signature:
    """What running told: inputs and outputs with dynamic axes named, and a size of each that ran."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sizes: dict[str, int]
    tried: list[str] = field(default_factory=list)


def find(run: Run, guess: Guess, seed: int, domains: Mapping[str, Domain]) -> Signature:
    """Run ``guess``, then every named axis at other sizes. Raises ModelFailed when ``guess`` itself does not run.

    An axis that does not run at other sizes is fixed. A leading axis is called ``batch`` only when every input and
    output leads with it and rows do not depend on each other; else ``rows``.
    """
    explorer = _Explorer(run, guess, seed, domains)
    explorer.start()
    stuck = [axis for axis in list(guess.sizes) if not explorer.vary((axis,))]
    # Axes that only run when they change together, such as the same length declared under two names.
    for size in {guess.sizes[axis] for axis in stuck}:
        together = tuple(axis for axis in stuck if guess.sizes[axis] == size)
        if len(together) > 1 and explorer.vary(together):
            explorer.merge(together)
    leading = [spec.shape[0] for spec in guess.inputs if spec.shape]
    alone = {
        axis: 1
        for axis in stuck
        if axis not in explorer.dynamic and axis in leading and guess.sizes[axis] != 1 and guess.feeds is None
    }
    if alone:
        # What cannot change is better fixed at one row than at the two it was tried with; squeeze() makes such models.
        with contextlib.suppress(ModelFailed):
            return find(run, replace(guess, sizes={**guess.sizes, **alone}), seed, domains)
    return explorer.signature()


class _Explorer:
    def __init__(self, run: Run, guess: Guess, seed: int, domains: Mapping[str, Domain]) -> None:
        self.run, self.guess, self.seed, self.domains = run, guess, seed, {**domains, **guess.domains}
        self.dynamic: dict[str, str] = {}
        """Axis of the guess to the name it is known by; an axis that is not in it is fixed."""
        self.seen: list[tuple[dict[str, int], Arrays]] = []
        self.tried: list[str] = []

    def start(self) -> None:
        sizes = dict(self.guess.sizes)
        feeds = self.guess.feeds or self.feeds(sizes)
        self.seen.append((sizes, self.run(feeds)))

    def feeds(self, sizes: Mapping[str, int]) -> Arrays:
        return random_feeds(self.guess.inputs, sizes, np.random.default_rng(self.seed), self.domains)

    def vary(self, axes: tuple[str, ...]) -> bool:
        """Try other sizes of ``axes`` together; remember what ran, and whether enough of it did."""
        base = self.guess.sizes[axes[0]]
        leading = any(spec.shape and spec.shape[0] in axes for spec in self.guess.inputs)
        others = [n for n in (_BATCHES if leading else _lengths(base)) if n != base]
        ran = 0
        for size in others:
            sizes = {**self.guess.sizes, **dict.fromkeys(axes, size)}
            try:
                outputs = self.run(self.feeds(sizes))
            except ModelFailed as error:
                self.tried.append(f"{', '.join(axes)} = {size}: {error.args[0]}"[:300])
                if leading:
                    return False
                continue
            if {n: a.ndim for n, a in outputs.items()} != {n: a.ndim for n, a in self.seen[0][1].items()}:
                self.tried.append(f"{', '.join(axes)} = {size}: gives outputs with other axes")
                if leading:
                    return False
                continue
            self.tried.append(f"{', '.join(axes)} = {size}: runs")
            self.seen.append((sizes, outputs))
            ran += 1
        # A model may have a longest length, so one refusal among several lengths is no proof of a fixed axis.
        enough = ran == len(others) if leading else ran >= 2
        if enough:
            self.dynamic.update({axis: axis for axis in axes})
        else:
            self.seen = [(s, o) for s, o in self.seen if all(s[axis] == base for axis in axes)]
        return enough

    def merge(self, axes: tuple[str, ...]) -> None:
        self.dynamic.update(dict.fromkeys(axes, axes[0]))

    def signature(self) -> Signature:
        leading = {spec.shape[0] for spec in self.guess.inputs if spec.shape and spec.shape[0] in self.dynamic}
        first = next(iter(leading)) if len(leading) == 1 else None
        if isinstance(first, str):
            self.dynamic[first] = BATCH_AXIS
        inputs, outputs = self.inputs(), self.outputs()
        if isinstance(first, str) and not self.independent(inputs, outputs, first):
            self.dynamic[first] = first if first != BATCH_AXIS else ROWS_AXIS
            inputs, outputs = self.inputs(), self.outputs()
        sizes = {name: self.guess.sizes[axis] for axis, name in reversed(self.dynamic.items())}
        return Signature(inputs, outputs, sizes, self.tried)

    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(
            spec.model_copy(update={"shape": tuple(self.named(dim) for dim in spec.shape)})
            for spec in self.guess.inputs
        )

    def named(self, dim: Dim) -> Dim:
        if isinstance(dim, int):
            return dim
        return self.dynamic.get(dim, self.guess.sizes[dim])

    def outputs(self) -> tuple[TensorSpec, ...]:
        specs = []
        for name, array in self.seen[0][1].items():
            shapes = [(sizes, outputs[name].shape) for sizes, outputs in self.seen]
            dims = tuple(self.output_dim(name, axis, shapes) for axis in range(array.ndim))
            specs.append(TensorSpec(name=name, dtype=dtype_name(array), shape=dims, known_by=KnownBy.PROBE))
        return tuple(specs)

    def output_dim(self, name: str, axis: int, shapes: Sequence[tuple[dict[str, int], tuple[int, ...]]]) -> Dim:
        values = [shape[axis] for _, shape in shapes]
        if len(set(values)) == 1:
            return values[0]
        for candidate, known in self.dynamic.items():
            if all(sizes[candidate] == value for (sizes, _), value in zip(shapes, values, strict=True)):
                return known
        return f"{name}_{axis}"[:256]

    def independent(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], axis: str) -> bool:
        if not has_batch_axis(inputs) or not has_batch_axis(outputs):
            return False
        base = self.guess.sizes[axis]
        sizes, together = next((s, o) for s, o in self.seen if s[axis] not in (1, base) or len(self.seen) == 1)
        return prove(self.run, [(self.feeds(sizes), together)], DEFAULT_TOLERANCES[Precision.FP32]).holds


def _lengths(base: int) -> tuple[int, ...]:
    """Return other sizes of an axis that is not the batch: a shorter odd one, a longer one, one that strides like."""
    if base >= 64:
        return (base - base // 4 // 32 * 32, base + 32, base * 3 // 4)
    return (max(2, base // 2 - 3), base + 5, base * 2)
