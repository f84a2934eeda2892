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
"""Where a run takes so long, a turn is one run: to read a gigabyte of weights again takes a tenth of that, and a turn
of four would spend a budget of seconds on one contender."""
_MOST_RUNS = 2000
_WARM_RUNS = 3
_WARM_S = 0.1
"""Warming up stops when both are reached; the TorchScript interpreter compiles during its first runs."""
_SLOW_WARM_RUNS, _SLOW_WARM_S = 2, 2.0
"""Or both of these, or the time alone:"""
_LONGEST_WARM_S = 10.0


class Worker:
    """Loaded contenders and their bound inputs, by contender and batch."""

    def __init__(self, request: StepRequest, workspace: Path) -> None:
        self.context = StepContext(request, workspace, parse_options(request.kind, request.options))
        self.runners: dict[str, Runner] = {}
        self.calls: dict[tuple[str, int], Callable[[], object]] = {}
        self.are_long: dict[tuple[str, int], bool] = {}

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
                warm_ms = warmed(call)
                self.are_long[contender, batch] = min(warm_ms) >= LONG_MS
                return {"warm_runs": len(warm_ms)}
            case "turn":
                which, least_ms = (contender, batch), float(order["least_ms"])
                return {"latencies_ms": timed(self.calls[which], least_ms, is_long=self.are_long[which])}
        raise ModeliumError(f"The measuring worker knows no order {order['do']!r}.")

    def _load(self, contender: str, source: str) -> Runner:
        if contender == ORIGINAL:
            return load_original(self.context)
        format_ = self.context.options.formats.get(contender, Format.ONNX)
        return load_candidate(self.context.workspace / source, format_, threads=self.context.request.threads)


def timed(call: Callable[[], object], least_ms: float, *, is_long: bool = False) -> list[float]:
    """Return the latency of each run in ms. One run before them is not timed: it brings caches and threads back.

    Of what ``is_long``, none is left untimed, and one run does where it takes ``least_ms``.
    """
    if not is_long:
        call()
    least_runs = 1 if is_long else LEAST_RUNS
    latencies: list[float] = []
    spent_ms = 0.0
    gc.disable()
    try:
        while (spent_ms < least_ms or len(latencies) < least_runs) and len(latencies) < _MOST_RUNS:
            latencies.append(_latency_ms(call))
            spent_ms += latencies[-1]
    finally:
        gc.enable()
    return latencies


def _latency_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


def warmed(call: Callable[[], object]) -> list[float]:
    """Run until all that is done once has been done; return the latency of each run in ms."""
    latencies: list[float] = []
    while True:
        latencies.append(_latency_ms(call))
        runs, spent_s = len(latencies), sum(latencies) / 1e3
        if (runs >= _WARM_RUNS and spent_s >= _WARM_S) or (runs >= _SLOW_WARM_RUNS and spent_s >= _SLOW_WARM_S):
            return latencies
        if spent_s >= _LONGEST_WARM_S or runs >= 1000:
            return latencies


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
