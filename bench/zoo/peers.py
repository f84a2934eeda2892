"""The same models through Optimum and Olive, each in an environment of its own; docs/coverage-peers.json.

usage: peers.py [--only transformers|onnx] [--limit N] [--peer optimum|olive] [--home DIR]

Run after ``make zoo``: peers are judged by the reference that the pipeline computed from the original before any
export. What a peer says of its own success does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CHECKOUT = HERE.parent.parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # bench/peers.py, not this file, is what is imported

from result import Result, ResultFile, cause_of  # noqa: E402

TAKES = {"optimum": ("transformers",), "olive": ("transformers", "onnx")}
"""Peer to the families that it says it converts."""
TIMEOUT_S = 180.0
PAGE = CHECKOUT / "docs/coverage-peers.json"


class Asked:
    """A process that answers one JSON line with one, and is started anew when it dies or takes too long."""

    def __init__(self, command: list[str], timeout_s: float) -> None:
        self.command, self.timeout_s = command, timeout_s
        self._process: subprocess.Popen[str] | None = None

    def ask(self, question: dict[str, str]) -> dict[str, Any]:
        """Return the answer; ``{"error": ...}`` when there is none."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}, start_new_session=True,
            )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        ready, _, _ = select.select([self._process.stdout], [], [], self.timeout_s)
        line = self._process.stdout.readline() if ready else ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.close()
        return {"error": "the process died" if ready else f"no answer in {self.timeout_s:.0f} s"}

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def main() -> None:
    """Try every model that has a reference with every peer that takes its family."""
    parser = argparse.ArgumentParser(description="The zoo through Optimum and Olive.")
    parser.add_argument("--only", action="append", choices=sorted({f for takes in TAKES.values() for f in takes}))
    parser.add_argument("--peer", action="append", choices=list(TAKES))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--home", type=Path, default=CHECKOUT / ".cache/zoo")
    asked = parser.parse_args()
    from peers import interpreter

    results = ResultFile(asked.home / "results.jsonl")
    kept: dict[str, dict[str, Any]] = json.loads(PAGE.read_text()) if PAGE.is_file() else {}
    judging = Asked([sys.executable, "-P", str(HERE / "judge.py")], TIMEOUT_S)
    for peer in asked.peer or TAKES:
        python = interpreter(peer)
        worker = Asked([str(python), "-P", str(HERE / "peer_worker.py"), peer], TIMEOUT_S)
        for family in TAKES[peer]:
            if asked.only and family not in asked.only:
                continue
            rows = [r for r in results.of([family]) if r.outcome != "original" and _reference(r)][: asked.limit]
            for row in rows:
                reference = _reference(row)
                if reference is None or peer in kept.get(f"{family}/{row.name}", {}):
                    continue
                model = Path(row.notes["path"])
                why = _try(worker, judging, model, reference)
                answer: dict[str, Any] = {"ok": not why, "cause": cause_of(why), "message": why}
                if why and (model / "config.json").is_file():
                    # What the peer's own transformers does not have is left out of the comparison.
                    asked_of = worker.ask({"path": str(model), "reference": str(reference)})
                    answer |= {"skip": asked_of["stranger"]} if asked_of.get("stranger") else {}
                kept.setdefault(f"{family}/{row.name}", {})[peer] = answer
                PAGE.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
                print(f"{peer} {family}/{row.name}: {why or 'agrees'}"[:200], flush=True)
        worker.close()
    judging.close()


def _try(worker: Asked, judging: Asked, model: Path, reference: Path) -> str:
    """Return '' when the peer converts the model and its file agrees with the reference, else why not."""
    with tempfile.TemporaryDirectory(prefix="zoo-peer-") as folder:
        out = Path(folder) / "out"
        copy = Path(folder) / model.name
        if model.is_dir():
            shutil.copytree(model, copy)
        else:
            shutil.copy(model, copy)
        told = worker.ask({"path": str(copy), "out": str(out)})
        if told.get("error"):
            return f"refuses: {told['error']}"
        files = [file for file in sorted(out.rglob("*.onnx")) if file.stat().st_size]
        if not files:
            return "says it is done and writes no ONNX file"
        # A model in two files, encoder and decoder, is one conversion and runs as one.
        first = [file for file in files if file.name != "decoder_model.onnx" or len(files) == 1]
        whys = [
            str(judging.ask({"reference": str(reference), "model": str(file)}).get("why", "the judge died of it"))
            for file in first
        ]
        return "" if "" in whys else whys[0]


def _reference(row: Result) -> Path | None:
    """Return the folder of the original's outputs that the pipeline kept; None where it got none."""
    path = Path(str(row.notes.get("reference", "")))
    return path if row.notes.get("reference") and path.is_dir() else None


if __name__ == "__main__":
    main()
