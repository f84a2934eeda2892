"""A process that holds the contenders of one runtime and times them when it is told to.

``python -P -m converters.measure_worker``: one JSON line in is one order, one JSON line out is its answer. Started by
``converters/measure.py`` only, inside the same sandbox.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from converters import machine
from converters.arrays import load
from converters.runners import Runner, load_candidate, load_original
from schemas.catalog import parse_options
from schemas.descriptor import Format
from schemas.errors import ModeliumError
from schemas.plan import ORIGINAL
from schemas.step_io import StepContext, StepRequest

LEAST_RUNS = 3
"""Timed runs of one turn, unless they are long."""
LONG_MS = 250.0
"""A run that takes so long is timed once a turn, and none before it is left untimed: to read a gigabyte of weights
again takes a tenth of that, and a turn of four runs would spend a budget of seconds on one contender."""
_MOST_RUNS = 2000
_WARM_RUNS = 3
_WARM_S = 0.1
"""Warming up stops when both are reached; the TorchScript interpreter compiles during its first runs."""
_LONGEST_WARM_S = 2.0


class Worker:
    """Loaded contenders and their bound inputs, by contender and batch."""

    def __init__(self, request: StepRequest, workspace: Path) -> None:
        self.context = StepContext(request, workspace, parse_options(request.kind, request.options))
        self.runners: dict[str, Runner] = {}
        self.calls: dict[tuple[str, int], Callable[[], object]] = {}

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out one order and return its answer. Raises ModeliumError when a contender fails."""
        contender, batch = order["contender"], int(order.get("batch", 0))
        match order["do"]:
            case "load":
                self.runners[contender] = self._load(contender, order["input"])
                return {"runtime": self.runners[contender].runtime, "versions": machine.versions()}
            case "bind":
                call = self.runners[contender].bind(load(Path(order["feeds"])))
                self.calls[contender, batch] = call
                return {"warm_runs": _warm(call)}
            case "turn":
                return {"latencies_ms": timed(self.calls[contender, batch], float(order["least_ms"]))}
        raise ModeliumError(f"The measuring worker knows no order {order['do']!r}.")

    def _load(self, contender: str, source: str) -> Runner:
        if contender == ORIGINAL:
            return load_original(self.context)
        format_ = self.context.options.formats.get(contender, Format.ONNX)
        return load_candidate(self.context.workspace / source, format_, threads=self.context.request.threads)


def timed(call: Callable[[], object], least_ms: float) -> list[float]:
    """Return the latency of each run in ms; of a long one that alone.

    The first run of short ones brings caches and threads back, and is left out.
    """
    gc.disable()
    try:
        first = _latency_ms(call)
        if first >= max(least_ms, LONG_MS):
            return [first]
        latencies: list[float] = []
        spent_ms = 0.0
        while (spent_ms < least_ms or len(latencies) < LEAST_RUNS) and len(latencies) < _MOST_RUNS:
            latencies.append(_latency_ms(call))
            spent_ms += latencies[-1]
    finally:
        gc.enable()
    return latencies


def _latency_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


def _warm(call: Callable[[], object]) -> int:
    start, runs = time.perf_counter(), 0
    while True:
        call()
        runs += 1
        spent = time.perf_counter() - start
        if (runs >= _WARM_RUNS and spent >= _WARM_S) or spent >= _LONGEST_WARM_S or runs >= 1000:
            return runs


def main() -> None:
    """Obey orders from stdin until it closes."""
    # A model's own prints must not mix with the answers, so the real stdout gets a number that nobody knows.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    first = json.loads(sys.stdin.readline())
    worker = Worker(StepRequest.model_validate(first["request"]), Path(first["workspace"]))
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = {"ok": True, **worker.obey(order)}
        except ModeliumError as error:
            answer = {"ok": False, "reason": str(error.args[0])}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    # Nobody waits for torch to be torn down: the machine is held until this process has ended.
    os._exit(0)


if __name__ == "__main__":
    main()
