"""Finds the best sandbox that really works here, or the one that was asked for."""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypedDict, Unpack

from executor.bwrap_sandbox import BwrapSandbox
from executor.kubernetes_cluster import Cluster
from executor.kubernetes_job import Placement
from executor.kubernetes_sandbox import KubernetesSandbox
from executor.sandbox import Sandbox
from executor.seccomp import program
from executor.unisolated_sandbox import UnisolatedSandbox
from executor.warm_bounds import WarmBounds
from schemas.errors import SandboxUnavailable
from schemas.step_run import Limits

log = logging.getLogger(__name__)
_INSTALL = "Run as root: apt-get install -y bubblewrap libseccomp2 util-linux"
REQUIRED = ("own_user", "no_network", "read_only_root", "own_pids", "seccomp")
"""Fields of Isolation that every sandbox has to hold, unless who asks for one says otherwise."""


@dataclass(frozen=True)
class DockerOptions:
    """Which engine, image, runtime and GPUs the Docker sandbox uses; empty: the engine's usual socket, this machine's
    toolchains in a bare image, the engine's own runtime, any GPU."""

    host: str = ""
    image: str = ""
    runtime: str = ""
    gpus: tuple[str, ...] = ()


class SandboxOptions(TypedDict, total=False):
    """What tells one sandbox of this machine from another."""

    backend: Literal["auto", "bubblewrap", "docker"]
    docker: DockerOptions
    warm: WarmBounds | None
    gpus: tuple[str, ...]


def find_sandbox(
    allow_none: bool = False, *, required: Iterable[str] = REQUIRED, **options: Unpack[SandboxOptions]
) -> Sandbox:
    """Return a sandbox that was seen to isolate; probed once per process. ``auto`` is bubblewrap.

    Raises SandboxUnavailable with what to do, unless ``allow_none``: then a sandbox that isolates nothing is better
    than none, and every run says so. Steps start warm within the bounds of ``warm``; those that need a GPU get the
    first of the numbers ``gpus``, or of all.
    """
    try:
        sandbox = make_sandbox(**options)
        lacking = sandbox.isolation(Limits()).lacking(required)
        if lacking:
            raise SandboxUnavailable(
                f"The {sandbox.name} sandbox runs here but does not enforce: {', '.join(lacking)}.",
                hint=_MENDING[sandbox.name],
            )
        return sandbox
    except SandboxUnavailable as error:
        if allow_none:
            log.warning("steps run WITHOUT any isolation, as the settings allow: %s", error.args[0])
            return UnisolatedSandbox()
        raise


def make_sandbox(
    *,
    backend: Literal["auto", "bubblewrap", "docker"] = "auto",
    docker: DockerOptions = DockerOptions(),
    warm: WarmBounds | None = None,
    gpus: tuple[str, ...] = (),
) -> Sandbox:
    """Return the one sandbox of these options that this process has, which may not have been seen to isolate yet.

    Steps get theirs from :func:`find_sandbox`. Meanwhile this one can start what they are forked from, which runs
    nothing of a model. Raises SandboxUnavailable for what is not installed.
    """
    return _docker(docker, warm) if backend == "docker" else _bubblewrap(warm, gpus)


_MENDING = {
    "bubblewrap": "Check its version (0.8 or newer) and, in a container, the container's own security profile.",
    "docker": "Check the engine (20.10 or newer) and its runtime; MODELIUM_REQUIRE_ISOLATION says what is needed.",
}


@functools.cache
def _docker(options: DockerOptions, warm: WarmBounds | None = None) -> Sandbox:
    from executor.docker_sandbox import DockerSandbox

    sandbox = DockerSandbox(options.host, options.image, options.runtime, options.gpus, warm)
    sandbox.isolation(Limits())
    return sandbox


@functools.cache
def _bubblewrap(warm: WarmBounds | None, gpus: tuple[str, ...]) -> Sandbox:
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
    return BwrapSandbox(executable, warm, gpus)


@functools.cache
def find_kubernetes(placement: Placement, workspaces: Path, required: tuple[str, ...] = REQUIRED) -> KubernetesSandbox:
    """Return the sandbox of a cluster's namespace that was seen to isolate; probed once per process.

    Raises SandboxUnavailable with what to do. There is nothing to fall back to: who chose a cluster has no other.
    """
    sandbox = KubernetesSandbox(Cluster.connect(placement.namespace), placement, workspaces)
    sandbox.check()
    sandbox.sweep()
    isolation = sandbox.isolation(Limits())
    lacking = isolation.lacking(required)
    lacking += ["memory"] if isolation.memory == "none" else []
    if lacking:
        raise SandboxUnavailable(
            f"Pods run here but the cluster does not enforce: {', '.join(lacking)}.",
            hint="Network policies need a network plugin that enforces them; the rest is the kubelet's and the "
            "container runtime's.",
        )
    return sandbox
