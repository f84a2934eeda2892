"""Search: find by measurement which operators of an int8 model have to stay in float, and leave as few as it takes."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.arrays import Arrays
from converters.batching import run_rows, take
from converters.class_outputs import class_outputs
from converters.comparison import Difference, compare, gather
from converters.openvino_runner import OpenvinoRunner
from converters.reference import rows_at_once
from converters.reference_cases import REAL, Reference
from converters.runners import descriptor_of
from schemas.errors import ModelFailed
from schemas.precision import Precision
from schemas.step_io import StepContext
from schemas.step_options import OpenvinoInt8Options
from schemas.target import TargetProfile

if TYPE_CHECKING:
    import openvino

_RANKED_CASES = 4
_RANKED_ROWS = 8
"""What operators are ranked on; whether a model passes is judged on everything."""
_MOST_EXCLUDED = 0.5
"""A model with more than this share of its operators in float is hardly quantised any more."""
_RANKING_SHARE = 0.4
"""Of the time, what ranking may take at most; the rest is for judging models."""
_NAMED = 8
"""Operators that a note names."""


@dataclass(frozen=True)
class Trial:
    """A quantised model, why it misses the tolerance (empty when it does not), and how far it is from the original."""

    model: openvino.Model
    missed: str
    error: float


class Search:
    """Leaves operators of one model in float, the costliest first, until the tolerance of int8 holds."""

    def __init__(self, context: StepContext, model: openvino.Model) -> None:
        self._context, self._model = context, model
        self._reference = Reference.open(context.input("reference"))
        self._tolerance = (context.request.target or TargetProfile()).tolerance(Precision.INT8)

    def run(self, first: Trial, names: Sequence[str]) -> tuple[Trial, list[str]]:
        """Return the trial to give, and notes that name the operators that stayed in float.

        ``first`` is quantised in ``names``; the others that are tried are copies of it that compute some in float.
        Trials and time are bounded by the step's options: what is tried when the time is spent is finished. Where the
        tolerance is out of reach ``first`` is returned; parity says what it misses.
        """
        options: OpenvinoInt8Options = self._context.options
        if not first.missed:
            return first, []
        notes = [f"With all of them in int8: {first.missed}"]
        if options.search_trials < 2 or not options.search_budget_s:
            return first, [*notes, "A search for operators to leave in float was not asked for."]
        began = time.monotonic()
        ranked = self._rank(first.model, names, began + _RANKING_SHARE * options.search_budget_s)
        passed = max(1, int(len(names) * _MOST_EXCLUDED))
        best = self.judged(in_float(first.model, self._model, ranked[:passed]))
        if best.missed:
            return first, [*notes, f"With {passed} of {len(names)} in float it misses the tolerance too: {best.missed}"]
        failed, count = 0, 1
        for number in range(2, options.search_trials):
            if not failed < count < passed or time.monotonic() > began + options.search_budget_s:
                break
            self._context.progress(0.6 + 0.2 * number / options.search_trials, f"leaving {count} operators in float")
            last = self.judged(in_float(first.model, self._model, ranked[:count]))
            if last.missed:
                failed = count
            else:
                best, passed = last, count
            count = min(2 * failed, (failed + passed) // 2)
        kept = ranked[:passed]
        rest = f" and {len(kept) - _NAMED} more" if len(kept) > _NAMED else ""
        notes.append(f"Stay in float, as they cost the most accuracy: {', '.join(kept[:_NAMED])}{rest}.")
        return best, notes

    def _rank(self, model: openvino.Model, names: Sequence[str], deadline: float) -> list[str]:
        """Return ``names``, first those that lower the error most when they alone compute in float.

        What one operator ruins hides what the others cost: while the first halves the error, the others are measured
        again beside it. Those there was no time for come last, in the order of execution.
        """
        rows = self._rows()
        first, left, error = list[str](), list(names), self._error(model, rows)
        while left:
            errors: dict[str, float] = {}
            for number, name in enumerate(left):
                if time.monotonic() > deadline:
                    break
                self._context.progress(0.3 + 0.3 * number / len(left), f"measuring {name}"[:200])
                try:
                    errors[name] = self._error(in_float(model, self._model, [*first, name]), rows)
                except ModelFailed:
                    continue
            worst = max(errors.values(), default=0.0)
            left.sort(key=lambda name: errors.get(name, worst))
            least = min(errors.values(), default=error)
            if least > error / 2 or time.monotonic() > deadline:
                break
            first.append(left.pop(0))
            error = least
        return [*first, *left]

    def judged(self, model: openvino.Model) -> Trial:
        """Return what parity would find of ``model``."""
        descriptor = descriptor_of(self._context)
        runner = OpenvinoRunner.of(model, threads=self._context.request.threads)
        report = self._reference.report
        classes = class_outputs(self._context, descriptor, report.outputs)
        vectors = {spec.name for spec in report.outputs if len(spec.shape) == 1 and isinstance(spec.shape[0], int)}
        found: dict[str, list[tuple[str, bool, Difference]]] = {}
        distance = 0.0
        for case, feeds, expected in self._reference.cases():
            given = run_rows(runner.run, feeds, rows_at_once(descriptor))
            for name, array in expected.items():
                difference = compare(
                    array, given[name], self._tolerance, lossy=True, classes=name in classes, vector=name in vectors
                )
                found.setdefault(name, []).append((case.id, case.source in REAL, difference))
            distance += _distance(expected, given)
        whys = [gather(name, differences, self._tolerance, lossy=True)[1] for name, differences in found.items()]
        return Trial(model, next((why for why in whys if why), ""), distance)

    def _error(self, model: openvino.Model, rows: Sequence[tuple[Arrays, Arrays]]) -> float:
        """Return the mean squared error over the original's mean square, summed over ``rows`` and outputs."""
        runner = OpenvinoRunner.of(model, threads=self._context.request.threads)
        return sum(_distance(expected, runner.run(feeds)) for feeds, expected in rows)

    def _rows(self) -> list[tuple[Arrays, Arrays]]:
        """Return a few rows of a few cases, of the real ones where there are any."""
        cases = list(self._reference.report.cases)
        chosen = [case for case in cases if case.source in REAL] or [case for case in cases if case.id != "zeros"]
        rows = []
        for case in chosen[-_RANKED_CASES:]:
            inputs, outputs = self._reference.inputs(case), self._reference.outputs(case)
            led = all(array.ndim and len(array) == case.rows for array in (*inputs.values(), *outputs.values()))
            if case.rows > _RANKED_ROWS and led:
                at = np.linspace(0, case.rows - 1, _RANKED_ROWS).astype(int)
                inputs, outputs = take(inputs, at), take(outputs, at)
            rows.append((inputs, outputs))
        return rows


