"""Finds the best sandbox that really works here."""

from __future__ import annotations

import functools
import logging
import shutil
from importlib.util import find_spec
from pathlib import Path

from executor.bwrap_sandbox import BwrapSandbox
from executor.kubernetes_cluster import Cluster
from executor.kubernetes_job import Placement
from executor.kubernetes_sandbox import KubernetesSandbox
from executor.sandbox import Sandbox
from executor.seccomp import program
from executor.unisolated_sandbox import UnisolatedSandbox
from schemas.errors import SandboxUnavailable
from schemas.step_run import Limits

log = logging.getLogger(__name__)
_INSTALL = "Run as root: apt-get install -y bubblewrap libseccomp2 util-linux"


def find_sandbox(allow_none: bool = False) -> Sandbox:
    """Return a sandbox that was seen to isolate; probed once per process.

    Raises SandboxUnavailable with what to do, unless ``allow_none``: then a sandbox that isolates nothing is better
    than none, and every run says so.
    """
    try:
        return _bubblewrap()
    except SandboxUnavailable as error:
        if allow_none:
            log.warning("steps run WITHOUT any isolation, as the settings allow: %s", error.args[0])
            return UnisolatedSandbox()
        raise


@functools.cache
def _bubblewrap() -> BwrapSandbox:
    executable = shutil.which("bwrap")
    if executable is None:
        raise SandboxUnavailable(
            "Bubblewrap is not installed, and no model is opened without a sandbox.", hint=_INSTALL
        )
    for tool in ("setpriv", "prlimit"):
        if shutil.which(tool) is None:
            raise SandboxUnavailable(f"The program {tool} is missing, which the sandbox starts with.", hint=_INSTALL)
    if find_spec("pyseccomp") is None:
        raise SandboxUnavailable("The Python package pyseccomp is missing.", hint="Run: make setup")
    try:
        program()
    except (RuntimeError, OSError) as error:
        raise SandboxUnavailable(f"No system call filter can be made ({error}).", hint=_INSTALL) from error
    sandbox = BwrapSandbox(executable)
    isolation = sandbox.isolation(Limits())
    required = ("own_user", "no_network", "read_only_root", "own_pids", "seccomp")
    lacking = [name for name in required if not getattr(isolation, name)]
    if lacking:
        raise SandboxUnavailable(
            f"Bubblewrap runs here but does not enforce: {', '.join(lacking)}.",
            hint="Check its version (0.8 or newer) and, in a container, the container's own security profile.",
        )
    return sandbox


@functools.cache
def find_kubernetes(placement: Placement, workspaces: Path) -> KubernetesSandbox:
    """Return the sandbox of a cluster's namespace that was seen to isolate; probed once per process.

    Raises SandboxUnavailable with what to do. There is nothing to fall back to: who chose a cluster has no other.
    """
    sandbox = KubernetesSandbox(Cluster.connect(placement.namespace), placement, workspaces)
    sandbox.check()
    sandbox.sweep()
    isolation = sandbox.isolation(Limits())
    # A runtime class brings a kernel of its own, which need not know what seccomp is.
    seccomp = () if placement.runtime_class else ("seccomp",)
    required = ("own_user", "no_network", "read_only_root", "own_pids", *seccomp)
    lacking = [name for name in required if not getattr(isolation, name)]
    lacking += ["memory"] if isolation.memory == "none" else []
    if lacking:
        raise SandboxUnavailable(
            f"Pods run here but the cluster does not enforce: {', '.join(lacking)}.",
            hint="Network policies need a network plugin that enforces them; the rest is the kubelet's and the "
            "container runtime's.",
        )
    return sandbox
