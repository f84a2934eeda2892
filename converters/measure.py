"""Measure: original and candidates timed in turn, round by round, one process per runtime."""

from __future__ import annotations

import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import ChainMap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from converters import machine
from converters.arrays import Arrays, save
from converters.batching import fixed_rows, row_count, take
from converters.machine_turn import await_machine
from converters.measure_worker import LEAST_RUNS, LONG_MS
from converters.reference import folder_of
from converters.reference_cases import REAL, SAMPLES, Reference
from converters.runners import descriptor_of
from converters.sampling import ROWS_AXIS, sizes_of
from schemas.catalog import TOOLCHAIN_OF_FORMAT, toolchain_of
from schemas.descriptor import BATCH_AXIS, Format, ModelDescriptor
from schemas.errors import ModelFailed
from schemas.evidence import Measurement, MeasureReport, ReferenceCase
from schemas.plan import ORIGINAL
from schemas.step_io import StepContext, StepOutcome
from schemas.step_options import MeasureOptions

CANDIDATE_PREFIX = "candidate."
LEAST_ROUNDS = 5
"""Fewer rounds give no interval to judge noise by, so the budget gives way first."""
SHOWN_ROUNDS = 3
"""Rounds at a batch size that is shown and does not decide: one where the budget is spent by then."""
CLEAR_ROUNDS = 7
"""Rounds after which the order may be clear. Seven agreeing signs come by chance in 1.6 cases of a hundred, however
often one looks: they agree after more rounds only where they did after seven."""
LEVEL = 0.02
"""Contenders whose median ratio is nearer to 1 than this are level: more rounds would show what nobody would feel."""
_PREPARED = 0.2
"""Of the step's progress, when the rounds begin."""
_PAUSE_S = 0.005
"""Between turns: threads of the runtime that just ran stop spinning on the cores within it."""


@dataclass
class _Series:
    contender: str
    batch: int
    rounds_ms: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)


class WorkerFailed(ModelFailed):
    """A contender could not be loaded or run in its worker."""


class WorkerDied(ModelFailed):
    """A worker process ended. Who was asked is to blame; what else it held is loaded again in the next one."""


