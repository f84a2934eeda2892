from __future__ import annotations

import copy
import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from executor.kubernetes_job import LABELS, Placement, job
from executor.kubernetes_namespace import manifests, open_directions
from executor.sandbox import Command
from schemas.errors import UsageError
from schemas.step_run import Limits

RESTRICTED = Path(__file__).parents[2] / "tools" / "kubernetes" / "restricted.py"
violations: Callable[[dict[str, Any]], list[str]] = runpy.run_path(str(RESTRICTED))["violations"]
IMAGE = "registry.example/modelium/step@sha256:" + "a" * 64
VERSIONS = ["1.34", "1.35", "1.36", "1.37"]
QUANTITY = re.compile(r"[1-9][0-9]*m?")
LIMITS = Limits(memory_bytes=1 << 30, cpus=1.5, timeout_s=60.5, processes=64)


def rendered(tmp_path: Path, *, gpus: int = 0, **placement: str) -> dict[str, Any]:
    folder = tmp_path / "workspaces" / "step-1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "step.json").write_text("{}")
    source = tmp_path / "artifacts" / "model.onnx"
    command = Command(
        ("/usr/bin/python3", "-c", "print('$(HOME)')"), folder, Path("/usr/bin/python3"), LIMITS,
        {"model.onnx": source}, {"PRICE": "$5"}, gpus=gpus,
    )  # fmt: skip
    where = Placement(namespace="models", image=IMAGE, claim="modelium", home=tmp_path, **placement)
    return job(
        command, where, name="modelium-step-0123", packages=tmp_path / "workspaces" / "packages-1",
        inputs={"model.onnx": source}, mark="mark ",
    )  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_rendered_satisfies_the_strict_schemas_of_kubernetes(tmp_path: Path, version: str) -> None:
    steps = (rendered(tmp_path), rendered(tmp_path, runtime_class="gvisor"), rendered(tmp_path, gpus=1))
    for manifest in (*steps, *manifests("models")):
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("placement", [{}, {"runtime_class": "gvisor"}, {"seccomp_profile": "modelium/step.json"}])
def test_the_pod_satisfies_the_restricted_pod_security_standard(tmp_path: Path, placement: dict[str, str]) -> None:
    assert violations(rendered(tmp_path, **placement)["spec"]["template"]) == []


@pytest.mark.parametrize("resource", ["nvidia.com/gpu", "nvidia.com/mig-1g.5gb"])
def test_a_pod_asks_for_a_gpu_only_where_its_step_needs_one(tmp_path: Path, resource: str) -> None:
    template = rendered(tmp_path, gpus=1, gpu_resource=resource)["spec"]["template"]
    asked = template["spec"]["containers"][0]["resources"]
    assert asked["limits"][resource] == asked["requests"][resource] == "1"
    assert template["spec"]["tolerations"] == [{"key": resource, "operator": "Exists"}]
    assert violations(template) == []
    without = rendered(tmp_path, gpu_resource=resource)["spec"]["template"]["spec"]
    assert resource not in json.dumps(without) and "tolerations" not in without


