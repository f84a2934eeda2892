"""The Pod Security Standard "restricted", item by item, as its documentation lists them; baseline's included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
_SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}  # fmt: skip


def violations(template: dict[str, Any]) -> list[str]:
    """Return each item of the standard that a pod with ``metadata`` and ``spec`` breaks."""
    return [*_of_the_pod(template), *_of_its_containers(template["spec"])]


def _of_the_pod(template: dict[str, Any]) -> Iterator[str]:
    spec = template["spec"]
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"Host Namespaces: {field}"
    for volume in spec.get("volumes", []):
        for kind in volume.keys() - {"name"} - _VOLUMES:
            yield f"Volume Types: {kind}"
    for key, value in template.get("metadata", {}).get("annotations", {}).items():
        if key.startswith("container.apparmor.security.beta.kubernetes.io/") and not (
            value in ("", "runtime/default") or value.startswith("localhost/")
        ):
            yield f"AppArmor: {key}"
    context = spec.get("securityContext", {})
    for sysctl in context.get("sysctls", []):
        if sysctl["name"] not in _SYSCTLS:
            yield f"Sysctls: {sysctl['name']}"
    yield from _of_a_context(context)


def _of_its_containers(spec: dict[str, Any]) -> Iterator[str]:
    pod = spec.get("securityContext", {})
    for kind in ("containers", "initContainers", "ephemeralContainers"):
        for container in spec.get(kind, []):
            context = container.get("securityContext", {})
            yield from _of_a_context(context)
            if context.get("privileged"):
                yield "Privileged Containers"
            capabilities = context.get("capabilities", {})
            if "ALL" not in capabilities.get("drop", []):
                yield "Capabilities: ALL is not dropped"
            if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
                yield "Capabilities: added"
            if any(port.get("hostPort") for port in container.get("ports", [])):
                yield "Host Ports"
            if context.get("procMount", "Default") != "Default":
                yield "/proc Mount Type"
            if context.get("allowPrivilegeEscalation") is not False:
                yield "Privilege Escalation"
            if not context.get("runAsNonRoot", pod.get("runAsNonRoot")):
                yield "Running as Non-root"
            profile = context.get("seccompProfile", pod.get("seccompProfile", {})).get("type")
            if profile not in ("RuntimeDefault", "Localhost"):
                yield "Seccomp"
            hooks = [container.get(probe, {}) for probe in ("livenessProbe", "readinessProbe", "startupProbe")]
            hooks += container.get("lifecycle", {}).values()
            if any(hook.get(how, {}).get("host") for hook in hooks for how in ("httpGet", "tcpSocket")):
                yield "Host Probes and Lifecycle Hooks"


def _of_a_context(context: dict[str, Any]) -> Iterator[str]:
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield "HostProcess"
    if context.get("appArmorProfile", {}).get("type", "RuntimeDefault") not in ("RuntimeDefault", "Localhost"):
        yield "AppArmor"
    labels = context.get("seLinuxOptions", {})
    if labels.get("type", "") not in _SELINUX_TYPES or labels.get("user") or labels.get("role"):
        yield "SELinux"
    if context.get("seccompProfile", {}).get("type") == "Unconfined":
        yield "Seccomp: Unconfined"
    if context.get("runAsNonRoot") is False:
        yield "Running as Non-root: switched off"
    if context.get("runAsUser") == 0:
        yield "Running as Non-root user"
