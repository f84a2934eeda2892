"""Convert one model of several gigabytes and print each step's peak of memory, as a multiple of the model's size.

    python bench/big_model.py --gigabytes 3 --kind state_dict

The peak is what the sandbox measured: anonymous and shared memory of all processes of a step. Files that a step maps
are the kernel's to drop, and not in it. ``--kind onnx`` drops an ONNX file with external data instead.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODELIUM = Path(sys.executable).parent / "modelium"
CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x
"""
SIDECAR = """
module:
  file: model.py
  class_name: Net
  args: {{width: {width}, layers: {layers}}}
inputs:
- {{name: x, dtype: float32, shape: [batch, {width}]}}
"""


def weights(width: int) -> Any:
    """Return one layer's weights, scaled so that signals neither die nor saturate."""
    import torch

    return torch.randn(width, width) / width**0.5


def state_dict(folder: Path, width: int, layers: int) -> Path:
    """Write safetensors of random linear layers with their class and sidecar, one layer in memory at a time."""
    path = folder / "big.safetensors"
    row_bytes = width * width * 4
    header = {
        f"layers.{i}.weight": {
            "dtype": "F32",
            "shape": [width, width],
            "data_offsets": [i * row_bytes, (i + 1) * row_bytes],
        }
        for i in range(layers)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for _ in range(layers):
            out.write(weights(width).numpy().tobytes())
    _beside(folder, path, width, layers)
    return path


def pickled(folder: Path, width: int, layers: int) -> Path:
    """Write the same as torch.save of a state_dict."""
    import torch

    path = folder / "big.pt"
    torch.save({f"layers.{i}.weight": weights(width) for i in range(layers)}, path)
    _beside(folder, path, width, layers)
    return path


def onnx(folder: Path, width: int, layers: int) -> Path:
    """Write a folder with an ONNX file and its external data."""
    from onnx import TensorProto, helper

    target = folder / "big-onnx"
    target.mkdir()
    nodes, tensors = [], []
    with (target / "weights.bin").open("wb") as out:
        for i in range(layers):
            tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[width, width])
            tensor.data_location = TensorProto.EXTERNAL
            data = weights(width).numpy().tobytes()
            for key, value in (("location", "weights.bin"), ("offset", str(out.tell())), ("length", str(len(data)))):
                tensor.external_data.add(key=key, value=value)
            out.write(data)
            tensors.append(tensor)
            before = "x" if not i else f"h{i}"
            nodes.append(helper.make_node("MatMul", [before, f"w{i}"], [f"m{i}"]))
            nodes.append(helper.make_node("Tanh", [f"m{i}"], ["y" if i == layers - 1 else f"h{i + 1}"]))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "big",
        [value("x", TensorProto.FLOAT, ["batch", width])],
        [value("y", TensorProto.FLOAT, ["batch", width])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (target / "model.onnx").write_bytes(model.SerializeToString())
    return target


def _beside(folder: Path, path: Path, width: int, layers: int) -> None:
    (folder / "model.py").write_text(CODE)
    (folder / f"{path.name}.modelium.yaml").write_text(SIDECAR.format(width=width, layers=layers))


KINDS: dict[str, Callable[[Path, int, int], Path]] = {"state_dict": state_dict, "pickled": pickled, "onnx": onnx}


def peaks(account: dict[str, Any]) -> list[tuple[str, str, int, float]]:
    """Return kind, contender, peak bytes and seconds of each step that really ran."""
    return [
        (step["kind"], step["contender"] or "", step["usage"]["peak_memory_bytes"] or 0, step["usage"]["wall_s"])
        for step in account["steps"]
        if step["usage"] and not step["cached_from"]
    ]


def main() -> int:
    """Make the model, convert it, print the table; returns 1 when a step took more than 2.5 times the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--kind", choices=sorted(KINDS), default="state_dict")
    parser.add_argument("--folder", type=Path, help="Where to work; by default a folder that is removed afterwards")
    parser.add_argument("--memory-gigabytes", type=float, default=0, help="Limit of a step; 2.5 times the model if 0")
    given = parser.parse_args()
    width = 8192 if given.gigabytes >= 1 else 2048
    layers = max(2, round(given.gigabytes * (1 << 30) / (width * width * 4)))
    folder = given.folder or Path(tempfile.mkdtemp(prefix="modelium-big-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        path = KINDS[given.kind](folder, width, layers)
        size = sum(item.stat().st_size for item in (path.rglob("*") if path.is_dir() else [path]) if item.is_file())
        limit = round((given.memory_gigabytes * (1 << 30)) or 2.5 * size + (1 << 30))
        environment = {
            **os.environ,
            "MODELIUM_STEP_MEMORY_BYTES": str(limit),
            "MODELIUM_STEP_WORKSPACE_BYTES": str(8 * size + (4 << 30)),
            "MODELIUM_STEP_TIMEOUT_S": "3600",
            "MODELIUM_MEASURE_BUDGET_S": "5",
            "MODELIUM_MEASURE_ROUNDS": "3",
        }
        done = subprocess.run(
            [MODELIUM, "--home", folder / "home", "convert", "--json", path],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            env=environment,
        )
        account = json.loads(done.stdout)
    finally:
        if given.folder is None:
            shutil.rmtree(folder)
    print(f"{given.kind}, {size / 2**30:.2f} GiB: {account['state']}. {account['reason'] or ''}")
    print(f"{'step':<22} {'candidate':<18} {'peak MiB':>9} {'x model':>8} {'seconds':>8}")
    worst = 0.0
    for kind, contender, peak, wall_s in peaks(account):
        worst = max(worst, peak / size)
        print(f"{kind:<22} {contender:<18} {peak / 2**20:>9.0f} {peak / size:>8.2f} {wall_s:>8.1f}")
    print(f"largest: {worst:.2f} times the model")
    return 0 if worst <= 2.5 and account["state"] in ("deployed", "unchanged") else 1


if __name__ == "__main__":
    sys.exit(main())
