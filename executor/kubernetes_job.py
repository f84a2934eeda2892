"""Renders one step as a Kubernetes Job whose pod satisfies the Pod Security Standard "restricted"."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor.inside import OPEN_FILES, PACKAGES, ROOT, cpu_seconds, environment, shm_bytes, tmp_bytes
from executor.sandbox import OUT, PROGRESS_MARK_VARIABLE, SANDBOX_UID, Command
from schemas.errors import UsageError
from schemas.step_io import STEP_FILE
from schemas.step_run import Limits

Manifest = dict[str, Any]

CONTAINER = "step"
LABELS = {"app.kubernetes.io/managed-by": "modelium", "app.kubernetes.io/component": "step-sandbox"}
"""What the network policy, the sweep and nobody else selects by."""
NAME_LABEL = "modelium/step"
WORKSPACE_ANNOTATION = "modelium/workspace"

EPHEMERAL_BYTES = 256 << 20
"""The root is read-only and other folders are memory or the claim: what is left is the log, which kubelets rotate."""
PENDING_S = 180
"""How long a pod may wait for a node and its image."""
_GRACE_S = 30
_KEEP_S = 300
_TERMINATION_S = 1
"""Not 0: that removes the pod from the API before its node has ended it, and "gone" would mean nothing."""
_SHARED_UID_FACTOR = 16
"""The kernel counts RLIMIT_NPROC for a uid on the whole node, and steps share theirs."""
# Process 1 of a container ignores signals that it has no handler for and is nobody's child: a shell stands in, reaps,
# and ends with the status that bubblewrap would give.
_INIT = '"$@"; exit $?'
_IMAGE_BY_DIGEST = re.compile(r"[a-z0-9][a-zA-Z0-9._:/-]*@sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Placement:
    """Where in a cluster steps run, and of what. The root of ``claim`` is what the worker sees at ``home``."""

    namespace: str
    image: str
    claim: str
    home: Path
    runtime_class: str = ""
    seccomp_profile: str = ""
    """A profile below the kubelet's seccomp folder; empty: the container runtime's default."""
    gpu_resource: str = "nvidia.com/gpu"

    def __post_init__(self) -> None:
        if not _IMAGE_BY_DIGEST.fullmatch(self.image):
            raise UsageError(
                f"The image of steps is not named by its digest: {self.image or 'none is set'}.",
                hint="Set MODELIUM_SANDBOX_IMAGE to NAME@sha256:DIGEST, so that every node runs the same bytes.",
            )
        if not self.claim:
            raise UsageError(
                "No claim is set that workers and steps share.",
                hint="Set MODELIUM_KUBERNETES_WORKSPACE_CLAIM to the ReadWriteMany claim mounted at MODELIUM_HOME.",
            )

    def below(self, path: Path) -> str:
        """Return ``path`` relative to the claim's root. Raises ValueError when it is elsewhere."""
        return path.resolve().relative_to(self.home).as_posix()


def job(
    command: Command, placement: Placement, *, name: str, packages: Path, inputs: Mapping[str, Path], mark: str
) -> Manifest:
    """Return the Job that runs ``command``.

    Args:
        name: A DNS label, new for every run.
        packages: The folder on the claim with our packages.
        inputs: Where on the claim each input of the command is.
        mark: What a line of the log that reports progress begins with.
    """
    limits = command.limits
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": placement.namespace,
            "labels": {**LABELS, NAME_LABEL: name},
            "annotations": {WORKSPACE_ANNOTATION: placement.below(command.workspace)},
        },
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            # The worker ends a step that takes too long; this ends it when the worker has died.
            "activeDeadlineSeconds": math.ceil(limits.timeout_s) + PENDING_S + _GRACE_S,
            "ttlSecondsAfterFinished": _KEEP_S,
            "podReplacementPolicy": "Failed",
            "template": {
                "metadata": {"labels": {**LABELS, NAME_LABEL: name}},
                "spec": _pod(command, placement, packages=packages, inputs=inputs, mark=mark),
            },
        },
    }


