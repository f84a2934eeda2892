from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from executor import StepSpec, find_sandbox, run
from executor.bwrap_sandbox import BwrapSandbox
from executor.cgroup import _hierarchies
from executor.docker_sandbox import DockerSandbox
from executor.find import DockerOptions
from executor.processes import descendants
from executor.sandbox import NO_OBSERVERS, Command, Ending, Observers, Sandbox
from executor.toolchain import Toolchain, installation
from executor.warm_bounds import WarmBounds
from executor.warm_failed import WarmFailed
from executor.warm_parents import WarmParents
from executor.warm_seat import WarmSeat
from schemas.descriptor import Format, KnownBy, ModelDescriptor, TensorSpec
from schemas.errors import SandboxUnavailable
from schemas.step_io import StepRequest
from schemas.step_run import Limits

LIMITS = Limits(
    memory_bytes=256 << 20,
    cpus=1,
    processes=32,
    timeout_s=20,
    workspace_bytes=16 << 20,
    workspace_files=500,
    log_bytes=64 << 10,
)


_DOCKER = [pytest.param(name, marks=pytest.mark.docker) for name in ("docker", "docker_warm")]


@pytest.fixture(scope="session", params=["bubblewrap", "warm", *_DOCKER])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    """Each backend, cold and warm; a test of what only one does is parametrised with that one."""
    if request.param in ("docker", "docker_warm"):
        engine = request.getfixturevalue("docker_engine")
        warm = WarmBounds() if request.param == "docker_warm" else None
        return find_sandbox(backend="docker", docker=DockerOptions(engine.host), warm=warm)
    try:
        return find_sandbox(backend="bubblewrap", warm=WarmBounds() if request.param == "warm" else None)
    except SandboxUnavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def seen_in_tmp() -> list[str]:
    """What a step sees in its empty /tmp: the way to an installation that lies below it, as in a checkout there."""
    prefixes = installation(Path(sys.executable)).prefixes
    return sorted({prefix.parts[2] for prefix in prefixes if prefix.is_relative_to("/tmp")})


