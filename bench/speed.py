"""``make bench-speed``: our best candidate against the original, Optimum and Olive, in turn, in one run.

usage: speed.py [--only NAME] [--json] [--no-peers] [--budget SECONDS]

Ours come out of ``modelium convert``; every contender, peers' files too, is then timed by the pipeline's own
``measure`` step: one worker process per runtime, round by round, with the same threads. What was measured goes into
``docs/speed.json``, a model at a time, and ``docs/speed.md`` is made of that. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parent.parent
sys.path[:0] = [str(CHECKOUT / "bench"), str(CHECKOUT)]

import peers  # noqa: E402
import speed_models  # noqa: E402
from speed_page import BATCHES, Contender, kind_of, page, table_of  # noqa: E402

from schemas.descriptor import Format, ModelDescriptor  # noqa: E402
from schemas.precision import Precision  # noqa: E402
from schemas.target import TargetProfile  # noqa: E402

PAGE, KEPT = CHECKOUT / "docs/speed.md", CHECKOUT / "docs/speed.json"
MODELIUM = Path(sys.executable).parent / "modelium"
PEER_TIMEOUT_S = 1200


def main() -> None:
    """Measure the models asked for and write what was found."""
    parser = argparse.ArgumentParser(description="Our best candidates against eager, Optimum and Olive.")
    parser.add_argument("--only", action="append", choices=list(speed_models.MODELS))
    parser.add_argument("--json", action="store_true", help="print what was measured as one JSON document")
    parser.add_argument("--no-peers", action="store_true", help="ours alone; nothing is kept")
    parser.add_argument("--budget", type=float, default=240, help="seconds of timing for a model, at most")
    asked = parser.parse_args()
    measured: dict[str, Any] = {}
    for name in asked.only or speed_models.MODELS:
        with tempfile.TemporaryDirectory(prefix="speed-") as scratch:
            table, machine = _row(name, Path(scratch), with_peers=not asked.no_peers, budget_s=asked.budget)
        measured[name] = {
            "date": str(date.today()),
            "machine": machine,
            "contenders": [asdict(contender) for contender in table],
        }
        print("\n".join(table_of(name, table)), file=sys.stderr, flush=True)
        if not asked.no_peers:
            kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
            kept.setdefault(kind_of(machine), {"note": "", "models": {}})["models"][name] = measured[name]
            KEPT.write_text(json.dumps(kept, indent=1) + "\n")
            PAGE.write_text("\n".join(page(kept)))
    if asked.json:
        print(json.dumps(measured))


def _row(name: str, work: Path, *, with_peers: bool, budget_s: float) -> tuple[list[Contender], dict[str, Any]]:
    print(f"{name}: making the model", file=sys.stderr)
    made = speed_models.MODELS[name][1](work / "made")
    print(f"{name}: converting", file=sys.stderr)
    home = work / "home"
    command = [MODELIUM, "--home", home, "convert", "--json", made.model]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    account = json.loads(done.stdout)
    if not account.get("reference"):
        raise SystemExit(f"{name}: modelium convert ended {account['state']}: {account['reason']}")
    contenders = [
        Contender("original", "original", size_bytes=account["artifact"]["size_bytes"], cosine=1, passed=True)
    ]
    files: dict[str, Path] = {}
    for candidate in account["candidates"]:
        if candidate["id"] == "original":
            continue
        sha = candidate.get("model_sha256")
        contender = Contender(candidate["id"], "ours", candidate["format"], candidate.get("size_bytes") or 0)
        outputs = (candidate.get("parity") or {}).get("outputs", ())
        cosines = [output["cosine"] for output in outputs if output["cosine"] is not None]
        contender.cosine, contender.passed = min(cosines, default=None), candidate["state"] == "passed"
        agreements = [output["agreement"] for output in outputs if output["agreement"] is not None]
        contender.agreement = min(agreements, default=None)
        contender.accuracy = (candidate.get("parity") or {}).get("accuracy")
        contender.error = "" if contender.passed else candidate.get("reason") or candidate["state"]
        contenders.append(contender)
        if contender.passed and sha:
            files[contender.name] = home / "artifacts/trees" / sha
    reference = _reference(account, home)
    contenders[0].accuracy = account["reference"]["accuracy"]
    contenders[0].agreement = 1 if contenders[0].accuracy is not None else None
    # What ours have to reach in int8 is what a peer's file has to reach to count.
    least_cosine = TargetProfile.model_validate(account["job"]["target"]).tolerance(Precision.INT8).min_cosine
    if with_peers and made.peer is not None:
        for peer in peers.REQUIREMENTS:
            print(f"{name}: {peer}", file=sys.stderr)
            for contender, file in _peer(peer, made, work / peer, reference, least_cosine):
                contenders.append(contender)
                if file is not None:
                    files[contender.name] = file
    print(f"{name}: timing {len(files) + 1} contenders", file=sys.stderr)
    _time(account, made.model, reference, contenders, files, work / "race", budget_s)
    return contenders, account["machine"] or {}


def _reference(account: dict[str, Any], home: Path) -> Path:
    for step in account["steps"]:
        if step["kind"] == "reference" and step["outputs"]:
            return home / "artifacts/trees" / str(step["outputs"]["reference"])
    raise SystemExit("The account names no reference.")


def _peer(
    peer: str, made: speed_models.Made, out: Path, reference: Path, least_cosine: float
) -> list[tuple[Contender, Path | None]]:
    """Return what the peer made, each in a folder of its own, and whether it gives what the original gives."""
    out.mkdir()
    samples = made.model / "samples.npz"
    command = [peers.interpreter(peer), "-P", CHECKOUT / "bench/speed_peer.py", peer, made.peer, out, samples]
    try:
        done = subprocess.run(
            [*command, made.peer_file], capture_output=True, text=True, timeout=PEER_TIMEOUT_S, check=False, cwd=out
        )
        told: dict[str, dict[str, str]] = json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        told = {"all": {"error": f"no answer in {PEER_TIMEOUT_S} s"}}
    except (IndexError, ValueError):
        told = {"all": {"error": "the process died"}}
    rows: list[tuple[Contender, Path | None]] = []
    for variant, answer in told.items():
        contender = Contender(f"{peer}-{variant}", peer, error=answer.get("error", ""))
        rows.append((contender, None))
        if contender.error:
            continue
        # One folder holds one model: peers leave several in theirs.
        folder = out / "alone" / variant
        folder.mkdir(parents=True)
        file = Path(answer["file"])
        shutil.copyfile(file, folder / "model.onnx")
        for data in file.parent.glob("*data*"):
            shutil.copyfile(data, folder / data.name)
        contender.size_bytes = sum(part.stat().st_size for part in folder.iterdir())
        contender.error = _judge(contender, folder / "model.onnx", reference)
        contender.passed = contender.cosine is not None and contender.cosine >= least_cosine
        rows[-1] = (contender, None if contender.error else folder)
    return rows


def _judge(contender: Contender, file: Path, reference: Path) -> str:
    """Compare real rows: outputs by name, or by shape where a peer calls its one otherwise. Return what went wrong."""
    import numpy as np

    from converters.comparison import least_cosine
    from converters.onnx_runner import OnnxRunner
    from converters.reference_cases import REAL, Reference
    from schemas.errors import ModeliumError

    worst: float | None = None
    try:
        runner, known = OnnxRunner(file, threads=1), Reference.open(reference)
        labels = known.labels()
        for case, feeds, expected in known.cases():
            if case.source not in REAL:
                continue
            given = runner.run(feeds)
            for name, wanted in expected.items():
                others = [array for array in given.values() if array.shape == wanted.shape]
                got = given.get(name, others[0] if others else None)
                if got is None or got.shape != wanted.shape:
                    continue
                cosine, _ = least_cosine(wanted.astype(np.float64), got.astype(np.float64))
                worst = cosine if worst is None or (cosine is not None and cosine < worst) else worst
                if labels is not None and wanted.ndim == 2:
                    best = got.argmax(1)
                    contender.agreement = float((best == wanted.argmax(1)).mean())
                    contender.accuracy = float((best == labels).mean())
    except ModeliumError as error:
        return str(error.args[0])
    contender.cosine = worst
    return ""


def _time(
    account: dict[str, Any], model: Path, reference: Path, contenders: list[Contender], files: dict[str, Path],
    workspace: Path, budget_s: float,
) -> None:  # fmt: skip
    from converters.measure import CANDIDATE_PREFIX, measure
    from executor.toolchain import beside
    from schemas.catalog import TOOLCHAIN_OF_FORMAT
    from schemas.step_io import StepContext, StepRequest
    from schemas.step_options import MeasureOptions

    (workspace / "in").mkdir(parents=True)
    (workspace / "out").mkdir()
    inputs = {"model": model, "reference": reference, **{f"{CANDIDATE_PREFIX}{k}": path for k, path in files.items()}}
    for name, path in inputs.items():
        (workspace / "in" / name).symlink_to(path.resolve())
    formats = {c.name: Format(c.format) for c in contenders if c.name in files}
    toolchains = {TOOLCHAIN_OF_FORMAT[format_] for format_ in formats.values()}
    homes = {name: beside(Path(sys.prefix), name) for name in toolchains}
    options = MeasureOptions(batch_sizes=BATCHES, deciding=BATCHES, formats=formats, rounds=40, budget_s=budget_s)
    request = StepRequest(
        kind="measure",
        options=options.model_dump(mode="json"),
        inputs={name: f"in/{name}" for name in inputs},
        interpreters={name: str(path) for name, path in homes.items() if path is not None},
        threads=int((account["machine"] or {}).get("threads", 1)),
        descriptor=ModelDescriptor.model_validate(account["descriptor"]),
    )
    report: Any = measure(StepContext(request, workspace, options)).report
    known = {contender.name: contender for contender in contenders}
    for found in report.measurements:
        known[found.contender].latency_ms[found.batch] = found.median_ms
        known[found.contender].throughput_per_s[found.batch] = found.throughput_per_s
    for name, reason in report.failures.items():
        known[name].error = reason


if __name__ == "__main__":
    main()
