"""What a sandbox costs a step: the same steps started cold and warm, and what is held for a warm start.

``python bench/sandbox_cost.py [--backend docker [--host unix:///path/docker.sock] [--image IMAGE]] [--runs N]
[--json FILE]``. Wall times are of ``executor.run``, workspace and all. With bubblewrap the first warm start of a
toolchain also starts and probes its parent, and is shown apart. With Docker a warm step is one that finds a container
waiting; how long it takes until the next one waits is shown apart.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from executor import StepSpec, find_sandbox, run
from executor.docker_sandbox import DockerSandbox
from executor.find import DockerOptions
from executor.sandbox import Sandbox
from executor.toolchain import Toolchain
from executor.warm_bounds import WarmBounds
from schemas.descriptor import Format, KnownBy, ModelDescriptor, TensorSpec
from schemas.step_io import StepRequest

THREADS = 2
MOST_S = 120

MODELS = {
    "onnx": """
import onnx, numpy as np
from onnx import helper, numpy_helper
x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 8]) for n in "xy")
w = numpy_helper.from_array(np.random.default_rng(0).random((8, 8), dtype=np.float32), "w")
nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
graph = helper.make_graph(nodes, "g", [x], [y], [w])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
""",
    "torch": """
import torch
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2)).eval()
torch.jit.trace(net, torch.rand(2, 8)).save(path)
""",
    "sklearn": """
import joblib, numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
x = np.random.default_rng(0).random((100, 8), dtype=np.float32)
joblib.dump(make_pipeline(StandardScaler(), LogisticRegression()).fit(x, (x[:, 0] > 0.5).astype(int)), path)
""",
}


@dataclass(frozen=True)
class Case:
    """One step to time. ``model`` names what it reads."""

    kind: str
    toolchain: str
    model: str
    format: Format | None = None
    outputs: tuple[TensorSpec, ...] = field(default=())


def tensor(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    """Return what a descriptor says of one tensor."""
    return TensorSpec.model_validate({"name": name, "dtype": dtype, "shape": shape, "known_by": KnownBy.PROBE})


CASES = (
    Case("onnx_optimize", "onnx", "onnx"),
    Case("analyze", "onnx", "onnx"),  # waits for no parent, so one has to be there
    Case("torchscript_onnx", "torch", "torch", Format.TORCHSCRIPT, (tensor("y", "batch", 2),)),
    Case(
        "sklearn_onnx",
        "sklearn",
        "sklearn",
        Format.SKLEARN,
        (tensor("label", "batch", dtype="int64"), tensor("probabilities", "batch", 2)),
    ),
)


def seconds(case: Case, model: Path, sandbox: Sandbox, folder: Path, warm: bool | None = None) -> float:
    """Run the step once and return its wall time; ``warm`` is how it has to have started."""
    descriptor, toolchain = None, Toolchain(case.toolchain)
    if case.format is not None:
        descriptor = ModelDescriptor(
            artifact_sha256="0" * 64,
            format=case.format,
            size_bytes=model.stat().st_size,
            inputs=(tensor("x", "batch", 8),),
            outputs=case.outputs,
        )
    if (carried := sandbox.carried(case.toolchain)) is not None:
        toolchain = Toolchain(case.toolchain, *carried)
    request = StepRequest(kind=case.kind, threads=THREADS, descriptor=descriptor)
    began = time.perf_counter()
    with run(StepSpec(request, toolchain, {"model": model}), workspaces=folder, sandbox=sandbox) as output:
        took = time.perf_counter() - began
        assert output.result.ok, (output.result.error, output.log)
        assert warm is None or output.usage.warm is warm, "it did not start as it was to"
    return took


def parent_memory() -> int:
    """Return the bytes that the newest warm parent has for itself and in shared files (PSS)."""
    waiting = [
        process
        for process in psutil.Process(os.getpid()).children(recursive=True)
        if "executor.fork_server" in process.cmdline() and process.name() != "bwrap"
    ]
    return int(max(waiting, key=lambda process: process.create_time()).memory_full_info().pss)


def find(options: argparse.Namespace, warm: WarmBounds | None) -> Sandbox:
    """Return the sandbox that was asked for."""
    return find_sandbox(backend=options.backend, docker=DockerOptions(options.host, options.image), warm=warm)


def waited_s(sandbox: DockerSandbox, toolchain: str) -> float:
    """Wait until a container waits for steps of ``toolchain``; return how long that took."""
    began = time.perf_counter()
    while toolchain not in sandbox.idle():
        assert time.perf_counter() - began < MOST_S, "no container waits"
        time.sleep(0.01)
    return time.perf_counter() - began


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time every case, cold and warm in turn."""
    cold, warm = find(options, None), find(options, WarmBounds(parents=8, memory_bytes=8 << 30, idle_s=600))
    found, memory = [], {}
    with tempfile.TemporaryDirectory(prefix="modelium-bench-") as name:
        folder = Path(name)
        for model, code in MODELS.items():
            subprocess.run(
                [sys.executable, "-P", "-W", "ignore", "-c", f"path = {name!r} + '/{model}'{code}"], check=True
            )
        for case in CASES:
            model = folder / case.model
            seconds(case, model, cold, folder / "w")  # reads the files from disk once
            first = seconds(case, model, warm, folder / "w")
            times, waits = [], []
            for _ in range(options.runs):
                if isinstance(warm, DockerSandbox):
                    waits.append(waited_s(warm, case.toolchain))
                took = seconds(case, model, warm, folder / "w", warm=True)
                if isinstance(warm, DockerSandbox):
                    waits.append(waited_s(warm, case.toolchain))
                times.append((seconds(case, model, cold, folder / "w", warm=False), took))
            row = {
                "step": case.kind,
                "toolchain": case.toolchain,
                "cold_s": round(statistics.median(pair[0] for pair in times), 3),
                "warm_s": round(statistics.median(pair[1] for pair in times), 3),
            }
            if isinstance(warm, DockerSandbox):
                held = warm.idle()[case.toolchain]
                found.append(row | {"until_next_waits_s": round(max(waits), 3), "held_mb": round(held / 1e6)})
            else:
                memory.setdefault(case.toolchain, parent_memory())
                pss = round(memory[case.toolchain] / 1e6)
                found.append(row | {"first_warm_s": round(first, 3), "parent_pss_mb": pss})
        if isinstance(warm, DockerSandbox):
            warm.close()
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", type=Path, help="Write the numbers there, too")
    parser.add_argument("--backend", choices=("bubblewrap", "docker"), default="bubblewrap")
    parser.add_argument("--host", default="", help="The Docker engine, unix:///path/docker.sock")
    parser.add_argument("--image", default="", help="The image that steps run in, by default a bare one")
    arguments = parser.parse_args()
    rows = measure(arguments)
    for row in rows:
        print(*(f"{key}={value}" for key, value in row.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
