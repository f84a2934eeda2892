"""Hostile drops through the real command line: each ends once, with one sentence, and leaves nothing behind.

No payload here is ever loaded by the tests. The harmless proof of execution is a marker file outside the sandbox.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import time
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

pytestmark = [pytest.mark.sandbox, pytest.mark.torch, pytest.mark.timeout(300)]
MODELIUM = Path(sys.executable).parent / "modelium"
QUICK = {"MODELIUM_MEASURE_ROUNDS": "3", "MODELIUM_MEASURE_BUDGET_S": "2", "MODELIUM_THREADS": "1"}
OURS = {"internal", "sandbox_crashed", "no_isolation", "toolchain_missing"}
HOME = f"home-{uuid.uuid4().hex}"
"""Names every home here: what a leftover process shows in its arguments or its mounts."""
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
        run.accounts[unquote(account["job"]["uri"]).rpartition("/drop/")[2]] = account
    return run


def assert_plain(account: Any) -> None:
    """One sentence for a person: no traceback, nothing that a terminal obeys, no fault of ours."""
    told = account["reason"]
    assert told and "\n" not in told and "Traceback" not in told and len(told) < 1200, told
    assert not any(ord(c) < 32 or ord(c) == 127 for c in told), told
    for step in account["steps"]:
        assert step["state"] != "running"


def processes_of(home: Path) -> list[str]:
    """What still runs of this home: by its arguments, or by a mount of its workspaces, which no process can shed."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            mounts = Path(f"/proc/{process.pid}/mountinfo").read_text()
        except OSError:
            mounts = ""
        if home.name in " ".join(process.info["cmdline"] or ()) or f"/{home.name}/" in mounts:
            found.append(f"{process.pid} {process.info['cmdline']}")
    return found


def assert_nothing_left(run: Run, marker: Path) -> None:
    assert not marker.exists(), "a payload ran outside the sandbox"
    assert list((run.home / "workspaces").iterdir()) == []
    groups = [p for p in Path("/sys/fs/cgroup").glob(f"**/modelium-{run.pid}-*") if p.is_dir()]
    assert groups == []
    assert processes_of(run.home) == []
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
    "yaml-bomb.onnx": ("needs_input", "anchors and aliases are not allowed"),
    "yaml-python.onnx": ("needs_input", "tags such as"),
    "line\nbreak.pt": ("quarantined", "posix.system"),
    "\x1b[2J\x1b]0;owned\x07.pt": ("quarantined", "posix.system"),
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
    weights = (2).to_bytes(8, "little") + b"{}"
    hugging_face(
        folder / "auto-map", {"modeling.py": own, "model.safetensors": weights}, auto_map={"AutoModel": "modeling.Mine"}
    )
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
    (folder / "yaml-python.onnx.modelium.yaml").write_text(f"name: !!python/object/apply:os.system ['{marker}']\n")
    for name in ("line\nbreak.pt", "\x1b[2J\x1b]0;owned\x07.pt", f"{SCRIPT.replace('/', '')}.pt"):
        (folder / name).write_bytes(evil)