class WorkerProcess:
    """One ``measure_worker``; idle ones wait on a pipe and use no CPU."""

    def __init__(self, context: StepContext, toolchain: str) -> None:
        # The environment of this process, which the sandbox has already cleaned. What is timed runs as it would serve:
        # its threads spin while they wait, as the runtimes have it.
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
        self._process = subprocess.Popen(
            [_interpreter(context, toolchain), "-P", "-s", "-m", "converters.measure_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "PYTHONPATH": path, "MODELIUM_TOOLCHAIN": toolchain},
        )
        workspace = str(context.workspace.resolve())
        self._write({"request": context.request.model_dump(mode="json"), "workspace": workspace})
        self.holds: set[str] = set()

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to one order. Raises WorkerFailed with the contender's reason, WorkerDied at its end."""
        self._write(order)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            died = f"by signal {-code}" if code < 0 else f"with status {code}"
            raise WorkerDied(f"Its process ended {died} while it was asked to {order['do']} the model.")
        answer: dict[str, Any] = json.loads(line)
        if not answer["ok"]:
            raise WorkerFailed(str(answer["reason"]))
        return answer

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _write(self, document: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        # One that has ended gives no answer either, and then there is a status to tell.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(document) + "\n")
            self._process.stdin.flush()


class _Stable:
    """The workers by toolchain, and what became of the contenders. A toolchain is asked by one thread at a time."""

    def __init__(self, context: StepContext, toolchains: dict[str, str]) -> None:
        self.context, self.toolchains = context, toolchains
        self.workers: dict[str, WorkerProcess] = {}
        self.prepared: dict[str, list[dict[str, Any]]] = {}
        self.runtimes: dict[str, str] = {}
        self.versions: dict[str, dict[str, str]] = {}
        self.failures: dict[str, str] = {}

    def __enter__(self) -> _Stable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers.values():
            worker.close()

    def ask(self, contender: str, order: dict[str, Any]) -> dict[str, Any] | None:
        """Return the contender's answer; None when it failed, now or before."""
        if contender in self.failures:
            return None
        toolchain = self.toolchains[contender]
        order = {**order, "contender": contender}
        try:
            worker = self.workers.get(toolchain) or WorkerProcess(self.context, toolchain)
            self.workers[toolchain] = worker
            orders = self.prepared.setdefault(contender, [])
            if contender not in worker.holds:
                worker.holds.add(contender)
                for before in orders:
                    worker.ask(before)
            answer = worker.ask(order)
            if order["do"] != "turn":
                orders.append(order)
            return answer
        except WorkerFailed as error:
            self.failures[contender] = str(error.args[0])[:500]
        except WorkerDied as error:
            if ended := self.workers.pop(toolchain, None):
                ended.close()
            self.failures[contender] = str(error.args[0])[:500]
        return None


def measure(context: StepContext) -> StepOutcome:
    """Time the original and every candidate on the same inputs, each in its own runtime with the same threads.

    Contenders take turns in an order shuffled anew (by the request's seed) in every round, so that drifts of the
    machine meet all of them; only one works at a time, and none before the machine is this step's alone. They are
    loaded, bound and warmed up before, a thread per runtime. A contender that fails is told in ``failures``.
    """
    options: MeasureOptions = context.options
    request, descriptor = context.request, descriptor_of(context)
    reference = Reference.open(folder_of(context))
    case = _timed_case(reference, descriptor)
    feeds = reference.inputs(case)
    batches = _batches(options, reference, descriptor, feeds)
    contenders = {ORIGINAL: "model"}
    contenders.update({name.removeprefix(CANDIDATE_PREFIX): path for name, path in request.inputs.items()
                       if name.startswith(CANDIDATE_PREFIX)})  # fmt: skip
    formats = {name: options.formats.get(name, Format.ONNX) for name in contenders if name != ORIGINAL}
    toolchains = {ORIGINAL: toolchain_of(descriptor)} | {n: TOOLCHAIN_OF_FORMAT[f] for n, f in formats.items()}
    with _Stable(context, toolchains) as stable, tempfile.TemporaryDirectory(dir=context.out) as scratch:
        files = {}
        sizes: dict[str, int] = {}
        for batch in batches:
            files[batch] = Path(scratch).resolve() / f"feeds.{batch}.npz"
            fed = _of_batch(feeds, batch, descriptor)
            sizes = {k: n for k, n in sizes_of(descriptor.inputs, fed).items() if k not in (BATCH_AXIS, ROWS_AXIS)}
            save(files[batch], fed)
        together: dict[str, dict[str, str]] = {}
        for contender, source in contenders.items():
            together.setdefault(toolchains[contender], {})[contender] = source
        with ThreadPoolExecutor(len(together)) as pool:
            list(pool.map(lambda theirs: _prepare(context, stable, theirs, files), together.values()))
        await_machine(context, _PREPARED)
        series = _race(context, stable, [c for c in contenders if c not in stable.failures], batches)
        measurements = tuple(
            _measurement(each, stable.runtimes[each.contender])
            for each in series
            if each.rounds_ms and each.contender not in stable.failures
        )
        versions = dict(ChainMap(*(stable.versions.get(contender, {}) for contender in contenders)))
        report = MeasureReport(
            machine=machine.describe(request.threads).model_copy(update={"versions": versions}),
            method=_method(options, case, series),
            case_axes=sizes,
            measurements=measurements,
            failures=stable.failures,
        )
    return StepOutcome(report=report)


def _prepare(context: StepContext, stable: _Stable, contenders: dict[str, str], feeds: dict[int, Path]) -> None:
    """Load, bind and warm up the contenders of one toolchain."""
    for contender, source in contenders.items():
        context.progress(0.0, f"loading {contender}")
        answer = stable.ask(contender, {"do": "load", "input": source})
        if answer is None:
            continue
        stable.runtimes[contender] = str(answer["runtime"])
        stable.versions[contender] = answer["versions"]
        for batch, path in feeds.items():
            stable.ask(contender, {"do": "bind", "batch": batch, "feeds": str(path)})


def _race(context: StepContext, stable: _Stable, contenders: list[str], batches: tuple[int, ...]) -> list[_Series]:
    options: MeasureOptions = context.options
    order = random.Random(context.request.seed)
    series = [_Series(contender, batch) for batch in batches for contender in contenders]
    deciding = frozenset(options.deciding) & frozenset(batches) or frozenset(batches)
    deadline = time.monotonic() + options.budget_s
    for number in range(options.rounds):
        if number >= LEAST_ROUNDS and time.monotonic() >= deadline:
            break
        if number >= CLEAR_ROUNDS and _is_clear(series, deciding, stable):
            break
        context.progress(
            _PREPARED + (1 - _PREPARED) * number / options.rounds, f"round {number + 1} of at most {options.rounds}"
        )
        for batch in batches:
            if batch not in deciding and (number >= SHOWN_ROUNDS or (number and time.monotonic() >= deadline)):
                continue
            turn = [each for each in series if each.batch == batch]
            order.shuffle(turn)
            for each in turn:
                time.sleep(_PAUSE_S)
                answer = stable.ask(each.contender, {"do": "turn", "batch": batch, "least_ms": options.round_ms})
                if answer is not None:
                    latencies = [float(value) for value in answer["latencies_ms"]]
                    each.rounds_ms.append(statistics.median(latencies))
                    each.latencies_ms += latencies
    return series


def _is_clear(series: list[_Series], deciding: frozenset[int], stable: _Stable) -> bool:
    """Whether the fastest at every deciding batch is told apart from, or level with, every other contender.

    So must be each contender and the original, which is what every speed-up is told against.
    """
    for batch in deciding:
        rounds = {s.contender: s.rounds_ms for s in series if s.batch == batch and s.contender not in stable.failures}
        if not rounds:
            continue
        leader = min(rounds, key=lambda contender: statistics.median(rounds[contender]))
        against = {leader, ORIGINAL} & rounds.keys()
        if not all(_settled(mine, rounds[other]) for mine in rounds.values() for other in against):
            return False
    return True


def _settled(mine: list[float], other: list[float]) -> bool:
    ratios = [a / max(b, 1e-9) for a, b in zip(mine, other, strict=True)]
    if all(ratio > 1 for ratio in ratios) or all(ratio < 1 for ratio in ratios):
        return True
    return abs(statistics.median(ratios) - 1) < LEVEL


def _measurement(series: _Series, runtime: str) -> Measurement:
    # The median of the rounds, not of the runs: the verdict pairs rounds, and one number is to be told everywhere.
    rounds = tuple(round(value, 6) for value in series.rounds_ms)
    median = statistics.median(rounds)
    return Measurement(
        contender=series.contender,
        runtime=runtime,
        batch=series.batch,
        rounds_ms=rounds,
        runs=len(series.latencies_ms),
        median_ms=median,
        p95_ms=float(np.percentile(series.latencies_ms, 95)),
        throughput_per_s=series.batch * 1000 / max(median, 1e-6),
    )


def _interpreter(context: StepContext, toolchain: str) -> str:
    """Return the interpreter of a toolchain: what the step was told, else this one."""
    return context.request.interpreters.get(toolchain, sys.executable)


def _timed_case(reference: Reference, descriptor: ModelDescriptor) -> ReferenceCase:
    """Return the case whose rows are timed: real samples before sentences (the longest) before random ones."""
    cases = reference.report.cases
    for case in cases:
        if case.id == SAMPLES:
            return case
    real = [case for case in cases if case.source in REAL]
    if real:
        return max(real, key=lambda case: max((n for axis, n in case.axes.items() if axis != BATCH_AXIS), default=0))
    return next((case for case in cases if case.traced), cases[0])


def _batches(
    options: MeasureOptions, reference: Reference, descriptor: ModelDescriptor, feeds: Arrays
) -> tuple[int, ...]:
    """Return the batch sizes to time: those asked for where batching is proven, else the model's own size."""
    if reference.report.batching.holds:
        return tuple(dict.fromkeys(options.batch_sizes))
    fixed = fixed_rows(descriptor.inputs)
    leads = all(spec.shape and spec.shape[0] in (BATCH_AXIS, ROWS_AXIS) for spec in descriptor.inputs)
    # Rows that depend on each other are timed as the one request they are, and a large sample is no request.
    return (fixed or (min(row_count(feeds), 8) if leads else 1),)


def _of_batch(feeds: Arrays, batch: int, descriptor: ModelDescriptor) -> Arrays:
    """Return ``batch`` rows of ``feeds``, repeated where there are fewer; as they are where no axis counts rows."""
    leads = all(spec.shape and spec.shape[0] in (BATCH_AXIS, ROWS_AXIS, batch) for spec in descriptor.inputs)
    return take(feeds, np.arange(batch) % row_count(feeds)) if leads and descriptor.inputs else feeds


def _method(options: MeasureOptions, case: ReferenceCase, series: list[_Series]) -> str:
    rounds = max((len(each.rounds_ms) for each in series), default=0)
    return (
        f"{rounds} rounds; in each, every contender in a shuffled order runs for at least {options.round_ms:g} ms and "
        f"{LEAST_RUNS} times, after one run that is not timed, or once where a run takes {LONG_MS:g} ms; one process "
        f"per runtime, one contender working at a time, idle threads not spinning. Inputs: case {case.id} "
        f"({case.source}). Garbage collection off while timing."
    )
