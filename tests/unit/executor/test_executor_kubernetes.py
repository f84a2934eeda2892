"""The Kubernetes sandbox against a stand-in for a cluster; what of it is real stands in tests/tools/kubernetes."""

from __future__ import annotations

import json
import os
import runpy
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from executor import find_sandbox, kubernetes_run, run
from executor.kubernetes_cluster import Cluster
from executor.kubernetes_job import Placement
from executor.kubernetes_namespace import manifests
from executor.kubernetes_sandbox import KubernetesSandbox
from executor.sandbox import NO_OBSERVERS, Command, Ending, Observers
from executor.step_spec import StepSpec
from executor.toolchain import Toolchain
from executor.workspace import Workspace
from modelium import doctor
from modelium.context import Context
from modelium.settings import Settings
from schemas.errors import Cancelled, LimitExceeded, SandboxCrashed, SandboxUnavailable
from schemas.step_io import StepRequest
from schemas.step_run import Limits

TOOLS = Path(__file__).parents[2] / "tools" / "kubernetes"
StandIn = runpy.run_path(str(TOOLS / "stand_in.py"))["StandIn"]
violations = runpy.run_path(str(TOOLS / "restricted.py"))["violations"]
IMAGE = "registry.example/modelium/step@sha256:" + "a" * 64
LIMITS = Limits(
    memory_bytes=256 << 20, cpus=1, processes=32, timeout_s=20, workspace_bytes=16 << 20, workspace_files=500,
    log_bytes=64 << 10,
)  # fmt: skip
Play = Callable[[Any], None]


@pytest.fixture(autouse=True)
def _node() -> None:
    if os.geteuid() != 0 and not os.environ.get("CI"):
        pytest.skip("the stand-in's node runs pods as root does: run the tests as root")
    try:
        find_sandbox()
    except SandboxUnavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@dataclass
class Cloud:
    """A stand-in cluster with a sandbox in it."""

    cluster: Any
    sandbox: KubernetesSandbox
    workspaces: Path
    api: Cluster

    def __call__(
        self, code: str, observers: Observers = NO_OBSERVERS, inputs: dict[str, Path] | None = None, **limits: float
    ) -> Ending:
        self.folder = Workspace(self.workspaces)
        argv = (sys.executable, "-I", "-S", "-u", "-c", code)
        command = Command(
            argv, self.folder.path, Path(sys.executable), LIMITS.model_copy(update=limits), inputs or {}, {}
        )
        try:
            return self.sandbox.execute(command, observers)
        finally:
            # The folder goes when the test has looked at it.
            assert self.cluster.jobs == {}
            assert self.cluster.pods == {}

    @property
    def out(self) -> Path:
        return self.folder.path / "out"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests: our packages are put there once."""
    home = tmp_path_factory.mktemp("home").resolve()
    (home / "workspaces").mkdir()
    (home / "artifacts").mkdir()
    return home


@pytest.fixture
def cloud(home: Path) -> Iterator[Cloud]:
    from kubernetes import client

    workspaces = home / "workspaces"
    cluster = StandIn(home, manifests("models"), violations)
    settings = client.Configuration(host=cluster.url)
    settings.retries = 0
    api = Cluster("models", client.ApiClient(settings))
    placement = Placement(namespace="models", image=IMAGE, claim="modelium", home=home)
    yield Cloud(cluster, KubernetesSandbox(api, placement, workspaces), workspaces, api)
    cluster.close()
    api.client.rest_client.pool_manager.clear()


def meanwhile(cloud: Cloud, *steps: Callable[[], object]) -> None:
    """Do ``steps`` in a thread, once a pod has run for a second."""

    def follow() -> None:
        while not any(pod.status["phase"] == "Running" for pod in list(cloud.cluster.pods.values())):
            time.sleep(0.05)
        time.sleep(1)
        for step in steps:
            step()

    threading.Thread(target=follow, daemon=True).start()


def away(cloud: Cloud, for_s: float) -> Callable[[], None]:
    def leave() -> None:
        cloud.cluster.away = True
        time.sleep(for_s)
        cloud.cluster.away = False

    return leave


def test_a_program_reads_its_inputs_and_what_it_writes_to_out_comes_back(cloud: Cloud, tmp_path: Path) -> None:
    stored, elsewhere = cloud.workspaces.parent / "artifacts" / "a", tmp_path / "elsewhere"
    stored.write_text("stored")
    elsewhere.mkdir()
    (elsewhere / "b").write_text("copied")
    code = "print(open('in/x').read(), open('in/y/b').read()); open('out/r', 'w').write('done'); print('$(HOME) $$')"
    ending = cloud(code, inputs={"x": stored, "y": elsewhere})
    assert (ending.error, ending.exit_code) == (None, 0)
    assert ending.log == "stored copied\n$(HOME) $$\n"
    assert (cloud.out / "r").read_text() == "done"
    assert (cloud.out / "r").stat().st_uid == 65534
    assert ending.cpu_s is ending.peak_memory_bytes is None


@pytest.mark.parametrize(
    ("code", "status"), [("import sys; sys.exit(7)", 7), ("import os; os.abort()", 134), ("1/0", 1)]
)
def test_it_ends_with_the_status_of_the_program(cloud: Cloud, code: str, status: int) -> None:
    assert cloud(code).exit_code == status


def test_inputs_and_the_root_are_read_only(cloud: Cloud) -> None:
    stored = cloud.workspaces.parent / "a"
    stored.write_text("a")
    code = """
