"""Reads from what the API server says of a pod how far it is, and why it ended or never began."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from executor.kubernetes_job import EPHEMERAL_BYTES, PENDING_S, Manifest
from executor.stops import out_of_memory, out_of_time
from schemas.errors import LimitExceeded, ModeliumError, SandboxCrashed, SandboxUnavailable
from schemas.step_run import Limits

_HOPELESS = frozenset(
    {
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ImageInspectError",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
        "StartError",
    }
)
"""Reasons why a container does not start that waiting does not mend. ErrImagePull is not among them: it is tried again,
and becomes ImagePullBackOff."""
_DEVICE = re.compile(r"Insufficient ([\w.-]+/[\w.-]*\w)")
"""What a scheduler says of a resource that only device plugins offer: no other has a slash in its name."""
_MORE_MEMORY = "Raise step_memory_bytes (MODELIUM_STEP_MEMORY_BYTES), or use a smaller model."
_AGAIN = "The step is run again; if it stays so, look at the namespace's events (kubectl get events)."


@dataclass(frozen=True)
class Sight:
    """What was seen of a step's pod. ``error`` is set when nothing better is to come of it."""

    state: Literal["pending", "running", "ended"]
    error: ModeliumError | None = None
    exit_code: int = -1
    waits_for: str = ""
    """Why it does not run yet, in the cluster's words."""


def see(pod: Manifest | None, events: list[Manifest], limits: Limits) -> Sight:
    """Return what ``pod``, the newest of a Job or None, and the ``events`` of it and its Job say."""
    if pod is None:
        return _unborn(events)
    status = pod.get("status", {})
    container = (status.get("containerStatuses") or [{}])[0]
    state = container.get("state", {})
    if (error := _lost(pod)) is not None:
        return Sight("ended", error)
    if status.get("phase") == "Failed" and status.get("reason"):
        return Sight("ended", _ended_by_the_node(status, limits))
    if "terminated" in state:
        return _terminated(state["terminated"], limits)
    if status.get("phase") in ("Succeeded", "Failed"):
        return Sight("ended", _vanished(f"its pod {status['phase'].lower()} without saying how"))
    if "running" in state:
        return Sight("running")
    waiting = state.get("waiting", {})
    reason = waiting.get("reason", "")
    told = f"{reason}: {waiting['message']}" if waiting.get("message") else reason
    if reason in _HOPELESS:
        raise SandboxUnavailable(
            f"The pod of this step does not start ({told[:600]}).",
            hint="Look at MODELIUM_SANDBOX_IMAGE, at the claim in MODELIUM_KUBERNETES_WORKSPACE_CLAIM, and at whether "
            "the namespace may pull the image.",
        )
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            told = f"{condition.get('reason', '')}: {condition.get('message', '')}"
    if not told or told in ("ContainerCreating", "PodInitializing"):
        told = _newest_warning(events) or told
    return Sight("pending", waits_for=told)


def too_late(sight: Sight) -> ModeliumError:
    """Return the error of a pod that did not start in time."""
    hint = "Give the cluster a node with room for MODELIUM_STEP_MEMORY_BYTES and MODELIUM_THREADS, or lower them."
    if (device := _DEVICE.search(sight.waits_for)) is not None:
        hint = (
            f"Give the cluster a node that has {device[1]} free and a device plugin that offers it; "
            "MODELIUM_KUBERNETES_GPU_RESOURCE is what it is called."
        )
    return SandboxCrashed(
        f"The pod of this step did not start within {PENDING_S} s "
        f"({sight.waits_for[:600] or 'the cluster gives no reason'}).",
        hint=hint,
    )


def _unborn(events: list[Manifest]) -> Sight:
    failures = [e.get("message", "") for e in events if e.get("reason") == "FailedCreate"]
    if not failures:
        return Sight("pending", waits_for=_newest_warning(events))
    if "exceeded quota" in failures[-1]:  # others end and give theirs back
        return Sight("pending", waits_for=failures[-1])
    raise SandboxUnavailable(
        f"The cluster refuses the pod of this step ({failures[-1][:600]}).",
        hint="Look at the namespace's quotas, limit ranges and admission rules.",
    )


def _newest_warning(events: list[Manifest]) -> str:
    told = [f"{e.get('reason', '')}: {e.get('message', '')}" for e in events if e.get("type") == "Warning"]
    return told[-1] if told else ""


def _lost(pod: Manifest) -> ModeliumError | None:
    status = pod.get("status", {})
    for condition in status.get("conditions") or ():
        kind, value, reason = (condition.get(key, "") for key in ("type", "status", "reason"))
        if kind == "DisruptionTarget" and value == "True" and reason != "TerminationByKubelet":
            return _vanished(f"its pod was evicted ({reason}: {condition.get('message', '')[:300]})")
        if kind == "Ready" and reason == "NodeStatusUnknown":
            return _vanished("its node no longer answers")
    if status.get("phase") == "Unknown" or status.get("reason") == "NodeLost":
        return _vanished("its node no longer answers")
    return None


def _vanished(how: str) -> SandboxCrashed:
    return SandboxCrashed(f"The step was lost: {how}.", hint=_AGAIN)


def gone_missing() -> ModeliumError:
    """Return the error of a pod that was there and is not any more."""
    return _vanished("somebody deleted its pod or its job")


def _ended_by_the_node(status: Manifest, limits: Limits) -> ModeliumError:
    reason, message = status["reason"], str(status.get("message", ""))[:600]
    if reason == "DeadlineExceeded":
        return out_of_time(limits, limits.timeout_s)
    if reason == "Evicted" and "exceeds" in message:
        return LimitExceeded(
            f"The node ended the step, which took more than its share ({message}).",
            hint="Steps may write to out/ and, within MODELIUM_STEP_MEMORY_BYTES, to /tmp; logs count as well.",
            limit=EPHEMERAL_BYTES,
            actual=EPHEMERAL_BYTES,
        )
    return _vanished(f"its node ended it ({reason}: {message})")


def _terminated(end: Manifest, limits: Limits) -> Sight:
    code = int(end.get("exitCode", -1))
    if end.get("reason") == "OOMKilled":
        return Sight("ended", out_of_memory(limits, limits.memory_bytes), code)
    if end.get("reason") in ("StartError", "ContainerCannotRun"):
        raise SandboxUnavailable(
            f"The container of this step does not start ({str(end.get('message', ''))[:600]}).",
            hint="The image of MODELIUM_SANDBOX_IMAGE needs /usr/bin/prlimit, /bin/sh, and each interpreter at the "
            "path that it has here.",
        )
    return Sight("ended", exit_code=code)
