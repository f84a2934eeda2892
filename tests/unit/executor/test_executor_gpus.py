"""GPUs are shown to the steps that need one and to no other; ordinary devices stand in for those of a GPU."""

from __future__ import annotations

import json
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from executor import StepSpec, gpus, run
from executor.bwrap_arguments import resource_limits
from executor.bwrap_sandbox import BwrapSandbox
from executor.cgroup import Cgroup
from executor.docker_container import Engine, configuration, giving_back
from executor.docker_image import Image
from executor.find import find_sandbox
from executor.gpu_probing import gpus_in
from executor.kubernetes_pod import Sight, too_late
from executor.sandbox import Command, Ending, Sandbox
from executor.toolchain import NEEDED, Installation, Toolchain
from executor.unisolated_sandbox import UnisolatedSandbox
from modelium import doctor
from modelium.context import Context
from modelium.settings import Settings, load
from schemas.catalog import CATALOG, needs_gpu, parse_options
from schemas.descriptor import Format
from schemas.errors import ToolchainMissing, UsageError
from schemas.runtime import Runtime
from schemas.step_io import StepRequest
from schemas.step_run import Limits
from schemas.target import TargetProfile

LIMITS = Limits(memory_bytes=512 << 20, processes=32, timeout_s=30)
PARITY = {"precision": "fp32"}
NEEDS = [
    ("onnx_tensorrt", {}, None, True),
    ("onnx_tensorrt_rtx", {}, None, False),
    ("analyze", {}, None, False),
    ("reference", {}, Format.ONNX, False),
    ("reference", {}, Format.TENSORRT, True),
    ("probe", {}, Format.TENSORRT, True),
    ("parity", PARITY, Format.ONNX, False),
    ("parity", {**PARITY, "format": "tensorrt"}, Format.ONNX, True),
    ("parity", {**PARITY, "format": "tensorrt_rtx"}, Format.ONNX, False),
    ("measure", {"formats": {"a": "onnx", "b": "openvino"}}, Format.ONNX, False),
    ("measure", {"formats": {"a": "onnx", "b": "tensorrt"}}, Format.ONNX, True),
    ("try_model", {"format": "tensorrt"}, Format.ONNX, True),
]
LOOK = """
import errno, fcntl, json, os
names = sorted(name for name in os.listdir("/dev") if name.startswith("nvidia"))
def refused(request, path="/dev/null"):
    try:
        with open(path, "r+b", buffering=0) as file:
            fcntl.ioctl(file, request)
    except OSError as error:
        return errno.errorcode[error.errno]
# Of the driver: an answer for a number of its own, of its shared memory; then TIOCSTI, and what formats a floppy disk.
print(json.dumps([names, [refused(n) for n in (0xC00846D6, 37, 0x30000001, 0x5412, 0x0247)]]))
"""


@pytest.mark.parametrize(("kind", "options", "original", "needed"), NEEDS)
def test_the_catalogue_says_which_steps_need_a_gpu(
    kind: str, options: dict[str, Any], original: Format | None, needed: bool
) -> None:
    assert needs_gpu(kind, parse_options(kind, options), original) is needed