for path in ("in/x", "/opt/modelium/schemas/errors.py", "/usr/x", "/x", "x"):
    try:
        open(path, "w")
    except OSError as error:
        print(error.strerror)
open("/tmp/x", "w"), open("/dev/shm/x", "w")
"""
    ending = cloud(code, inputs={"x": stored})
    assert ending.exit_code == 0
    assert ending.log.count("Read-only file system") == 5


def test_links_in_what_is_copied_lead_nowhere_outside(cloud: Cloud, tmp_path: Path) -> None:
    secret, folder = tmp_path / "secret", tmp_path / "folder"
    secret.write_text("secret")
    folder.mkdir()
    (folder / "link").symlink_to(secret)
    ending = cloud("print(open('in/x/link').read())", inputs={"x": folder})
    assert "No such file or directory" in ending.log
    assert "secret\n" not in ending.log


def test_the_probe_sees_what_a_pod_enforces(cloud: Cloud) -> None:
    cloud.sandbox.check()
    found = cloud.sandbox.isolation(LIMITS)
    assert found.backend == "kubernetes"
    assert all((found.own_user, found.no_network, found.read_only_root, found.own_pids, found.seccomp))
    assert found.memory.startswith("cgroup")
    assert found.cpu.startswith("cgroup")
    assert found.processes == "rlimit"


def test_a_network_plugin_that_enforces_nothing_is_found_out(cloud: Cloud) -> None:
    kept = cloud.cluster.policies
    cloud.cluster.policies = []
    with pytest.raises(SandboxUnavailable, match="leave steps open: Egress, Ingress"):
        cloud.sandbox.check()
    assert not cloud.sandbox.isolation(LIMITS).no_network
    cloud.cluster.policies = kept


def test_a_real_step_gives_its_result_and_its_progress(cloud: Cloud, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes((2).to_bytes(8, "little") + b"{}")
    request = StepRequest(kind="analyze", inputs={"model": "in/model"}, threads=1, seed=0)
    spec = StepSpec(request, Toolchain("onnx"), {"model": model}, LIMITS.model_copy(update={"memory_bytes": 1 << 30}))
    with run(spec, workspaces=cloud.workspaces, sandbox=cloud.sandbox) as output:
        assert output.isolation.backend == "kubernetes"
        assert output.result.ok or output.result.error is not None
        assert output.result.run_s
    assert len({job["metadata"]["name"] for job in cloud.cluster.created}) == len(cloud.cluster.created)


def test_progress_is_taken_out_of_the_log(cloud: Cloud) -> None:
    heard: list[tuple[float, str]] = []
    code = """
import os, time
mark = os.environ["MODELIUM_PROGRESS_MARK"]
for step in range(4):
    os.write(2, f'{mark}{{"fraction": {step / 4}, "message": "part {step}"}}\\n'.encode())
    print("line", step)
    time.sleep(0.3)
