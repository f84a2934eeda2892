"""Hostile drops through the real command line: each ends once, with one sentence, and leaves nothing behind.

No payload here is ever loaded by the tests. The harmless proof of execution is a marker file outside the sandbox.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

pytestmark = [pytest.mark.sandbox, pytest.mark.torch, pytest.mark.timeout(300)]
MODELIUM = Path(sys.executable).parent / "modelium"
QUICK = {"MODELIUM_MEASURE_ROUNDS": "3", "MODELIUM_MEASURE_BUDGET_S": "2", "MODELIUM_THREADS": "1"}
OURS = {"internal", "sandbox_crashed", "no_isolation", "toolchain_missing"}
TOKEN = f"987654{os.getpid()}"
"""An argument of every process that a payload starts, by which the ones that stayed are found."""
SCRIPT = "<script>alert(1)</script>"


@dataclass
class Run:
    """What one ``modelium convert`` said of everything it was given, and what was there afterwards."""

    home: Path
    returncode: int
    pid: int
    stdout: str
    stderr: str
    seconds: float
    accounts: dict[str, Any] = field(default_factory=dict)


def convert(home: Path, path: Path, **settings: str) -> Run:
    began = time.monotonic()
    process = subprocess.Popen(
        [MODELIUM, "--home", home, "convert", path, "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | QUICK | settings,
    )  # fmt: skip
    out, err = process.communicate(timeout=280)
    run = Run(home, process.returncode, process.pid, out, err, time.monotonic() - began)
    document = json.loads(out)
    for account in document.get("jobs", [document]):
        run.accounts[account["uri"].rsplit("/", 1)[-1]] = account
    return run


def assert_plain(account: Any) -> None:
    """One sentence for a person: no traceback, nothing that a terminal obeys, no fault of ours."""
    told = account["reason"]
    assert told and "\n" not in told and "Traceback" not in told and len(told) < 1200, told
    assert not any(ord(c) < 32 or ord(c) == 127 for c in told), told
    for step in account["steps"]:
        assert step["state"] != "running"


def assert_nothing_left(run: Run, marker: Path) -> None:
    assert not marker.exists(), "a payload ran outside the sandbox"
    assert list((run.home / "workspaces").iterdir()) == []
    groups = [p for p in Path("/sys/fs/cgroup").glob(f"**/modelium-{run.pid}-*") if p.is_dir()]
    assert groups == []
    stayed = [p for p in psutil.process_iter(["cmdline"]) if TOKEN in " ".join(p.info["cmdline"] or ())]
    assert stayed == []
    assert "Traceback" not in run.stderr and "\x1b" not in run.stderr


# What is hostile by its bytes: the analysis sees it, nothing of it runs.


class Payload:
    def __init__(self, marker: Path) -> None:
        self.command = f"touch {marker}"

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return sink.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, data in members.items():
            item = tarfile.TarInfo(name)
            item.size = len(data)
            archive.addfile(item, io.BytesIO(data))
    return sink.getvalue()


def identity(
    *, names: tuple[str, str] = ("x", "y"), external: str | None = None, width: int = 4, labels: bool = False
) -> bytes:
    weight = numpy_helper.from_array(np.eye(width, dtype=np.float32), "w" if not labels else f"{SCRIPT}w")
    if external is not None:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=external)
    graph = helper.make_graph(
        [helper.make_node("MatMul", [names[0], weight.name], [names[1]], name=f"{SCRIPT}\x1b[2J" if labels else "n")],
        SCRIPT if labels else "graph",
        [helper.make_tensor_value_info(names[0], TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info(names[1], TensorProto.FLOAT, ["batch", width])],
        [weight],
        doc_string=SCRIPT,
    )
    data: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name=SCRIPT if labels else "test"
    ).SerializeToString()
    return data


def legacy_torch(body: bytes) -> bytes:
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join(parts) + body + pickle.dumps([], 2)


def object_array(body: bytes) -> bytes:
    head = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + body


def hugging_face(folder: Path, files: dict[str, bytes], **config: Any) -> None:
    folder.mkdir()
    about = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 8, **config}
    (folder / "config.json").write_text(json.dumps(about))
    for name, data in files.items():
        (folder / name).write_bytes(data)


YAML_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(20)
)

BY_BYTES = {
    "pickle.pt": ("quarantined", "posix.system"),
    "pickle.onnx": ("quarantined", "posix.system"),
    "pickle.joblib": ("quarantined", "posix.system"),
    "pickle.bin": ("quarantined", "posix.system"),
    "legacy.pt": ("quarantined", "posix.system"),
    "torch.pt": ("quarantined", "posix.system"),
    "nested.zip": ("quarantined", "posix.system"),
    "packed.joblib": ("quarantined", "posix.system"),
    "objects.npy": ("quarantined", "posix.system"),
    "appended.onnx": ("quarantined", "hidden"),
    "outside.onnx": ("quarantined", "../../../../etc/passwd"),
    "outside.tar": ("quarantined", ".."),
    "bomb.zip": ("quarantined", "unpacks"),
    "auto-map": ("needs_input", "auto_map"),
    "own-python": ("quarantined", "subprocess"),
    "hostile-weights": ("quarantined", "posix.system"),
    "calls-out.pth": ("quarantined", "socket"),
    "yaml-bomb.onnx": ("failed", "yaml"),
    "yaml-python.onnx": ("failed", "yaml"),
    "line\nbreak.pt": ("failed", "name"),
    "\x1b[2J\x1b]0;owned\x07.pt": ("failed", "name"),
    f"{SCRIPT.replace('/', '')}.pt": ("quarantined", "posix.system"),
}


def make_hostile(folder: Path, marker: Path) -> None:
    folder.mkdir()
    evil = pickle.dumps({"weights": Payload(marker)}, 2)
    torch_zip = zipped({"archive/data.pkl": evil, "archive/version": b"3\n", "archive/data/0": b"\0" * 64})
    for name in ("pickle.pt", "pickle.onnx", "pickle.joblib", "pickle.bin"):
        (folder / name).write_bytes(evil)
    (folder / "legacy.pt").write_bytes(legacy_torch(evil))
    (folder / "torch.pt").write_bytes(torch_zip)
    (folder / "nested.zip").write_bytes(zipped({"a.tar.gz": gzip.compress(tarred({"b/model.pt": torch_zip}))}))
    (folder / "packed.joblib").write_bytes(zlib.compress(evil))
    (folder / "objects.npy").write_bytes(object_array(evil))
    (folder / "appended.onnx").write_bytes(identity() + torch_zip)
    (folder / "outside.onnx").write_bytes(identity(external="../../../../etc/passwd"))
    (folder / "outside.tar").write_bytes(tarred({"../../../../tmp/evil.so": b"\x7fELF" * 9}))
    (folder / "bomb.zip").write_bytes(zipped({"archive/data.pkl": bytes(600 << 20)}, zipfile.ZIP_DEFLATED))
    own = b"from transformers import BertModel\n\n\nclass Mine(BertModel):\n    pass\n"
    hugging_face(folder / "auto-map", {"modeling.py": own}, auto_map={"AutoModel": "modeling.Mine"})
    calls = f"import subprocess\nsubprocess.run(['touch', {str(marker)!r}])\n".encode()
    hugging_face(folder / "own-python", {"modeling.py": calls}, auto_map={"AutoModel": "modeling.Mine"})
    hugging_face(folder / "hostile-weights", {"pytorch_model.bin": torch_zip})
    good = zipped({"archive/data.pkl": pickle.dumps({}, 2), "archive/version": b"3\n"})
    (folder / "calls-out.pth").write_bytes(good)
    (folder / "calls-out.py").write_text("import socket\n\n\nclass Net:\n    pass\n")
    (folder / "calls-out.pth.modelium.yaml").write_text("module: {file: calls-out.py, class_name: Net}\n")
    (folder / "yaml-bomb.onnx").write_bytes(identity(width=5))
    (folder / "yaml-bomb.onnx.modelium.yaml").write_text(YAML_BOMB)
    (folder / "yaml-python.onnx").write_bytes(identity(width=6))
    (folder / "yaml-python.onnx.modelium.yaml").write_text(f"name: !!python/object/apply:os.system ['touch {marker}']\n")
    for name in ("line\nbreak.pt", "\x1b[2J\x1b]0;owned\x07.pt", f"{SCRIPT.replace('/', '')}.pt"):
        (folder / name).write_bytes(evil)


@pytest.fixture(scope="module")
def by_bytes(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("bytes")
    marker = folder / "a-payload-ran"
    make_hostile(folder / "drop", marker)
    run = convert(folder / "home", folder / "drop")
    assert_nothing_left(run, marker)
    return run


@pytest.mark.parametrize("name", BY_BYTES)
def test_a_file_that_is_hostile_by_its_bytes_is_never_opened(by_bytes: Run, name: str) -> None:
    state, said = BY_BYTES[name]
    account = by_bytes.accounts[name]
    assert (account["state"], said in account["reason"]) == (state, True), account["reason"]
    assert_plain(account)
    assert not [s for s in account["steps"] if s["error"] and s["error"]["code"] in OURS]
    assert {s["kind"] for s in account["steps"]} <= {"analyze"}