def _pod(command: Command, placement: Placement, *, packages: Path, inputs: Mapping[str, Path], mark: str) -> Manifest:
    limits, resources = command.limits, _resources(command, placement)
    pod: Manifest = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "hostNetwork": False,
        "hostPID": False,
        "hostIPC": False,
        "shareProcessNamespace": False,
        "terminationGracePeriodSeconds": _TERMINATION_S,
        # Nothing can be asked, and the names of the cluster's own are nobody's business.
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["127.0.0.1"]},
        # No fsGroup: the kubelet would walk the whole shared claim for it at every start.
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": SANDBOX_UID,
            "runAsGroup": SANDBOX_UID,
            "seccompProfile": _seccomp(placement.seccomp_profile),
        },
        "containers": [
            {
                "name": CONTAINER,
                "image": placement.image,
                "imagePullPolicy": "IfNotPresent",
                "workingDir": str(ROOT),
                "command": [_literal(word) for word in (*_rlimits(limits), "/bin/sh", "-c", _INIT, "sh")],
                "args": [_literal(word) for word in command.argv],
                "env": [{"name": k, "value": _literal(v)} for k, v in _environment(command, mark).items()],
                "resources": {"requests": resources, "limits": resources},
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "privileged": False,
                    "procMount": "Default",
                    "readOnlyRootFilesystem": True,
                },
                "volumeMounts": list(_mounts(command, placement, packages, inputs)),
            }
        ],
        "volumes": [
            {"name": "home", "persistentVolumeClaim": {"claimName": placement.claim}},
            _memory("tmp", tmp_bytes(limits)),
            _memory("shm", shm_bytes(limits)),
        ],
    }
    if command.gpus:  # nodes with GPUs are, as a rule, kept free of pods that need none
        pod["tolerations"] = [{"key": placement.gpu_resource, "operator": "Exists"}]
    if placement.runtime_class:
        pod["runtimeClassName"] = placement.runtime_class
    return pod


def _mounts(command: Command, placement: Placement, packages: Path, inputs: Mapping[str, Path]) -> list[Manifest]:
    shown = [(packages, PACKAGES), *((source, ROOT / "in" / name) for name, source in inputs.items())]
    if (command.workspace / STEP_FILE).exists():
        shown.append((command.workspace / STEP_FILE, ROOT / STEP_FILE))
    out = placement.below(command.workspace / OUT)
    return [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
        *({"name": "home", "mountPath": str(at), "subPath": placement.below(p), "readOnly": True} for p, at in shown),
        {"name": "home", "mountPath": str(ROOT / OUT), "subPath": out},
    ]


def _memory(name: str, size_bytes: int) -> Manifest:
    return {"name": name, "emptyDir": {"medium": "Memory", "sizeLimit": str(size_bytes)}}


def _resources(command: Command, placement: Placement) -> dict[str, str]:
    limits = command.limits
    return {
        "cpu": f"{math.ceil(limits.cpus * 1000)}m",
        "memory": str(limits.memory_bytes),
        "ephemeral-storage": str(EPHEMERAL_BYTES),
        **({placement.gpu_resource: str(command.gpus)} if command.gpus else {}),
    }


def _seccomp(profile: str) -> dict[str, str]:
    return {"type": "Localhost", "localhostProfile": profile} if profile else {"type": "RuntimeDefault"}


def _rlimits(limits: Limits) -> tuple[str, ...]:
    return (
        *("/usr/bin/prlimit", "--core=0", f"--nofile={OPEN_FILES}", f"--fsize={limits.workspace_bytes}"),
        *(f"--nproc={limits.processes * _SHARED_UID_FACTOR}", f"--cpu={cpu_seconds(limits)}", "--"),
    )


def _environment(command: Command, mark: str) -> dict[str, str]:
    return {**environment(command, 2), PROGRESS_MARK_VARIABLE: mark}


def _literal(text: str) -> str:
    """Return ``text`` so that the kubelet, which replaces ``$(NAME)``, gives the container exactly it."""
    return text.replace("$", "$$")
