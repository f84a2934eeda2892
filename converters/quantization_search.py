"""Quantization search: which nodes may not be quantised, found by measurement when a model misses its tolerance."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from converters.arrays import Arrays
from converters.batching import fixed_rows, row_count, run_rows, take
from converters.class_outputs import class_outputs
from converters.comparison import Difference, compare, gather, least_cosine
from converters.onnx_runner import OnnxRunner
from converters.quantization_rehearsal import Rehearsal
from converters.reference import folder_of, rows_at_once
from converters.reference_cases import REAL, Reference
from converters.runners import descriptor_of
from schemas.errors import ConversionFailed, ModelFailed
from schemas.evidence import ReferenceCase
from schemas.precision import Precision
from schemas.step_io import StepContext
from schemas.step_options import QuantizationSearchOptions
from schemas.target import TargetProfile

_REHEARSED_ROWS = 8
"""What nodes are ranked on: the rows that the quantised model got worst. Whether a model passes is judged on all."""
_RANKING_SHARE = 0.4
"""Of the time, what ranking may take at most; the rest is for building and judging models."""
_MOST_EXCLUDED = 0.5
"""A model with more than this share of its nodes in float is hardly quantised any more."""
_NAMED = 3
"""Nodes that a note names."""

Built = TypeVar("Built")
Case = tuple[ReferenceCase, Arrays, Arrays]


@dataclass(frozen=True)
class Score:
    """How a model did on the reference's cases. ``error`` is 1 - the least cosine; ``why`` is empty when it passed."""

    error: float
    why: str = ""


class Judge:
    """Judges models on the reference as ``parity`` will: the real cases where there are any, else all."""

    def __init__(self, context: StepContext, precision: Precision) -> None:
        self._context, self._descriptor = context, descriptor_of(context)
        self._tolerance = (context.request.target or TargetProfile()).tolerance(precision)
        self._reference = Reference.open(folder_of(context))
        outputs = self._reference.report.outputs
        self._classes = class_outputs(context, self._descriptor, outputs)
        self._vectors = {spec.name for spec in outputs if len(spec.shape) == 1 and isinstance(spec.shape[0], int)}
        cases = [case for case in self._reference.report.cases if case.rows > 0]
        self._worst: list[tuple[float, Case, int | None]] = []
        self._cases = [case for case in cases if case.source in REAL] or cases

    def file(self, path: Path) -> Score:
        """Judge the model at ``path``."""
        runner = OnnxRunner(path, threads=self._context.request.threads)
        at_once = rows_at_once(self._descriptor)
        given = []
        for case in self._cases:
            feeds, expected = self._reference.inputs(case), self._reference.outputs(case)
            given.append(((case, feeds, expected), run_rows(runner.run, feeds, at_once)))
        self._worst = self._worst_rows(given)
        return self._score(given)

    def rehearse(self, rehearsal: Rehearsal, quantized: Collection[str], cases: Sequence[Case]) -> Score:
        """Judge a rehearsal with the nodes ``quantized`` rounded."""
        return self._score([(case, rehearsal.run(case[1], quantized)) for case in cases])

    def worst_cases(self, rows: int = _REHEARSED_ROWS) -> list[Case]:
        """Return the rows that the model judged last got worst, case by case; whole cases where rows depend."""
        cases: dict[str, Case] = {}
        picked: dict[str, list[int]] = {}
        for _, (case, feeds, expected), row in self._worst[:rows]:
            cases[case.id] = (case, feeds, expected)
            if row is not None:
                picked.setdefault(case.id, []).append(row)
        return [
            (case, take(feeds, np.array(picked[name])), take(expected, np.array(picked[name])))
            if name in picked
            else (case, feeds, expected)
            for name, (case, feeds, expected) in cases.items()
        ]

    def _worst_rows(self, given: Sequence[tuple[Case, Arrays]]) -> list[tuple[float, Case, int | None]]:
        """Return (error, case, row), the worst first; row is None for a case that stays whole."""
        alone = self._reference.report.batching.holds and fixed_rows(self._descriptor.inputs) is None
        found: list[tuple[float, Case, int | None]] = []
        for (case, feeds, expected), outputs in given:
            rows = row_count(feeds)
            if alone and all(array.ndim and array.shape[0] == rows for array in expected.values()):
                for row in range(rows):
                    part = slice(row, row + 1)
                    found.append((self._error(take(expected, part), take(outputs, part)), (case, feeds, expected), row))
            elif rows <= rows_at_once(self._descriptor):
                found.append((self._error(expected, outputs), (case, feeds, expected), None))
        return sorted(found, key=lambda item: -item[0])

    def _error(self, expected: Arrays, outputs: Arrays) -> float:
        return max(
            (
                _error(wanted, outputs[name], vector=name in self._vectors)
                for name, wanted in expected.items()
                if wanted.dtype.kind == "f" and wanted.shape == outputs[name].shape
            ),
            default=0.0,
        )

    def _score(self, given: Sequence[tuple[Case, Arrays]]) -> Score:
        found: dict[str, list[tuple[str, bool, Difference]]] = {}
        error = 0.0
        for (case, _, expected), outputs in given:
            error = max(error, self._error(expected, outputs))
            for name, wanted in expected.items():
                difference = compare(
                    wanted,
                    outputs[name],
                    self._tolerance,
                    lossy=True,
                    classes=name in self._classes,
                    vector=name in self._vectors,
                )
                found.setdefault(name, []).append((case.id, case.source in REAL, difference))
        why = ""
        for name, differences in found.items():
            why = why or gather(name, differences, self._tolerance, lossy=True)[1]
        return Score(error, why)


