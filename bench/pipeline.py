"""The whole pipeline for one model, with where every second went, read from what it recorded about itself."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from modelium.home import Home

MODELIUM = Path(sys.executable).parent / "modelium"


@dataclass(frozen=True)
class Breakdown:
    """Seconds of one ``modelium convert``. Candidates run at once, so ``steps`` may sum to more than ``total_s``.

    ``overhead_s`` is the time in which no step did work of its own: starting sandboxes, imports, hashing, the database,
    waiting, publishing. ``measuring_s`` is the measuring step's own work.
    """

    total_s: float
    overhead_s: float
    measuring_s: float
    steps: dict[str, float]
    account: dict[str, Any]


@contextlib.contextmanager
def running(home: Path, *first: Path) -> Iterator[None]:
    """Run ``modelium up`` in ``home``; ``first`` are converted before the block begins, which warms what can be."""
    with (home.parent / f"{home.name}.log").open("wb") as log:
        up = subprocess.Popen([MODELIUM, "--home", home, "up"], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            # Before that, commands would run the stages themselves.
            while not Home(home).is_up():
                assert up.poll() is None, "`modelium up` has ended"
                time.sleep(0.1)
            for model in first:
                convert(home, model)
            yield
        finally:
            up.terminate()
            up.wait(timeout=60)


def convert(home: Path, model: Path) -> Breakdown:
    """Convert ``model`` in ``home`` and break the wall time down."""
    began = time.perf_counter()
    done = subprocess.run(
        [MODELIUM, "--home", home, "convert", "--json", model], capture_output=True, text=True, check=False
    )
    total_s = time.perf_counter() - began
    account = json.loads(done.stdout)
    assert done.returncode == 0, account.get("reason")
    steps: dict[str, float] = defaultdict(float)
    spans: list[tuple[float, float]] = []
    measuring_s = 0.0
    for step in account["steps"]:
        if step["cached_from"] or not step["usage"]:
            continue
        usage = step["usage"]
        ended = datetime.fromisoformat(step["started_at"]).timestamp() + usage["wall_s"]
        spans.append((ended - (usage["run_s"] or 0), ended))
        steps[step["kind"]] += usage["wall_s"]
        if step["kind"] == "measure":
            measuring_s += usage["run_s"] or 0
    return Breakdown(total_s, total_s - _covered_s(spans), measuring_s, dict(steps), account)


def _covered_s(spans: list[tuple[float, float]]) -> float:
    """Return the seconds that lie in at least one of ``spans``."""
    covered, until = 0.0, 0.0
    for began, ended in sorted(spans):
        covered += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return covered