@dataclass
class Box:
    """Runs code inside the sandbox, never on the host; the test ends by proving that nothing of it is left.

    ``warm`` names the warm parent that it is forked from, or the toolchain of the container that waits for it; a step
    that then starts cold all the same fails the test.
    """

    sandbox: Sandbox
    folder: Path
    limits: Limits = LIMITS
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    runs: int = 0
    warm: str | None = None

    def __call__(
        self, code: str, observers: Observers = NO_OBSERVERS, inputs: dict[str, Path] | None = None, **limits: float
    ) -> Ending:
        self.runs += 1
        self.workspace = self.folder / str(self.runs)
        self.workspace.mkdir()
        command = Command(
            argv=(sys.executable, "-I", "-S", "-u", "-c", code),
            workspace=self.workspace,
            interpreter=Path(sys.executable),
            limits=self.limits.model_copy(update=limits),
            inputs=inputs or {},
            environment={} if self.is_forked else {"MARK": self.mark},
            warm=self.warm,
        )
        if self.warm and isinstance(self.sandbox, DockerSandbox):
            with contextlib.suppress(WarmFailed):  # then it starts cold, which is seen below
                self.sandbox.await_warm(command)
        ending = self.sandbox.execute(command, observers)
        assert (ending.warm is not None) == (self.warm is not None)
        return ending

    @property
    def is_forked(self) -> bool:
        return self.warm is not None and isinstance(self.sandbox, BwrapSandbox)

    @property
    def out(self) -> Path:
        return self.workspace / "out"

    def processes_left(self) -> list[str]:
        left, waiting = [], {pid for seat in waiting_seats() for pid in (seat.pid, *descendants(seat.pid))}
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.mark.encode() in environ.read_bytes():
                    left.append((environ.parent / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return left + [str(child) for child in self.warm_children(os.getpid()) if child.pid not in waiting]

    @staticmethod
    def warm_children(owner: int) -> list[psutil.Process]:
        """What runs below ``owner`` in a namespace of processes inside another one: no warm parent does itself."""
        levels = _levels("self")
        return [p for p in psutil.Process(owner).children(recursive=True) if _levels(p.pid) > levels + 1]

    @staticmethod
    def zombies_left() -> list[str]:
        states = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                states.append(stat.read_text())
            except OSError:
                continue
        # A shim of the tests' own engine becomes a child of this process when it is orphaned while that adopts.
        return [state for state in states if f") Z {os.getpid()} " in state and "(containerd-shim)" not in state]

    @staticmethod
    def groups_of(pid: int) -> list[Path]:
        parents = {hierarchy.parent for hierarchy in _hierarchies().values()}
        waiting = {seat.cgroup.name for seat in waiting_seats()}
        found = (group for parent in parents for group in parent.glob(f"modelium-{pid}-*"))
        return [group for group in found if group.name not in waiting]


def waiting_seats() -> list[WarmSeat]:
    """The children of this process's warm parents that wait for a step and have had none, when each has its own."""
    parents = [parent for found in gc.get_objects() if type(found) is WarmParents for parent in found._ready()]
    deadline = time.monotonic() + 10
    while any(parent.lacks_seat for parent in parents) and time.monotonic() < deadline:
        time.sleep(0.01)
    return [parent._waiting for parent in parents if parent.alive and parent._waiting is not None]


def _levels(pid: int | str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return len(next(line for line in lines if line.startswith("NSpid:")).split()[1:])


_OF_CONTAINERS = ("- overlay overlay", "- nsfs nsfs", "- tmpfs shm", "/tmp/modelium-docker-")


@pytest.fixture
def seats() -> Callable[[], list[WarmSeat]]:
    """What tells which children wait for a step, when each parent has its own."""
    return waiting_seats


@pytest.fixture
def box(sandbox: Sandbox, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Box]:
    engine = request.getfixturevalue("docker_engine") if sandbox.name == "docker" else None
    mounts = _mounts(engine)
    box = Box(sandbox, tmp_path)
    if isinstance(sandbox, BwrapSandbox | DockerSandbox) and sandbox.starts_warm:
        box.warm = "bare"
    if box.is_forked:
        box("pass")  # the parent starts before a test looks at the clock
    yield box
    if isinstance(sandbox, DockerSandbox):
        sandbox.close()
    deadline = time.monotonic() + 2
    while (left := [*box.processes_left(), *box.groups_of(os.getpid())]) and time.monotonic() < deadline:
        time.sleep(0.05)  # an idle parent of another test may be on its way out, with the child that waited for a step
    assert left == []
    assert engine is None or engine.containers() == []
    assert box.zombies_left() == []
    assert _mounts(engine) == mounts


def _mounts(engine: Any) -> list[str]:
    """What is mounted on this machine, without what containers of other engines come and go with."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    own = str(engine.folder) if engine else "\0"
    return [line for line in lines if own in line or not any(kind in line for kind in _OF_CONTAINERS)]


_ONNX = """
import sys, onnx
from onnx import helper, numpy_helper
import numpy as np
x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 3]) for n in "xy")
w = numpy_helper.from_array(np.arange(9, dtype=np.float32).reshape(3, 3), "w")
nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
graph = helper.make_graph(nodes, "g", [x], [y], [w])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), sys.argv[1])
"""
_TORCH = """
import sys, torch
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2)).eval()
torch.jit.trace(model, torch.rand(2, 8)).save(sys.argv[1])
"""
_DESCRIPTOR = ModelDescriptor(
    artifact_sha256="0" * 64,
    format=Format.TORCHSCRIPT,
    size_bytes=1,
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 8), known_by=KnownBy.PROBE),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 2), known_by=KnownBy.PROBE),),
)


def _made(folder: Path, code: str) -> Path:
    subprocess.run([sys.executable, "-P", "-W", "ignore", "-c", code, folder / "model"], check=True)
    return folder / "model"


@pytest.fixture(scope="session")
def onnx_step(tmp_path_factory: pytest.TempPathFactory) -> StepSpec:
    """A step that optimises a small graph."""
    model = _made(tmp_path_factory.mktemp("onnx"), _ONNX)
    return StepSpec(StepRequest(kind="onnx_optimize", threads=2), Toolchain("onnx"), {"model": model}, Limits())


@pytest.fixture(scope="session")
def torch_step(tmp_path_factory: pytest.TempPathFactory) -> StepSpec:
    """A step that exports a small TorchScript program."""
    model = _made(tmp_path_factory.mktemp("torch"), _TORCH)
    request = StepRequest(kind="torchscript_onnx", threads=2, descriptor=_DESCRIPTOR)
    return StepSpec(request, Toolchain("torch"), {"model": model}, Limits())


@pytest.fixture(params=["onnx_step", pytest.param("torch_step", marks=pytest.mark.torch)])
def real_step(request: pytest.FixtureRequest) -> StepSpec:
    step: StepSpec = request.getfixturevalue(request.param)
    return step


@dataclass(frozen=True)
class Outcome:
    """What a step gave, all that a cold and a warm one have to give alike in ``found``."""

    warm: bool
    import_s: float
    found: tuple[object, ...]


@pytest.fixture
def outcome_of(tmp_path: Path) -> Callable[[Sandbox, StepSpec], Outcome]:
    """Run a step that succeeds, in the workspaces below ``tmp_path``."""

    def outcome(sandbox: Sandbox, step: StepSpec) -> Outcome:
        with run(step, workspaces=tmp_path / "workspaces", sandbox=sandbox) as output:
            assert output.result.ok, (output.result.error, output.log)
            assert output.usage.cpu_s and output.usage.peak_memory_bytes
            files = {
                str(path.relative_to(output.out)): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in sorted(output.out.rglob("*"))
                if path.is_file() and path.name != "result.json"
            }
            found = (files, output.result.report, output.result.versions, output.log, output.isolation)
            return Outcome(output.usage.warm, output.usage.import_s, found)

    return outcome