def test_whatever_builds_or_runs_what_only_a_gpu_runs_needs_one() -> None:
    for entry in CATALOG.values():
        assert (entry.gpu != "never") == (
            entry.gives is Format.TENSORRT or entry.kind in ("probe", "reference", "parity", "measure", "try_model")
        )


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /dev with two GPUs, which are devices that every machine has and no step may change."""
    folder = tmp_path / "dev"
    folder.mkdir()
    stand_ins = {"nvidiactl": "random", "nvidia-uvm": "urandom", "nvidia0": "random", "nvidia1": "urandom"}
    for name, device in stand_ins.items():
        (folder / name).symlink_to(f"/dev/{device}")
    (folder / "nvidia10").touch()  # no device
    monkeypatch.setattr(gpus, "_DEV", folder)
    return folder


def execute(sandbox: Sandbox, folder: Path, code: str = LOOK, *, count: int = 0, warm: str | None = None) -> Ending:
    folder.mkdir()
    python = Path(sys.executable)
    argv = (str(python), "-I", "-c", code)
    return sandbox.execute(Command(argv, folder, python, LIMITS, warm=warm, gpus=count))


@pytest.mark.sandbox
@pytest.mark.parametrize("sandbox", ["bubblewrap", "warm"], indirect=True)
def test_bubblewrap_shows_the_devices_to_the_step_that_needs_them_and_to_no_other(
    devices: Path, sandbox: BwrapSandbox, tmp_path: Path
) -> None:
    warm = "bare" if sandbox.starts_warm else None
    with_one = execute(sandbox, tmp_path / "with", count=1, warm=warm)
    assert json.loads(with_one.log) == [
        ["nvidia-uvm", "nvidia0", "nvidiactl"],
        ["ENOTTY", "ENOTTY", "ENOTTY", "EPERM", "EPERM"],
    ]
    assert with_one.warm is None  # a warm parent has no devices, and its filter is that of steps without
    without = execute(sandbox, tmp_path / "without", warm=warm)
    assert json.loads(without.log) == [[], ["EPERM"] * 5]
    assert (without.warm is not None) == sandbox.starts_warm


@pytest.mark.sandbox
def test_the_setting_chooses_the_gpu_under_bubblewrap(devices: Path, tmp_path: Path) -> None:
    ending = execute(find_sandbox(gpus=("1", "0")), tmp_path / "step", count=1)
    assert json.loads(ending.log)[0] == ["nvidia-uvm", "nvidia1", "nvidiactl"]
    with pytest.raises(ToolchainMissing, match=r"needs GPU 7, and of this machine's GPUs there is 0, 1\.") as refused:
        execute(find_sandbox(gpus=("7",)), tmp_path / "other", count=1)
    assert "MODELIUM_SANDBOX_GPUS" in refused.value.hint


@pytest.mark.sandbox
def test_landlock_leaves_a_step_its_gpu(devices: Path, tmp_path: Path) -> None:
    code = """
        import fcntl, sys
        from pathlib import Path
        sys.path.insert(0, "/opt/modelium")
        from executor import child, landlock
        landlock.restrict(path for path in child.writable(Path("/step")) if path.exists())
        for name in ("nvidiactl", "nvidia-uvm", "nvidia0"):
            with open(f"/dev/{name}", "r+b", buffering=0) as device:
                try:
                    fcntl.ioctl(device, 0xC00846D6)
                except OSError as error:
                    print(error.errno)
        """
    assert (
        execute(find_sandbox(), tmp_path / "step", textwrap.dedent(code), count=1).log == "22\n" * 3
    )  # EINVAL, from the device


@pytest.mark.parametrize(
    ("absent", "told", "mend"),
    [
        ("nvidiactl", "this machine shows none: it has no /dev/nvidiactl", "--gpus"),
        ("nvidia-uvm", "has not made /dev/nvidia-uvm", "nvidia-modprobe"),
        ("nvidia0 nvidia1", "there is no device", "MODELIUM_SANDBOX_GPUS"),
    ],
)
def test_what_is_lacking_is_one_sentence_and_how_to_mend_it(devices: Path, absent: str, told: str, mend: str) -> None:
    for name in absent.split():
        (devices / name).unlink()
    for sandbox in (find_sandbox(), UnisolatedSandbox()):
        with pytest.raises(ToolchainMissing, match=told) as refused:
            execute(sandbox, devices / sandbox.name, count=1)
        assert mend in refused.value.hint
        assert str(refused.value.args[0]).endswith(".")


@pytest.fixture
def tensorrt(tmp_path: Path) -> StepSpec:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"no model")
    # That it is installed is pretended: the step then says that it is not, which shows that it was reached.
    tools = Toolchain("tensorrt", carried=Installation(dict.fromkeys(NEEDED["tensorrt"], "0"), ()))
    return StepSpec(StepRequest(kind="onnx_tensorrt", inputs={"model": "in/model"}), tools, {"model": model}, LIMITS)


@pytest.mark.sandbox
def test_a_step_records_whether_it_had_a_gpu_and_fails_alone_without(
    devices: Path, tensorrt: StepSpec, tmp_path: Path
) -> None:
    with run(tensorrt, workspaces=tmp_path / "w", sandbox=find_sandbox()) as output:
        assert output.usage.gpus == 1
        assert output.result.error is not None and "TensorRT is not installed" in output.result.error.message
    (devices / "nvidiactl").unlink()
    with run(tensorrt, workspaces=tmp_path / "w", sandbox=find_sandbox()) as output:
        assert output.usage.gpus == 0 and output.usage.wall_s == 0
        assert output.result.error is not None and output.result.error.code == "toolchain_missing"
        assert "needs an NVIDIA GPU" in output.result.error.message
    other = StepSpec(StepRequest(kind="analyze", inputs={"model": "in/model"}), Toolchain("onnx"), tensorrt.inputs)
    with run(other, workspaces=tmp_path / "w", sandbox=find_sandbox()) as output:
        assert output.result.ok and output.usage.gpus == 0


def test_without_a_control_group_addresses_are_bounded_unless_cuda_reserves_them() -> None:
    assert "as" in resource_limits(LIMITS, Cgroup("", {}))
    assert "as" not in resource_limits(LIMITS, Cgroup("", {}), gpus=1)


def test_the_drivers_libraries_are_shown_where_usr_does_not_have_them(tmp_path: Path) -> None:
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver" / "libcuda.so.1.2").touch()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "libcuda.so.1").symlink_to(tmp_path / "driver" / "libcuda.so.1.2")
    cache = f"""2 libs found in cache `/etc/ld.so.cache'
\tlibnvidia-ml.so.1 (libc6,x86-64) => /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1
\tlibcuda.so.1 (libc6,x86-64) => {tmp_path}/linked/libcuda.so.1
\tlibother.so.1 (libc6,x86-64) => {tmp_path}/other/libother.so.1"""
    assert set(gpus._hidden(cache.splitlines())) == {tmp_path / "linked", tmp_path / "driver"}


def command(tmp_path: Path, count: int) -> Command:
    return Command(("/usr/bin/python3",), tmp_path, Path(sys.executable), LIMITS, gpus=count)


def test_a_container_asks_for_a_gpu_only_where_its_step_needs_one(tmp_path: Path) -> None:
    engine = Engine(Image("sha256:0", host_usr=True), runtime="", cpus=2, api="1.41")
    host = configuration(engine, command(tmp_path, 1))["HostConfig"]
    gpu = ["gpu", "compute", "utility"]
    assert host["DeviceRequests"] == [{"Driver": "nvidia", "Count": 1, "Capabilities": [gpu]}]
    assert not {"Devices", "Privileged", "CapAdd"} & host.keys()
    chosen = replace(engine, gpus=("GPU-1b", "GPU-2c"))
    host = configuration(chosen, command(tmp_path, 1))["HostConfig"]
    assert host["DeviceRequests"] == [{"Driver": "nvidia", "DeviceIDs": ["GPU-1b"], "Capabilities": [gpu]}]
    with_one = json.loads(host["SecurityOpt"][1].removeprefix("seccomp="))
    for without in (configuration(chosen, command(tmp_path, 0)), giving_back(chosen, command(tmp_path, 1))):
        assert "DeviceRequests" not in without["HostConfig"]
        profile = json.loads(without["HostConfig"]["SecurityOpt"][1].removeprefix("seccomp="))
        more = [rule for rule in with_one["syscalls"] if rule not in profile["syscalls"]]
        assert [rule["names"] for rule in more] == [["ioctl"]] * 4
        assert all(rule["args"][0]["op"] == "SCMP_CMP_MASKED_EQ" for rule in more)


@pytest.mark.docker
@pytest.mark.sandbox
@pytest.mark.parametrize("sandbox", ["docker"], indirect=True)
def test_an_engine_without_the_container_toolkit_says_what_to_install(box: Any, tmp_path: Path) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ToolchainMissing, match=r"gives no GPU to the step: .*device driver.*nvidia") as refused:
        execute(box.sandbox, tmp_path / "gpu", count=1)
    assert "Container Toolkit" in refused.value.hint
    assert json.loads(execute(box.sandbox, tmp_path / "without").log) == [[], ["EPERM"] * 5]


def test_a_pod_that_waits_for_a_gpu_says_so() -> None:
    message = "Unschedulable: 0/3 nodes are available: 3 Insufficient example.com/mig-1g.5gb. preemption: none"
    assert "node that has example.com/mig-1g.5gb free" in too_late(Sight("pending", waits_for=message)).hint
    assert "MODELIUM_STEP_MEMORY_BYTES" in too_late(Sight("pending", waits_for="3 Insufficient memory.")).hint


def test_the_gpus_of_the_settings_reach_child_processes() -> None:
    chosen = load({"MODELIUM_SANDBOX_GPUS": "1, GPU-2c"}, sandbox_gpus="1, GPU-2c")
    assert chosen.sandbox_gpus == ("1", "GPU-2c")
    assert chosen.environment()["MODELIUM_SANDBOX_GPUS"] == "1,GPU-2c"
    for wrong in ({"sandbox_gpus": "../null"}, {"kubernetes_gpu_resource": "gpu"}):
        with pytest.raises(UsageError):
            load({}, **wrong)


@pytest.mark.sandbox
def test_the_doctor_says_whether_steps_that_need_a_gpu_can_run(
    devices: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = doctor._gpu(Context(settings))
    assert found.level == "ok" and "the driver's library can't be loaded" in found.found, found
    (devices / "nvidiactl").unlink()
    found = doctor._gpu(Context(settings))
    assert found.level == "ok" and found.found.endswith("/dev/nvidiactl. Nothing here needs one."), found
    target = TargetProfile(runtime=Runtime.TRITON_TENSORRT, hardware="gpu")
    found = doctor._gpu(Context(settings.model_copy(update={"target": target})))
    assert found.level == "warn" and "--gpus" in found.mend, found


@pytest.mark.gpu
@pytest.mark.sandbox
def test_cuda_starts_in_a_step_that_needs_a_gpu() -> None:
    if not Path("/dev/nvidiactl").exists():
        pytest.skip("an NVIDIA GPU is not here: it has no /dev/nvidiactl")
    assert gpus_in(find_sandbox(), Path(sys.executable)) == 1
