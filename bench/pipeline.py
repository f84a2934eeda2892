"""The whole pipeline for one model, with where every second went, read from what it recorded about itself."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

MODELIUM = Path(sys.executable).parent / "modelium"


@dataclass(frozen=True)
class Breakdown:
    """Seconds of one ``modelium convert``. ``parts`` sums to ``total_s``."""

    total_s: float
    parts: dict[str, float]
    steps: dict[str, float]
    account: dict[str, Any]


def convert(home: Path, model: Path) -> Breakdown:
    """Convert ``model`` in ``home`` and break the wall time down."""
    began = time.perf_counter()
    done = subprocess.run(
        [MODELIUM, "--home", home, "convert", "--json", model], capture_output=True, text=True, check=False
    )
    total_s = time.perf_counter() - began
    account = json.loads(done.stdout)
    assert done.returncode == 0, account.get("reason")
    parts: dict[str, float] = defaultdict(float)
    steps: dict[str, float] = defaultdict(float)
    for step in account["steps"]:
        if step["cached_from"] or not step["usage"]:
            continue
        usage = step["usage"]
        inside = (usage["import_s"] or 0) + (usage["run_s"] or 0)
        whole = _seconds(step["started_at"], step["ended_at"])
        parts["imports"] += usage["import_s"] or 0
        kind = "measuring" if step["kind"] == "measure" else "work in steps"
        parts[kind] += usage["run_s"] or 0
        parts["sandbox start and end"] += max(0.0, usage["wall_s"] - inside)
        parts["collecting and hashing outputs"] += max(0.0, whole - usage["wall_s"])
        steps[step["kind"]] += usage["wall_s"]
    parts["everything else (start-up, storing, database, publishing, report)"] = total_s - sum(parts.values())
    return Breakdown(total_s, dict(parts), dict(steps), account)


def _seconds(began: str, ended: str) -> float:
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(began)).total_seconds()