@pytest.fixture(scope="module")
def by_bytes(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("bytes")
    marker = folder / "a-payload-ran"
    make_hostile(folder / "drop", marker)
    run = convert(folder / HOME, folder / "drop")
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


# What is hostile by what it does: the scan is got around, and the code meets the sandbox.

EVADE = """
import torch
load = getattr(torch, "__buil" + "tins__")["__imp" + "ort__"]
os, ctypes, socket, time, sys = map(load, ("o" + "s", "ctyp" + "es", "sock" + "et", "time", "sys"))


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        attack()

    def forward(self, x):
        return self.linear(x)


"""

EXPLORE = """
def attack():
    reached = []
    for path in ("/etc/shadow", "/etc/hostname", "{secret}", "{private}", "/run", "/var/log",
                 "/proc/1/environ", "/proc/1/root/etc/shadow", "/sys/fs/cgroup"):
        try:
            os.listdir(path) if os.path.isdir(path) else os.close(os.open(path, os.O_RDONLY))
            reached.append("read " + path)
        except OSError:
            pass
    for path in ("{marker}", "/usr/x", "/etc/x", "/step/x", "/step/in/x", "/step/in/model", "/step/step.json", "/x",
                 "/proc/sys/kernel/core_pattern", "/opt/modelium/schemas/x"):
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
            reached.append("wrote " + path)
        except OSError:
            pass
    for family, address in ((socket.AF_INET, ("127.0.0.1", {port})), (socket.AF_UNIX, "\\0{name}")):
        try:
            socket.socket(family).connect(address)
            reached.append("connected")
        except OSError:
            pass
    for pid in (1, os.getppid()):
        try:
            os.kill(pid, 0) if pid != 1 else None
            open("/proc/%d/mem" % pid, "rb").close()
            reached.append("memory of %d" % pid)
        except OSError:
            pass
    progress = int(os.environ["MODELIUM_PROGRESS_FD"])
    os.write(progress, b'{{"fraction": 0.5, "message": "\\\\u001b[2J<script>alert(1)</script>"}}\\n')
    os.write(progress, b'{{"fraction": 1e999}}\\n[[[[[[\\n')
    for _ in range(32):
        os.write(1, b"\\x1b[2J" * (1 << 18))
    for _ in range(4):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(600)
            os._exit(0)
    raise RuntimeError("it reached " + (", ".join(reached) or "nothing"))
"""

BY_CODE = {
    "explore": (EXPLORE, "failed", "model_failed", "it reached nothing"),
    "fork-bomb": (
        """
def attack():
    children = 0
    try:
        while children < 5000:
            if os.fork() == 0:
                time.sleep(600)
            children += 1
    except OSError:
        pass
    raise RuntimeError("stopped early" if children < 100 else "not stopped")
""",
        "failed", "model_failed", "stopped early",
    ),
    "memory-bomb": (
        """
def attack():
    held = []
    while True:
        held.append(b"x" * (64 << 20))
""",
        "failed", "limit_exceeded", "1024 MiB of memory",
    ),
    "exit": ("def attack():\n    os._exit(0)\n", "failed", "model_failed", "own code ended step probe"),
    "exit-7": ("def attack():\n    os._exit(7)\n", "failed", "model_failed", "status 7"),
    "crash": ("def attack():\n    ctypes.string_at(0)\n", "failed", "model_failed", "SIGSEGV"),
    "forge": (
        """
def attack():
    with open("/step/out/result.json", "w") as file:
        file.write('{"ok": true, "report": {"winner": "me"}, "outputs": {"model": "../../../etc"}}')
    os._exit(0)
""",
        "failed", "model_failed", "wrote over its result",
    ),
    "forge-a-link": (
        "def attack():\n    os.symlink('/etc/passwd', '/step/out/result.json')\n    os._exit(0)\n",
        "failed", "model_failed", "wrote over its result",
    ),
    "fill": (
        """
def attack():
    for number in range(10_000):
        with open("/step/out/%d" % number, "wb") as file:
            file.write(bytes(8 << 20))
""",
        "failed", "limit_exceeded", "allowed",
    ),
}  # fmt: skip


def make_module(folder: Path, name: str, attack: str) -> None:
    import torch

    folder.mkdir(exist_ok=True)
    torch.save({"linear.weight": torch.eye(4), "linear.bias": torch.zeros(4)}, folder / f"{name}.pth")
    (folder / f"{name}.py").write_text(EVADE + attack)
    (folder / f"{name}.pth.modelium.yaml").write_text(
        f"module: {{file: {name}.py, class_name: Net}}\ninputs: [{{name: x, dtype: float32, shape: [batch, 4]}}]\n"
    )


@pytest.fixture(scope="module")
def by_code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("code")
    marker, secret = folder / "a-payload-ran", folder / "secret"
    secret.write_text("the secret")
    name = f"modelium-test-{os.getpid()}"
    with socket.socket() as listener, socket.socket(socket.AF_UNIX) as abstract:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        abstract.bind(f"\0{name}")
        abstract.listen()
        private = next((p for p in sorted(Path.home().iterdir()) if p.is_file()), secret)
        facts = {"secret": secret, "private": private, "marker": marker, "name": name}
        for case, (attack, *_) in BY_CODE.items():
            known = attack.format(port=listener.getsockname()[1], **facts) if case == "explore" else attack
            make_module(folder / "drop", case, known)
        run = convert(
            folder / HOME, folder / "drop", MODELIUM_STEP_MEMORY_BYTES=str(1 << 30), MODELIUM_STEP_PROCESSES="64",
            MODELIUM_STEP_WORKSPACE_BYTES=str(64 << 20), MODELIUM_ALLOWED_PICKLE_GLOBALS="builtins.open",
        )  # fmt: skip
    assert_nothing_left(run, marker)
    yield run


@pytest.mark.parametrize("case", BY_CODE)
def test_code_that_gets_past_the_scan_meets_the_sandbox(by_code: Run, case: str) -> None:
    _, state, code, said = BY_CODE[case]
    account = by_code.accounts[f"{case}.pth"]
    assert account["state"] == state and said in account["reason"], account["reason"]
    assert_plain(account)
    assert [s["kind"] for s in account["steps"]] == ["analyze", "probe"]
    assert account["steps"][1]["error"]["code"] == code
    logs = subprocess.run(
        [MODELIUM, "--home", by_code.home, "logs", account["job_id"]], capture_output=True, text=True, check=True
    ).stdout
    assert "\x1b" not in logs and len(logs) < 8 << 20


def test_an_endless_loop_ends_at_the_time_limit(tmp_path: Path) -> None:
    make_module(tmp_path / "drop", "endless", "def attack():\n    while True:\n        pass\n")
    run = convert(tmp_path / HOME, tmp_path / "drop", MODELIUM_STEP_TIMEOUT_S="8")
    account = run.accounts["endless.pth"]
    assert account["state"] == "failed" and "longer than 8 s" in account["reason"]
    assert_plain(account)
    assert_nothing_left(run, tmp_path / "marker")


def test_after_all_that_the_next_model_is_deployed_and_its_scripts_are_only_text(by_code: Run, tmp_path: Path) -> None:
    (tmp_path / "next.onnx").write_bytes(identity(names=(f"{SCRIPT}in", f"{SCRIPT}out"), labels=True))
    (tmp_path / "next.onnx.modelium.yaml").write_text(
        f"labels: ['{SCRIPT}', \"\\e[2J\", c, d]\ntask: '{SCRIPT}'\nlicense: '{SCRIPT}'\n"
    )
    run = convert(by_code.home, tmp_path / "next.onnx")
    (account,) = run.accounts.values()
    assert account["state"] in {"deployed", "unchanged"}, account["reason"]
    page = next(p for p in [Path(account["report"])] if p.is_file()).read_text()
    assert "<script>alert" not in page and "\x1b" not in page
    assert_nothing_left(run, tmp_path / "marker")
    shown = subprocess.run(
        [MODELIUM, "--home", by_code.home, "show", account["job_id"]], capture_output=True, text=True
    )
    assert shown.returncode == 0 and "\x1b[2J" not in shown.stdout