def _error(wanted: np.ndarray, got: np.ndarray, *, vector: bool) -> float:
    """Return 1 - the least cosine; for rows of one number the root mean square error relative to their own size."""
    a, b = wanted.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    a, b = np.where(finite, a, 0), np.where(finite, b, 0)
    cosine, _ = least_cosine(a, b, vector=vector)
    if cosine is not None:
        return 1 - cosine
    size = float(np.sqrt(np.mean(a * a))) if a.size else 0.0
    return float(np.sqrt(np.mean((a - b) ** 2))) / size if size else 0.0


@dataclass(frozen=True)
class Found(Generic[Built]):
    """What the search ends with: the model, the nodes that stay float, and notes that say why."""

    model: Built
    excluded: tuple[str, ...]
    notes: tuple[str, ...]


def search(
    context: StepContext,
    build: Callable[[tuple[str, ...]], tuple[Path, Built]],
    rehearse: Callable[[], Rehearsal | None],
) -> Found[Built]:
    """Build the model with every node quantised; while it misses the tolerance, leave out those that bring most error.

    ``build`` gets the names of nodes that stay float, and returns a file to judge and what to keep of the build.
    ``rehearse`` is asked only when the first model misses; None is no search. Options of the context bound trials and
    time. Without a reference nothing is judged. The best model is returned even when none passes: parity decides.
    """
    options: QuantizationSearchOptions = context.options
    file, model = build(())
    if not context.has("reference"):
        return Found(model, (), ())
    judge = Judge(context, Precision.INT8)
    began = time.monotonic()
    score = judge.file(file)
    if not score.why:
        return Found(model, (), ())
    missed = f"With every node quantised it misses the tolerance ({score.why.rstrip('.')})"
    if options.search_trials < 2 or not options.search_budget_s:
        return Found(model, (), (f"{missed}; a search for nodes to leave in float was not asked for.",))
    context.progress(0.4, "Looking for nodes that may not be quantised")
    try:
        rehearsal = rehearse()
        if rehearsal is None:
            return Found(model, (), (f"{missed}; the model is too large to search for nodes to leave in float.",))
        deadline = began + options.search_budget_s
        cases = judge.worst_cases()
        ranking = _rank(judge, rehearsal, cases, began + _RANKING_SHARE * options.search_budget_s)
        order = [name for name, _ in ranking]
        most = max(1, math.floor(len(order) * _MOST_EXCLUDED))
        count = _first_guess(judge, rehearsal, cases, order, most)
    except (ConversionFailed, ModelFailed) as error:
        return Found(model, (), (f"{missed}; nodes could not be ranked: {error.args[0]}",))
    del rehearsal
    best: tuple[Score, tuple[str, ...], Built] = (score, (), model)
    failed, passed, trials = 0, most + 1, 1
    while trials < options.search_trials and time.monotonic() < deadline and failed < count < passed:
        context.progress(0.4 + 0.25 * trials / options.search_trials, f"Leaving {count} nodes in float")
        excluded = tuple(order[:count])
        file, model = build(excluded)
        trials += 1
        score = judge.file(file)
        if not score.why or (best[0].why and score.error < best[0].error):
            best = (score, excluded, model)
        if score.why:
            failed = count
            count = min(count * 2, most) if passed > most else (failed + passed) // 2
        else:
            # Fewer may do: what stays float costs speed.
            passed, count = count, (failed + count) // 2
    return Found(best[2], best[1], _notes(missed, best[0], best[1], dict(ranking), trials))


def _rank(judge: Judge, rehearsal: Rehearsal, cases: list[Case], deadline: float) -> list[tuple[str, float]]:
    """Return node and the error that it alone brings, worst for its size first; those without time for them last.

    ``cases`` shrinks in place to what all nodes can be run on in time.
    """
    start = time.monotonic()
    judge.rehearse(rehearsal, (), cases)
    share = (deadline - start) / ((time.monotonic() - start) * len(rehearsal.nodes) + 1e-9)
    if share < 1:
        cases[:] = judge.worst_cases(max(1, int(_REHEARSED_ROWS * share)))
    errors: list[tuple[str, float]] = []
    for name in rehearsal.nodes:
        late = time.monotonic() > deadline
        errors.append((name, 0.0 if late else judge.rehearse(rehearsal, {name}, cases).error))
    # What is left in float costs speed and size by its weights, so the worst is judged by error for each byte.
    return sorted(errors, key=lambda item: -item[1] / rehearsal.costs[item[0]])


def _first_guess(judge: Judge, rehearsal: Rehearsal, cases: Sequence[Case], order: Sequence[str], most: int) -> int:
    """Return the least number of the worst nodes without which the rehearsal passes, or ``most``."""
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        if judge.rehearse(rehearsal, set(order[middle:]), cases).why:
            low = middle
        else:
            high = middle
    return high


def _notes(
    missed: str, score: Score, excluded: Sequence[str], errors: dict[str, float], trials: int
) -> tuple[str, ...]:
    if not excluded:
        return (f"{missed}; leaving nodes in float made it no better in {trials} trials.",)
    named = ", ".join(f"{name[-80:]} ({errors[name]:.2g})" for name in excluded[:_NAMED])
    more = f" and {len(excluded) - _NAMED} more" if len(excluded) > _NAMED else ""
    left = "it passes" if not score.why else f"it still misses ({score.why.rstrip('.')})"
    return (
        f"{missed}. With {len(excluded)} of {len(errors)} nodes in float32 {left}, at an error of {score.error:.2g}, "
        f"after {trials} trials.",
        f"In float32, because they bring most error for their size (1 - cosine when quantised alone): {named}{more}.",
    )
