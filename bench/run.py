"""``make bench``: the pipeline against a bare script in the same run, and what Modelium costs at rest.

usage: run.py [--rounds N]

Writes ``docs/benchmarks.md``. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import TypeVar

CHECKOUT = Path(__file__).parent.parent
sys.path[:0] = [str(CHECKOUT / "bench"), str(CHECKOUT)]

import at_rest  # noqa: E402
import pipeline  # noqa: E402

from schemas.catalog import CATALOG  # noqa: E402

FIRST = "digits-cnn.pt"
OTHERS = "## Many small models"
"""From here on the page is of other scripts, and is kept."""
REST_S = 5
"""Between the model that warms and the one that is timed, as between drops of a person."""
Run = TypeVar("Run")
MODELS = {"ResNet-50": "resnet50.pt2", "MiniLM": "minilm"}


def main() -> None:
    """Measure everything and write the page."""
    parser = argparse.ArgumentParser(description="The pipeline against a bare script, and what it costs at rest.")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is run, in turn")
    rounds = parser.parse_args().rounds
    lines = [
        "# Benchmarks",
        "",
        "`make bench` made this page. Wall seconds on the machine named below, of the middle one of "
        f"{rounds} runs, which took turns.",
        "The bare script (`bench/bare.py`) loads, exports, optimises, quantises and checks in one process, and neither",
        "isolates nor scans nor probes nor measures nor publishes. Both are timed as whole commands, from the start",
        "of the interpreter to its end. *Cold* is `modelium convert` in a new home; *warm* goes through a running",
        f"`modelium up` that has converted another model and then rested for {REST_S} s. *Overhead* is the time in",
        "which no step did work of its own: starting sandboxes, imports, hashing, the database, waiting, publishing.",
        "",
    ]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        print("making the models")
        subprocess.run([sys.executable, "-P", CHECKOUT / "examples/make.py", work / "models"], check=True)
        machine = None
        for title, name in MODELS.items():
            bare, cold, warm, again = [], [], [], []
            for number in range(rounds):
                print(f"{title}: round {number + 1} of {rounds}", flush=True)
                model, scratch = work / "models" / name, work / f"{title}-{number}"
                bare.append(_bare(model, scratch / "bare"))
                cold.append(pipeline.convert(scratch / "cold", model))
                with pipeline.running(scratch / "warm", work / "models" / FIRST):
                    time.sleep(REST_S)
                    warm.append(pipeline.convert(scratch / "warm", model))
                    twin = shutil.copytree if model.is_dir() else shutil.copyfile
                    again.append(pipeline.convert(scratch / "warm", Path(twin(model, scratch / f"twin-{name}"))))
                shutil.rmtree(scratch)
            machine = cold[0].account["machine"]
            lines += _section(
                title,
                _middle(bare, lambda phases: sum(phases.values())),
                *(_middle(runs, lambda run: run.total_s - run.measuring_s) for runs in (cold, warm, again)),
            )
    print("at rest")
    sizes = at_rest.idle_pss()
    median_s, slowest_s = at_rest.help_s()
    lines += [
        "## At rest",
        "",
        "| | |",
        "|---|---|",
        f"| `modelium --help`, median of 15 | {median_s * 1000:.0f} ms (slowest {slowest_s * 1000:.0f} ms) |",
        *(f"| PSS of the idle {name} | {size:.0f} MB |" for name, size in sizes.items()),
        f"| PSS of all resident processes | **{sum(sizes.values()):.0f} MB** |",
        "",
    ]
    if machine:
        versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
        lines += [f"Machine: {machine['cpu']}, {machine['threads']} threads; {versions}. {date.today()}.", ""]
    page = CHECKOUT / "docs/benchmarks.md"
    _, heading, rest = page.read_text().partition(OTHERS)
    page.write_text("\n".join([*lines, f"{heading}{rest}"]))
    print("\n".join(lines))


def _middle(runs: Sequence[Run], seconds: Callable[[Run], float]) -> Run:
    return sorted(runs, key=seconds)[len(runs) // 2]


def _bare(model: Path, out: Path) -> dict[str, float]:
    out.mkdir(parents=True)
    command = [sys.executable, "-P", CHECKOUT / "bench/bare.py", model, out]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    whole_s = time.perf_counter() - began
    phases: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return {**phases, "start and end of its process": whole_s - sum(phases.values())}


def _section(
    title: str, bare: dict[str, float], cold: pipeline.Breakdown, warm: pipeline.Breakdown, again: pipeline.Breakdown
) -> list[str]:
    candidates = [c for c in cold.account["candidates"] if c["measurements"]]
    rows = [
        f"| {c['id']} | {c['precision']} | {_ms(c, 1)} | {_ms(c, 8)} | {c['size_bytes'] / 1e6:.1f} | {c['state']} |"
        for c in candidates
    ]
    bare_s, conversion_s = sum(bare.values()), _conversion_s(warm)
    return [
        f"## {title}",
        "",
        "| | cold | warm | same bytes again |",
        "|---|---|---|---|",
        f"| pipeline, whole | **{cold.total_s:.1f}** | **{warm.total_s:.1f}** | {again.total_s:.2f} |",
        f"| … measuring | {cold.measuring_s:.1f} | {warm.measuring_s:.1f} | {again.measuring_s:.2f} |",
        f"| … overhead | **{cold.overhead_s:.1f}** | **{warm.overhead_s:.1f}** | {again.overhead_s:.2f} |",
        f"| without measuring, more than the bare script | {cold.total_s - cold.measuring_s - bare_s:.1f} | "
        f"{warm.total_s - warm.measuring_s - bare_s:.1f} | |",
        f"| without measuring, times the bare script | {(cold.total_s - cold.measuring_s) / bare_s:.2f} | "
        f"{(warm.total_s - warm.measuring_s) / bare_s:.2f} | |",
        "",
        f"Bare script: **{bare_s:.1f} s** ({', '.join(f'{k} {v:.1f}' for k, v in bare.items())}). The same candidates "
        f"by our converters, warm, sandboxes and checks at other sizes included: {conversion_s:.1f} s, "
        f"{conversion_s / bare_s:.2f} times that.",
        "",
        f"Steps, cold: {', '.join(f'{kind} {seconds:.1f} s' for kind, seconds in cold.steps.items())}. "
        f"Warm: {', '.join(f'{kind} {seconds:.1f} s' for kind, seconds in warm.steps.items())}.",
        "",
        "| contender | precision | batch 1, ms | batch 8, ms | MB | |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _conversion_s(run: pipeline.Breakdown) -> float:
    """Return what the steps took that do what the bare script does: convert, and compare with the original."""
    return sum(s for kind, s in run.steps.items() if CATALOG[kind].role == "conversion" or kind == "parity")


def _ms(candidate: dict[str, object], batch: int) -> str:
    measurements = candidate["measurements"]
    assert isinstance(measurements, list)
    return next((f"{m['median_ms']:.2f}" for m in measurements if m["batch"] == batch), "")


if __name__ == "__main__":
    main()