os.write(2, b"half a line, then " + mark.encode() + b'{"fraction": 1, "message": "all"}\\n')
os.write(2, mark.encode() + b"nonsense\\nend")
"""
    ending = cloud(code, Observers(on_progress=lambda fraction, message: heard.append((fraction, message))))
    assert ending.log == "line 0\nline 1\nline 2\nline 3\nhalf a line, then end"
    assert heard[-1] == (1.0, "all")
    assert len(heard) >= 3


def test_the_log_arrives_while_the_program_runs(cloud: Cloud) -> None:
    began, heard = time.monotonic(), list[float]()
    cloud("import time; print('early'); time.sleep(3)", Observers(on_log=lambda text: heard.append(time.monotonic())))
    assert heard
    assert time.monotonic() - heard[0] > 1
    assert heard[0] > began


def test_a_flood_of_log_is_cut(cloud: Cloud) -> None:
    ending = cloud("import os\nfor _ in range(4000): os.write(1, b'x' * 10000 + b'\\n')")
    assert len(ending.log) < 70_000
    assert "The log was cut at 65536 bytes" in ending.log


def test_a_step_that_takes_too_long_is_ended(cloud: Cloud) -> None:
    ending = cloud("while True: pass", timeout_s=2)
    assert isinstance(ending.error, LimitExceeded)
    assert ending.error.facts["limit"] == 2
    assert "longer than 2 s" in str(ending.error)


def test_a_cancelled_step_is_ended(cloud: Cloud) -> None:
    ending = cloud("import time; time.sleep(60)", Observers(should_stop=lambda: cloud.cluster.pods != {}))
    assert isinstance(ending.error, Cancelled)


def test_a_memory_bomb_is_a_limit_with_its_number(cloud: Cloud) -> None:
    ending = cloud("x = bytearray(1 << 30)\nfor i in range(0, len(x), 4096): x[i] = 1")
    assert isinstance(ending.error, LimitExceeded)
    assert ending.error.facts["limit"] == LIMITS.memory_bytes
    assert "256 MiB" in str(ending.error)


def test_a_full_tmp_and_a_full_out_are_limits(cloud: Cloud) -> None:
    code = "for i in range(9): open(f'/tmp/{i}', 'wb').write(b'x' * (8 << 20))"
    assert "No space left on device" in cloud(code).log
    code = "import time\nfor i in range(4): open(f'out/{i}', 'wb').write(b'x' * (6 << 20))\ntime.sleep(30)"
    ending = cloud(code)
    assert isinstance(ending.error, LimitExceeded)
    assert "bytes in its workspace" in str(ending.error)


def test_processes_are_bounded_and_end_with_the_pod(cloud: Cloud) -> None:
    code = """
import os, time
children = 0
try:
    while children < 2000:
        if os.fork() == 0:
            os.setsid()
            time.sleep(600)
        children += 1
except OSError as error:
    print(children, error.strerror)