BROKEN: dict[str, Callable[[dict[str, Any], dict[str, Any]], object]] = {
    "HostProcess": lambda pod, c: c["securityContext"].update(windowsOptions={"hostProcess": True}),
    "Host Namespaces: hostNetwork": lambda pod, c: pod.update(hostNetwork=True),
    "Host Namespaces: hostPID": lambda pod, c: pod.update(hostPID=True),
    "Host Namespaces: hostIPC": lambda pod, c: pod.update(hostIPC=True),
    "Privileged Containers": lambda pod, c: c["securityContext"].update(privileged=True),
    "Capabilities: ALL is not dropped": lambda pod, c: c["securityContext"].update(capabilities={}),
    "Capabilities: added": lambda pod, c: c["securityContext"]["capabilities"].update(add=["SYS_PTRACE"]),
    "Volume Types: hostPath": lambda pod, c: pod["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
    "Volume Types: nfs": lambda pod, c: pod["volumes"].append({"name": "x", "nfs": {"server": "s", "path": "/"}}),
    "Host Ports": lambda pod, c: c.update(ports=[{"containerPort": 1, "hostPort": 1}]),
    "Host Probes and Lifecycle Hooks": lambda pod, c: c.update(livenessProbe={"httpGet": {"host": "a", "port": 1}}),
    "AppArmor": lambda pod, c: c["securityContext"].update(appArmorProfile={"type": "Unconfined"}),
    "SELinux": lambda pod, c: pod["securityContext"].update(seLinuxOptions={"user": "root"}),
    "/proc Mount Type": lambda pod, c: c["securityContext"].update(procMount="Unmasked"),
    "Seccomp": lambda pod, c: pod["securityContext"].pop("seccompProfile"),
    "Seccomp: Unconfined": lambda pod, c: c["securityContext"].update(seccompProfile={"type": "Unconfined"}),
    "Sysctls: kernel.msgmax": lambda pod, c: pod["securityContext"].update(
        sysctls=[{"name": "kernel.msgmax", "value": "1"}]
    ),
    "Privilege Escalation": lambda pod, c: c["securityContext"].pop("allowPrivilegeEscalation"),
    "Running as Non-root": lambda pod, c: pod["securityContext"].pop("runAsNonRoot"),
    "Running as Non-root user": lambda pod, c: pod["securityContext"].update(runAsUser=0),
}


@pytest.mark.parametrize("item", BROKEN)
def test_the_check_of_the_standard_sees_each_item_broken(tmp_path: Path, item: str) -> None:
    template = copy.deepcopy(rendered(tmp_path)["spec"]["template"])
    BROKEN[item](template["spec"], template["spec"]["containers"][0])
    assert item in violations(template)


def test_selectors_find_what_they_are_meant_for(tmp_path: Path) -> None:
    manifest = rendered(tmp_path)
    labels = manifest["spec"]["template"]["metadata"]["labels"]
    policy = next(m for m in manifests("models") if m["kind"] == "NetworkPolicy")
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert {m["metadata"].get("namespace", m["metadata"]["name"]) for m in manifests("models")} == {"models"}
    role, binding, account = (
        next(m for m in manifests("models") if m["kind"] == kind) for kind in ("Role", "RoleBinding", "ServiceAccount")
    )
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == account["metadata"]["name"]
    pod = manifest["spec"]["template"]["spec"]
    assert {m["name"] for m in pod["containers"][0]["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


def test_names_labels_and_quantities_are_ones_that_an_api_server_takes(tmp_path: Path) -> None:
    manifest = rendered(tmp_path)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,55}[a-z0-9])?", manifest["metadata"]["name"])
    for value in manifest["metadata"]["labels"].values():
        assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", value)
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert all(QUANTITY.fullmatch(value) for value in container["resources"]["limits"].values())
    assert container["resources"]["limits"]["cpu"] == "1500m"
    assert isinstance(manifest["spec"]["activeDeadlineSeconds"], int)


def test_only_out_is_writable_and_only_parts_of_the_claim_are_seen(tmp_path: Path) -> None:
    container = rendered(tmp_path)["spec"]["template"]["spec"]["containers"][0]
    mounts = {m["mountPath"]: m for m in container["volumeMounts"] if m["name"] == "home"}
    assert [at for at, mount in mounts.items() if not mount.get("readOnly")] == ["/step/out"]
    assert all(mount["subPath"] and ".." not in mount["subPath"] for mount in mounts.values())
    assert mounts["/step/in/model.onnx"]["subPath"] == "artifacts/model.onnx"


def test_the_pod_has_no_token_no_service_names_and_no_name_server(tmp_path: Path) -> None:
    pod = rendered(tmp_path)["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["dnsPolicy"] == "None"


def test_dollar_signs_reach_the_program_as_they_are(tmp_path: Path) -> None:
    container = rendered(tmp_path)["spec"]["template"]["spec"]["containers"][0]
    assert container["args"][-1] == "print('$$(HOME)')"
    assert {"name": "PRICE", "value": "$$5"} in container["env"]


def test_the_worker_may_not_do_more_than_it_asks(tmp_path: Path) -> None:
    role = next(m for m in manifests("models") if m["kind"] == "Role")
    rights = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    assert "*" not in json.dumps(role)
    assert not {r for r, _ in rights} & {"secrets", "pods/exec", "roles", "rolebindings", "serviceaccounts"}
    assert {r for r, verb in rights if verb not in ("get", "list")} == {"jobs"}


def test_an_image_without_a_digest_is_refused(tmp_path: Path) -> None:
    for image in ("", "modelium/step", "modelium/step:1.0", "modelium/step@sha256:abc"):
        with pytest.raises(UsageError, match="digest"):
            Placement(namespace="models", image=image, claim="modelium", home=tmp_path)


def policy(selector: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"spec": {"podSelector": selector, **spec}}


DENY = next(m for m in manifests("models") if m["kind"] == "NetworkPolicy")
NOT_OURS = [{"key": key, "operator": "NotIn", "values": [value]} for key, value in LABELS.items()]
ALL_OUT = [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}]


@pytest.mark.parametrize(
    ("policies", "left"),
    [
        ([], {"Ingress", "Egress"}),
        ([DENY], set()),
        ([policy({}, policyTypes=["Ingress"])], {"Egress"}),
        ([policy({})], {"Egress"}),
        ([policy({"matchLabels": {"app": "other"}}, policyTypes=["Ingress", "Egress"])], {"Ingress", "Egress"}),
        ([DENY, policy({}, policyTypes=["Egress"], egress=ALL_OUT)], {"Egress"}),
        ([DENY, policy({}, egress=[{}])], {"Egress"}),
        ([DENY, policy({"matchExpressions": [{"key": "job-name", "operator": "Exists"}]}, ingress=[{}])], {"Ingress"}),
        (
            [
                DENY,
                policy({"matchExpressions": NOT_OURS}, egress=ALL_OUT),
            ],
            set(),
        ),
    ],
)  # fmt: skip
def test_policies_that_leave_a_way_open_are_seen(policies: list[dict[str, Any]], left: set[str]) -> None:
    assert open_directions(policies) == left
