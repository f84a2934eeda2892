"""The Kubernetes sandbox: each step is a Job of its own, for workers in a cluster that have no container engine."""

from __future__ import annotations

import functools
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from executor import workspace
from executor.inside import ROOT
from executor.kubernetes_cluster import Away, Cluster
from executor.kubernetes_job import WORKSPACE_ANNOTATION, Placement, job
from executor.kubernetes_namespace import open_directions
from executor.kubernetes_packages import place_packages
from executor.kubernetes_run import Run, deleted
from executor.sandbox import NO_OBSERVERS, OUT, SANDBOX_UID, Command, Ending, Observers
from schemas.errors import SandboxUnavailable
from schemas.step_run import Isolation, Limits

log = logging.getLogger(__name__)


class KubernetesSandbox:
    """Runs programs as Jobs on the claim that holds ``workspaces`` and, as a rule, every input."""

    name = "kubernetes"

    def __init__(self, cluster: Cluster, placement: Placement, workspaces: Path) -> None:
        self._cluster, self._placement, self._workspaces = cluster, placement, workspaces.resolve()

    def root(self, workspace: Path) -> Path:
        """Return where programs inside see the workspace."""
        return ROOT

    def place(self, name: str, source: Path) -> str:
        """Return the path below the workspace that the input is mounted at."""
        return f"in/{name}"

    def carried(self, toolchain: str) -> None:
        """Return None: the image has each interpreter at the path that it has here."""

    def isolation(self, limits: Limits) -> Isolation:
        """Return what is really enforced; probed once per process, whatever the limits."""
        return self._probed

    @functools.cached_property
    def _probed(self) -> Isolation:
        from executor.kubernetes_probing import probe

        isolation = probe(self, Path(sys.executable), self._workspaces, self._cluster.address)
        return isolation.model_copy(
            update={"image": self._placement.image, "runtime": self._placement.runtime_class or isolation.runtime}
        )

    def check(self) -> None:
        """Raise SandboxUnavailable unless the namespace and this process are as steps need them."""
        if os.geteuid() not in (0, SANDBOX_UID):
            raise SandboxUnavailable(
                f"This worker runs as user {os.geteuid()}, and could not remove what steps write.",
                hint=f"Run workers as user {SANDBOX_UID} (runAsUser), as steps are.",
            )
        if not self._workspaces.is_relative_to(self._placement.home):
            raise SandboxUnavailable(f"{self._workspaces} is not on the claim mounted at {self._placement.home}.")
        if not workspace.can_lock(self._workspaces):
            raise SandboxUnavailable(
                f"The file system of {self._workspaces} cannot lock folders, so a dead worker's could not be told.",
                hint="Use a storage class whose shared file system has locks (CephFS has them, NFS has not).",
            )
        try:
            directions = open_directions(self._cluster.network_policies())
        except Away as error:
            raise SandboxUnavailable(
                f"The API server at {self._cluster.address} does not answer ({error}).",
                hint="Is this worker in the cluster, and may it reach the API server?",
            ) from None
        if directions:
            raise SandboxUnavailable(
                f"The network policies of namespace {self._placement.namespace} leave steps open: "
                f"{', '.join(sorted(directions))}.",
                hint="Have an administrator apply what `modelium kubernetes` prints, and no policy that selects the "
                "same pods and allows anything.",
            )

    def sweep(self) -> int:
        """Delete the Jobs of workers that died; return how many. Safe beside running steps."""
        removed = 0
        try:
            jobs = self._cluster.jobs()
        except Away as error:
            log.warning("jobs of dead workers can't be looked for: %s", error)
            return removed
        for found in jobs:
            metadata = found["metadata"]
            folder = self._placement.home / metadata.get("annotations", {}).get(WORKSPACE_ANNOTATION, "")
            # A folder outside is nobody's workspace, and whoever wrote that annotation was not one of ours.
            if folder.parent == self._workspaces and not workspace.is_owned(folder):
                log.warning("deleting job %s, whose worker has died", metadata["name"])
                removed += deleted(self._cluster, metadata["name"])
        return removed

    def prepare(self, like: Command) -> None:
        """Do nothing: every program is started anew."""

    def execute(self, command: Command, observers: Observers = NO_OBSERVERS) -> Ending:
        """Run ``command`` to its end; see the protocol. Raises SandboxUnavailable when its pod can't start."""
        out = command.workspace / OUT
        out.mkdir(exist_ok=True)
        if os.geteuid() == 0:
            os.chown(out, SANDBOX_UID, SANDBOX_UID)
        name, mark = f"modelium-step-{secrets.token_hex(6)}", f"modelium-progress-{secrets.token_hex(8)} "
        body = job(
            command, self._placement, name=name, packages=self._packages, inputs=self._on_claim(command), mark=mark
        )
        return Run(self._cluster, body, mark, out, command.limits, observers).to_its_end()

    @functools.cached_property
    def _packages(self) -> Path:
        return place_packages(self._workspaces)

    def _on_claim(self, command: Command) -> Mapping[str, Path]:
        """Return where each input is on the claim; those that are elsewhere are copied there."""
        placed = {}
        for name, source in command.inputs.items():
            path = source.resolve()
            if not path.is_relative_to(self._placement.home):
                copies = command.workspace / "in"
                copies.mkdir(exist_ok=True)
                copy = copies / name
                # Links in it stay links: whoever made it chose where they lead, and there they lead inside the pod.
                shutil.copytree(path, copy, symlinks=True) if path.is_dir() else shutil.copy(path, copy)
                path = copy
            placed[name] = path
        return placed