os._exit(0)
"""
    ending = cloud(code)
    assert "Resource temporarily unavailable" in ending.log
    assert int(ending.log.split()[0]) <= LIMITS.processes * 16


def status(phase: str = "Pending", **fields: Any) -> Play:
    def play(pod: Any) -> None:
        pod.status = {"phase": phase, **fields}
        if phase == "Failed":
            pod.over.set()
        pod.over.wait(60)

    return play


def waiting(reason: str, message: str) -> Play:
    return status(containerStatuses=[{"state": {"waiting": {"reason": reason, "message": message}}}])


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "ErrImageNeverPull", "CreateContainerConfigError"])
def test_a_pod_that_can_never_start_is_refused_with_the_reason(cloud: Cloud, reason: str) -> None:
    cloud.cluster.play = waiting(reason, 'Back-off pulling image "registry.example/modelium"')
    with pytest.raises(SandboxUnavailable, match=f"{reason}: Back-off pulling"):
        cloud("pass")


def test_a_pod_that_finds_no_node_says_why_and_is_tried_again(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_run, "PENDING_S", 2)
    cloud.cluster.play = status(
        conditions=[
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
             "message": "0/3 nodes are available: 3 Insufficient memory."}
        ]
    )  # fmt: skip
    ending = cloud("pass")
    assert isinstance(ending.error, SandboxCrashed)
    assert ending.error.retryable
    assert "Unschedulable: 0/3 nodes are available" in str(ending.error)


def test_a_volume_that_cannot_be_mounted_is_told_by_its_event(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_run, "PENDING_S", 2)

    def play(pod: Any) -> None:
        pod.container("Pending", waiting={"reason": "ContainerCreating"})
        cloud.cluster.event(pod.name, "FailedMount", 'persistentvolumeclaim "modelium" not found')
        pod.over.wait(60)

    cloud.cluster.play = play
    assert "FailedMount: persistentvolumeclaim" in str(cloud("pass").error)


def test_a_namespace_without_room_waits_and_one_that_forbids_refuses(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_run, "PENDING_S", 2)
    cloud.cluster.refuse = "exceeded quota: models, requested: limits.memory=8Gi"
    ending = cloud("pass")
    assert isinstance(ending.error, SandboxCrashed)
    assert "exceeded quota" in str(ending.error)
    cloud.cluster.refuse = 'violates PodSecurity "restricted:latest"'
    with pytest.raises(SandboxUnavailable, match="violates PodSecurity"):
        cloud("pass")


def test_an_evicted_pod_is_a_limit_when_it_took_too_much_and_lost_when_the_node_did(cloud: Cloud) -> None:
    cloud.cluster.play = status(
        "Failed", reason="Evicted", message="Pod ephemeral local storage usage exceeds the total limit of 256Mi."
    )
    assert isinstance(cloud("pass").error, LimitExceeded)
    cloud.cluster.play = status("Failed", reason="Evicted", message="The node was low on resource: memory.")
    ending = cloud("pass")
    assert isinstance(ending.error, SandboxCrashed)
    assert ending.error.retryable


def test_a_lost_node_loses_the_step_and_it_is_tried_again(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_run, "_LOG_S", 0.5)
    cloud.cluster.play = status("Running", conditions=[{"type": "Ready", "reason": "NodeStatusUnknown"}])
    ending = cloud("pass")
    assert isinstance(ending.error, SandboxCrashed)
    assert "node no longer answers" in str(ending.error)


def test_a_pod_that_somebody_deletes_loses_the_step(cloud: Cloud) -> None:
    meanwhile(cloud, lambda: cloud.cluster.delete(next(iter(cloud.cluster.jobs))))
    ending = cloud("import time; time.sleep(60)")
    assert isinstance(ending.error, SandboxCrashed)


def test_a_step_survives_an_api_server_that_restarts(cloud: Cloud) -> None:
    meanwhile(cloud, away(cloud, 2))
    ending = cloud("import time\nfor i in range(10): print(i); time.sleep(0.5)")
    assert (ending.error, ending.exit_code) == (None, 0)
    assert ending.log.split() == [str(i) for i in range(10)]


def test_an_api_server_that_stays_away_ends_the_wait_with_a_step_to_try_again(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_run, "_AWAY_S", 1)
    meanwhile(cloud, away(cloud, 4))
    ending = cloud("import time; time.sleep(60)")
    assert isinstance(ending.error, SandboxCrashed)
    assert ending.error.retryable
    assert "has not answered" in str(ending.error)


def test_a_worker_without_its_rights_says_what_to_apply(cloud: Cloud) -> None:
    cloud.cluster.role["rules"] = [r for r in cloud.cluster.role["rules"] if r["resources"] != ["networkpolicies"]]
    with pytest.raises(SandboxUnavailable, match="cannot list resource") as caught:
        cloud.sandbox.check()
    assert "modelium kubernetes" in caught.value.hint


def test_the_jobs_of_dead_workers_are_swept_and_those_of_living_ones_are_not(cloud: Cloud) -> None:
    endings = list[Ending]()
    living = threading.Thread(target=lambda: endings.append(cloud("import time; time.sleep(4)")))
    living.start()
    while not cloud.cluster.pods:
        time.sleep(0.05)
    orphan = cloud.cluster.created[0] | {
        "metadata": cloud.cluster.created[0]["metadata"]
        | {
            "name": "modelium-step-orphan",
            "annotations": {"modelium/workspace": "workspaces/step-1-dead"},
            "labels": cloud.cluster.created[0]["metadata"]["labels"] | {"modelium/step": "modelium-step-orphan"},
        }
    }
    cloud.api.create_job(orphan)
    assert cloud.sandbox.sweep() == 1
    assert "modelium-step-orphan" not in cloud.cluster.jobs
    assert len(cloud.cluster.jobs) == 1
    living.join()
    assert endings[0].exit_code == 0


def test_the_settings_lead_to_a_sandbox_that_was_seen_to_isolate(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": cloud.cluster.url}}],
        "users": [{"name": "worker", "user": {"token": "none"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "worker"}}],
    }  # fmt: skip
    (tmp_path / "config").write_text(json.dumps(config))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    settings = Settings(
        home=cloud.workspaces.parent, sandbox="kubernetes", sandbox_image=IMAGE, kubernetes_workspace_claim="modelium",
        namespace="models",
    )  # fmt: skip
    context = Context(settings)
    check = next(check for check in doctor.examine(context) if check.name == "isolation")
    assert check.level == "ok"
    assert check.found.startswith("kubernetes: memory by cgroup")
    assert "podPidsLimit" in check.mend
    assert cloud.cluster.jobs == {}
