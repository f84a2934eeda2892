"""``make zoo``: a whole model zoo through the pipeline, and docs/coverage.md with what became of it.

usage: run.py [--only FAMILY] [--limit N] [--steps] [--json] [--keep-old] [--page] [--home DIR] [--jobs N]

Stops and goes on where it was: a result is kept by the model's bytes and the fingerprint of our sources.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).parent
CHECKOUT = HERE.parent.parent
sys.path[:0] = [str(HERE)]

from families import FAMILIES, Family, make  # noqa: E402
from result import Result, ResultFile, outcome_of  # noqa: E402

if TYPE_CHECKING:
    from modelium.context import Context

ROUNDS, BUDGET_S = 5, 3.0
"""Measuring in the zoo proves that it can be done; bench/run.py says how fast things are."""
STEPS_TIMEOUT_S = 300
NOTED = ("traceback", "job", "dropped", "path", "reference", "fixed")
"""What is kept of what a way told, beside the outcome."""


class Zoo:
    """One home, one file of results, and the two ways a model is tried."""

    def __init__(self, folder: Path, *, keep_old: bool, steps: bool) -> None:
        from modelium import settings
        from modelium.context import Context
        from modelium.step_cache import source_digest

        self.folder, self.steps = folder, steps
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"Another zoo is at work in {folder}; give this one a --home of its own.")
        self.version = source_digest()[:12]
        self.kept_version = None if keep_old else self.version
        self.results = ResultFile(folder / "results.jsonl")
        # The same file at the same place is the same job: sources that changed need a home of their own.
        home = folder / f"home-{self.version}"
        for old in folder.glob("home-*"):
            if old != home:
                shutil.rmtree(old, ignore_errors=True)
        chosen = settings.load(home=home, measure_rounds=ROUNDS, measure_budget_s=BUDGET_S)
        settings.adopt(chosen)
        self.context: Context = Context(chosen)
        self._workers: dict[str, subprocess.Popen[str]] = {}

    def models(self, family: Family, limit: int | None) -> Iterator[tuple[int, str, Path]]:
        """Make the family's models and yield them, spread over the whole family where there is a limit."""
        root = self.folder / "models" / family.id
        interpreter = self.context.settings.interpreter(family.made_in or family.toolchain)
        made = list(make(family, interpreter, root, self.folder / f"maker-{family.id}.log"))
        every = max(1, -(-len(made) // limit)) if limit else 1
        for number, (name, path) in enumerate(made):
            if number % every == 0:
                yield number, name, path

    def try_one(self, family: Family, number: int, name: str, path: Path) -> Result:
        """Return what became of one model: kept, or tried now."""
        sha256 = self._sha256(path)
        kept = self.results.find(family.id, name, sha256, self.kept_version)
        if kept is not None:
            return kept
        began = time.perf_counter()
        by_steps = self.steps or (family.way == "steps" and number % family.pipeline_every != 0)
        told = self._by_steps(family, name, path) if by_steps else self._by_pipeline(family, name, path)
        itself = self._itself(family, path)
        message = told.get("message", "")
        if "proven" in told:
            outcome = "wrong" if told.get("disagreement") else "proven"
            message = told.get("disagreement", "")
        else:
            outcome = outcome_of(told["code"], message, traceback="traceback" in told)
        if itself != "ok" and outcome != "unnamed":
            outcome = "original"
        result = Result(
            family.id, name, sha256, self.version, "steps" if by_steps else "pipeline", outcome,
            code=told.get("code", ""), message=message, hint=told.get("hint", ""),
            winner=",".join(told.get("proven", ())), seconds=round(time.perf_counter() - began, 2),
            notes={"itself": itself} | {key: told[key] for key in NOTED if told.get(key)},
        )  # fmt: skip
        self.results.keep(result)
        return result

    def close(self) -> None:
        """End the processes of the steps."""
        for worker in self._workers.values():
            worker.kill()
            worker.wait()

    def _by_pipeline(self, family: Family, name: str, path: Path) -> dict[str, Any]:
        """Submit and follow the model as ``modelium convert`` does; return what its account says."""
        from ingestion.drops import drops
        from modelium import follow
        from modelium.account import build
        from modelium.submit import submit
        from planner.fixed_sizes import FIXED

        # Under a name of its own: many of a zoo's files are called the same.
        ids = [submit(self.context, replace(drop, relative=name), source="cli").job_id for drop in drops(path)]
        if not ids:
            return {"code": "not_found", "message": "Nothing here was taken for a model.", "hint": ""}
        follow.to_the_end(self.context, ids, lambda update: None)
        account = build(self.context, ids[0])
        told: dict[str, Any] = {"job": ids[0][:12], "path": str(path)}
        made = next((step.outputs for step in account.steps if step.kind == "reference"), {}).get("reference")
        if made:
            told["reference"] = str(self.context.store.path(made))
        if any("Traceback (most recent" in (step.log or "") for step in account.steps if step.error is not None):
            told["traceback"] = next(s.log for s in account.steps if "Traceback (most recent" in (s.log or ""))[-2000:]
        if account.state.value in ("deployed", "unchanged"):
            told["proven"] = [account.winner or ""]
            told["dropped"] = [f"{c.id}: {c.reason}" for c in account.candidates if c.state == "failed"]
            notes = account.descriptor.notes if account.descriptor else ()
            told["fixed"] = [note for note in notes if note.startswith(FIXED)]
            if family.id == "onnx":
                told["disagreement"] = self._disagreement(path, Path(told["reference"]))
            return told
        error = account.job.error
        told |= {"code": error.code, "message": error.message, "hint": error.hint} if error else {}
        return {"code": account.state.value, "message": account.reason or "", "hint": account.hint or ""} | told

    def _by_steps(self, family: Family, name: str, path: Path) -> dict[str, Any]:
        root, kept = self.folder / "models" / family.id, self.folder / "references" / family.id / name
        asked = {"path": str(path), "root": str(root), "keep": str(kept) if self.steps else ""}
        question = json.dumps(asked | {"sidecar": _sidecar(path)})
        for _ in range(2):
            worker = self._worker(family)
            assert worker.stdin is not None and worker.stdout is not None
            print(question, file=worker.stdin, flush=True)
            ready, _, _ = select.select([worker.stdout], [], [], STEPS_TIMEOUT_S)
            answer = worker.stdout.readline() if ready else ""
            if answer:
                told: dict[str, Any] = json.loads(answer)
                return told
            worker.kill()
            worker.wait()
            if not ready:
                return {"code": "limit_exceeded", "message": f"The steps took more than {STEPS_TIMEOUT_S} s."}
        return {"code": "internal", "message": "The process died of this model."}

    def _worker(self, family: Family) -> subprocess.Popen[str]:
        from executor.toolchain import DEFAULT

        worker = self._workers.get(family.toolchain)
        if worker is None or worker.poll() is not None:
            interpreter = self.context.settings.interpreter(family.toolchain)
            here = {"onnx", family.toolchain} | (set(DEFAULT) if interpreter == Path(sys.executable) else set())
            worker = self._workers[family.toolchain] = subprocess.Popen(
                [interpreter, "-P", HERE / "steps.py", *sorted(here)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
        return worker

    def _disagreement(self, path: Path, reference: Path) -> str:
        from agreement import disagreement

        return disagreement(self.folder / "models" / "onnx", path, reference)

    def _itself(self, family: Family, path: Path) -> str:
        root = self.folder / "models" / family.id
        file = root / "expected" / path.relative_to(root).parent / f"{path.name}.itself"
        return file.read_text() if file.is_file() else "ok"

    def _sha256(self, path: Path) -> str:
        import hashlib

        digest = hashlib.sha256()
        for file in sorted(path.rglob("*")) if path.is_dir() else [path, *path.parent.glob(f"{path.name}.*")]:
            if file.is_file():
                digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()


def _sidecar(model: Path) -> dict[str, Any] | None:
    """Return the model's sidecar as plain values: not every toolchain has a YAML reader."""
    import yaml

    file = model / "modelium.yaml" if model.is_dir() else model.with_name(f"{model.name}.modelium.yaml")
    found: dict[str, Any] | None = yaml.safe_load(file.read_text()) if file.is_file() else None
    return found


def main() -> int:
    """Run what was asked for; return 1 when something ended without a cause or with wrong answers."""
    parser = argparse.ArgumentParser(prog="make zoo", description="A whole model zoo through the pipeline.")
    parser.add_argument("--only", choices=list(FAMILIES), action="append", help="this family; may be given again")
    parser.add_argument("--limit", type=int, help="at most so many models a family, spread over it")
    parser.add_argument("--jobs", type=int, default=1, help="models at once")
    parser.add_argument("--steps", action="store_true", help="every family by the step functions, without sandbox")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--keep-old", action="store_true", help="keep results of other versions of our sources")
    parser.add_argument("--page", action="store_true", help="try nothing, write the page from docs/coverage.json")
    parser.add_argument("--home", type=Path, default=CHECKOUT / ".cache/zoo", help="where models and results are kept")
    asked = parser.parse_args()
    import page

    zoo = Zoo(asked.home.absolute(), keep_old=asked.keep_old, steps=asked.steps)
    chosen = [FAMILIES[name] for name in asked.only or FAMILIES]
    missing: dict[str, str] = {}
    whole: set[str] = set()
    results: list[Result] = []
    for family in () if asked.page else chosen:
        absent = [name for name in (family.toolchain, family.made_in) if name and name not in zoo.context.toolchains]
        if absent:
            missing[family.id] = f"the toolchain {absent[0]} is not installed"
            continue
        try:
            results += _run(zoo, family, asked.limit, asked.jobs)
            whole |= set() if asked.limit else {family.id}
        except (RuntimeError, OSError) as error:
            missing[family.id] = str(error)
    zoo.close()
    page.write(CHECKOUT / "docs", results, missing, whole)
    if asked.json:
        print(json.dumps({"missing": missing, "results": [asdict(r) for r in results]}))
    bad = [r for r in results if r.outcome in ("unnamed", "wrong")]
    for result in bad:
        print(f"{result.family}/{result.name}: {result.outcome}: {result.message}", file=sys.stderr)
    return 1 if bad else 0


def _run(zoo: Zoo, family: Family, limit: int | None, jobs: int) -> list[Result]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), "{task.fields[name]}")
    with Progress(
        *(TextColumn(c) if isinstance(c, str) else c for c in columns), console=Console(stderr=True)
    ) as progress:
        task = progress.add_task(f"{family.title}: making the models", total=None, name="")
        models = list(zoo.models(family, limit))
        progress.update(task, description=family.title, total=len(models))

        def one(model: tuple[int, str, Path]) -> Result:
            progress.update(task, name=model[1])
            result = zoo.try_one(family, *model)
            progress.advance(task)
            return result

        with ThreadPoolExecutor(1 if zoo.steps or family.way == "steps" else jobs) as pool:
            return list(pool.map(one, models))


if __name__ == "__main__":
    sys.exit(main())