def _distance(expected: Arrays, given: Arrays) -> float:
    total = 0.0
    for name, array in expected.items():
        if array.dtype.kind == "f" and array.size and array.shape == given[name].shape:
            original, candidate = np.nan_to_num(array.astype(np.float64)), np.nan_to_num(given[name].astype(np.float64))
            total += float(np.mean((candidate - original) ** 2)) / (float(np.mean(original**2)) or 1.0)
    return total


def in_float(model: openvino.Model, original: openvino.Model, names: Collection[str]) -> openvino.Model:
    """Return a copy of the quantised ``model`` in which the operators ``names`` compute as they do in ``original``.

    What the quantiser added to their biases is taken away: it corrects errors that they make no more.
    """
    copy = model.clone()
    nodes = {op.get_friendly_name(): op for op in copy.get_ops()}
    originals = {op.get_friendly_name(): op for op in original.get_ops()}
    for name in names:
        node, before = nodes[name], originals[name]
        for port in range(before.get_input_size()):
            source = before.input(port).get_source_output()
            weight = _weight(source.get_node())
            if weight is not None:
                node.input(port).replace_source_output(weight)
            elif source.get_node().get_friendly_name() in nodes:
                same = nodes[source.get_node().get_friendly_name()]
                node.input(port).replace_source_output(same.output(source.get_index()))
        _restore_bias(node, originals)
    copy.validate_nodes_and_infer_types()
    return copy


def _restore_bias(node: Any, originals: Mapping[str, Any]) -> None:
    """Give ``node`` back the bias that it has among ``originals``; one that is the quantiser's own becomes zero."""
    from openvino import opset13

    for target in list(node.output(0).get_target_inputs()):
        add, port = target.get_node(), 1 - target.get_index()
        bias = _weight(add.input(port).get_source_output().get_node()) if add.get_type_name() == "Add" else None
        if bias is None:
            continue
        before = originals.get(add.get_friendly_name())
        if before is not None:
            bias = _weight(before.input(port).get_source_output().get_node()) or bias
        else:
            bias = opset13.constant(np.zeros_like(bias.get_node().data)).output(0)
        add.input(port).replace_source_output(bias)


def _weight(node: Any) -> Any:
    """Return a constant of the original as a new one, float32 where it is stored in fewer bits; None for others."""
    from openvino import opset13

    if node.get_type_name() == "Constant":
        return opset13.constant(np.array(node.data)).output(0)
    if node.get_type_name() == "Convert" and node.input(0).get_source_output().get_node().get_type_name() == "Constant":
        stored = node.input(0).get_source_output().get_node()
        return opset13.constant(np.array(stored.data).astype(np.float32)).output(0)
    return None
