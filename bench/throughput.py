"""Drop many small models into a real ``modelium up``: how many an hour it takes all the way, and where time goes.

    python bench/throughput.py --models 12 [--json] [--repeat]

Half are scikit-learn pickles and half TorchScript networks, each different, so that no conversion is shared. Measuring
is included, with the settings' own rounds. With --repeat the same bytes are dropped once more under other names: what
is left then is storing, looking up and publishing. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modelium import account, jobs, settings
from modelium.context import Context
from schemas.account import JobAccount
from schemas.job import ENDS

MODELIUM = Path(sys.executable).parent / "modelium"
GIVE_UP_S = 120.0
"""Seconds a model may take on the average before the bench ends without it."""


def make(folder: Path, count: int) -> list[Path]:
    """Write ``count`` small models that differ in weights and size."""
    import pickle

    import numpy as np
    import torch
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folder.mkdir()
    made = []
    for n in range(count):
        rng = np.random.default_rng(n)
        if n % 2:
            torch.manual_seed(n)
            width = 16 + n
            net = torch.nn.Sequential(torch.nn.Linear(width, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)).eval()
            path = folder / f"network-{n}.pt"
            torch.jit.save(torch.jit.trace(net, torch.randn(2, width)), path)
        else:
            x, y = rng.standard_normal((200, 4 + n)), rng.integers(0, 3, 200)
            last = LogisticRegression(max_iter=200) if n % 4 else RandomForestClassifier(10, random_state=n)
            path = folder / f"pipeline-{n}.pkl"
            path.write_bytes(pickle.dumps(make_pipeline(StandardScaler(), last).fit(x, y)))
        made.append(path)
    return made


def drop(home: Path, models: Iterable[Path], prefix: str) -> tuple[float, list[str]]:
    """Drop ``models`` into a running home; return the seconds until the last has ended, and the jobs' ids."""
    context = Context(settings.load(home=home))
    models = list(models)
    before = {job.id for job in jobs.everything(context.database)}
    began = time.monotonic()
    for model in models:
        (home / "incoming" / f"{prefix}{model.name}").write_bytes(model.read_bytes())
    while True:
        ours = [job for job in jobs.everything(context.database) if job.id not in before]
        if len(ours) == len(models) and all(job.state in ENDS for job in ours):
            return time.monotonic() - began, [job.id for job in ours]
        if time.monotonic() - began > GIVE_UP_S * len(models):
            sys.exit(f"{sum(job.state in ENDS for job in ours)} of {len(models)} had ended after {GIVE_UP_S:g} s each.")
        time.sleep(0.05)


def profile(accounts: list[JobAccount], total_s: float) -> dict[str, Any]:
    """Return models an hour, and seconds by stage and by step."""
    stages: dict[str, list[float]] = defaultdict(list)
    steps: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    reused: Counter[str] = Counter()
    for each in accounts:
        for change, following in zip(each.history, each.history[1:], strict=False):
            stages[change.after.value].append((following.at - change.at).total_seconds())
        for run in each.steps:
            if run.cached_from:
                reused[run.kind] += 1
            elif run.usage and run.ended_at:
                usage, whole = run.usage, (run.ended_at - run.started_at).total_seconds()
                steps[f"{run.kind} ({run.toolchain})"].append(
                    (whole, usage.import_s or 0, usage.run_s or 0, usage.cpu_s or 0)
                )
    return {
        "models": len(accounts),
        "ends": Counter(each.state.value for each in accounts),
        "seconds": round(total_s, 2),
        "models_per_hour": round(3600 * len(accounts) / total_s, 1),
        "stages": {
            name: {"median_s": round(statistics.median(times), 3), "total_s": round(sum(times), 2)}
            for name, times in stages.items()
        },
        "steps": {
            name: dict(
                zip(
                    ("runs", "wall_s", "import_s", "run_s", "cpu_s"),
                    (len(of), *(round(sum(column), 2) for column in zip(*of, strict=True))),
                    strict=True,
                )
            )
            for name, of in sorted(steps.items(), key=lambda item: -sum(row[0] for row in item[1]))
        },
        "reused": reused,
    }


def show(title: str, found: dict[str, Any]) -> None:
    """Print one round for people."""
    ends = ", ".join(f"{count} {state}" for state, count in found["ends"].items())
    rate = f"{found['models']} models in {found['seconds']:.1f} s, {found['models_per_hour']:.0f} an hour"
    print(f"\n{title}: {rate} ({ends})")
    print(f"{'in state':<28} {'median s':>9} {'total s':>9}   (waiting for a worker and for the machine included)")
    for name, row in found["stages"].items():
        print(f"{name:<28} {row['median_s']:>9.2f} {row['total_s']:>9.1f}")
    if found["steps"]:
        print(f"{'step':<28} {'runs':>5} {'wall s':>8} {'import':>8} {'work':>8} {'CPU s':>8}")
    for name, row in found["steps"].items():
        print(
            f"{name:<28} {row['runs']:>5} {row['wall_s']:>8.1f} {row['import_s']:>8.1f} {row['run_s']:>8.1f} "
            f"{row['cpu_s']:>8.1f}"
        )
    if found["reused"]:
        print("reused: " + ", ".join(f"{count} {kind}" for kind, count in found["reused"].items()))


def main() -> int:
    """Make the models, drop them, print; returns 1 when one was not published."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=12)
    parser.add_argument("--repeat", action="store_true", help="Drop the same bytes once more under other names")
    parser.add_argument("--json", action="store_true", help="One JSON document on stdout")
    given = parser.parse_args()
    rounds = {}
    with tempfile.TemporaryDirectory(prefix="modelium-throughput-") as folder:
        models, home = make(Path(folder) / "models", given.models), Path(folder) / "home"
        context = Context(settings.load(home=home))
        up = subprocess.Popen(
            [MODELIUM, "--home", home, "up", "--json"], stdout=subprocess.DEVNULL, start_new_session=True
        )
        try:
            warm = home / "incoming" / "warm-up.txt"
            context.home.prepare()
            deadline = time.monotonic() + 60
            warm.write_text("this is no model\n")  # ends at once: the pipeline has started when it has
            while not any(job.state in ENDS for job in jobs.everything(context.database)):
                if time.monotonic() > deadline or up.poll() is not None:
                    sys.exit("`modelium up` did not start.")
                time.sleep(0.05)
            for title in ("first", *(["again"] if given.repeat else [])):
                total_s, ids = drop(home, models, "" if title == "first" else "again-")
                rounds[title] = profile([account.build(context, job_id) for job_id in ids], total_s)
        finally:
            up.terminate()
            up.wait(timeout=60)
    if given.json:
        print(json.dumps({"cores": len(os.sched_getaffinity(0)), **rounds}, indent=2))
    else:
        for title, found in rounds.items():
            show(title, found)
    published = [sum(found["ends"].get(end, 0) for end in ("deployed", "unchanged")) for found in rounds.values()]
    return 0 if all(count == given.models for count in published) else 1


if __name__ == "__main__":
    sys.exit(main())
