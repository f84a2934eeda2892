from __future__ import annotations

import pytest

from modelium.isolation_policy import IsolationPolicy
from modelium.settings import Settings
from schemas.descriptor import Format, ModelDescriptor
from schemas.errors import SandboxUnavailable
from schemas.sidecar import ModuleSource, Sidecar
from schemas.step_run import Isolation

OWN_CODE = Sidecar(module=ModuleSource(file="net.py", class_name="Net"))
PICKLE = ModelDescriptor(artifact_sha256="0" * 64, size_bytes=1, format=Format.SKLEARN)
ONNX = PICKLE.model_copy(update={"format": Format.ONNX})
HELD = Isolation(
    backend="bubblewrap",
    own_user=True,
    no_network=True,
    read_only_root=True,
    own_pids=True,
    seccomp=True,
    memory="rlimit",
    processes="rlimit",
    cpu="rlimit",
)
WITH_MEMORY = ("own_user", "no_network", "read_only_root", "own_pids", "seccomp", "memory")


def test_by_default_the_five_that_hold_everywhere_are_enough() -> None:
    for sidecar, descriptor in ((OWN_CODE, None), (None, PICKLE), (None, ONNX), (None, None)):
        IsolationPolicy().check(HELD, "probe", sidecar, descriptor)


@pytest.mark.parametrize(
    ("kind", "sidecar", "descriptor", "refused"),
    [
        ("probe", OWN_CODE, ONNX, "own code"),
        ("probe", None, PICKLE, "a pickle"),
        ("probe", None, ONNX, None),
        ("analyze", OWN_CODE, None, None),
        ("unpack", OWN_CODE, None, None),
    ],
)
def test_a_bound_without_a_control_group_is_refused_where_it_is_required(kind, sidecar, descriptor, refused) -> None:
    policy = IsolationPolicy(own_code=WITH_MEMORY, pickle=WITH_MEMORY)
    if refused is None:
        policy.check(HELD, kind, sidecar, descriptor)
        return
    with pytest.raises(SandboxUnavailable, match=f"{refused}.*does not enforce: memory") as error:
        policy.check(HELD, kind, sidecar, descriptor)
    assert "MODELIUM_REQUIRE_ISOLATION" in error.value.hint
    policy.check(HELD.model_copy(update={"memory": "cgroup-v2"}), kind, sidecar, descriptor)


def test_what_is_missing_everywhere_is_what_no_sandbox_may_lack() -> None:
    policy = IsolationPolicy(weights=("no_network", "own_user"), pickle=("no_network",))
    assert policy.least == {"no_network"}
    policy.check(HELD.model_copy(update={"seccomp": False}), "probe", None, ONNX)
    with pytest.raises(SandboxUnavailable, match="seccomp"):
        policy.check(HELD.model_copy(update={"seccomp": False}), "probe", OWN_CODE, ONNX)


def test_an_operator_who_insists_on_no_isolation_is_not_asked_again() -> None:
    nothing = dict.fromkeys(("own_user", "no_network", "read_only_root", "own_pids", "seccomp"), False)
    IsolationPolicy().check(HELD.model_copy(update={"backend": "none", **nothing}), "probe", OWN_CODE, ONNX)


def test_the_policy_is_a_setting_that_children_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = IsolationPolicy(own_code=WITH_MEMORY)
    for name, value in Settings(require_isolation=policy).environment().items():
        monkeypatch.setenv(name, value)
    assert Settings().require_isolation == policy
