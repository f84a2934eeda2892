"""StepRun: one execution of a step in a sandbox, and what the sandbox was."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, get_args

from pydantic import Field

from schemas.document import Document
from schemas.errors import ErrorDocument

Property = Literal["own_user", "no_network", "read_only_root", "own_pids", "seccomp", "memory", "processes", "cpu"]
"""What a sandbox can enforce, by the names of Isolation's fields."""


class Limits(Document):
    """Bounds of one step. Memory, processes and CPU bind the whole sandbox where a cgroup is writable."""

    memory_bytes: int = Field(default=8 << 30, ge=64 << 20)
    cpus: float = Field(default=2.0, gt=0)
    processes: int = Field(default=256, ge=8)
    timeout_s: float = Field(default=900, gt=0, description="Hard: the sandbox is killed")
    workspace_bytes: int = Field(default=20 << 30, ge=1 << 20, description="What the step may write")
    workspace_files: int = Field(default=20_000, ge=16)
    log_bytes: int = Field(default=1 << 20, ge=1024)
    result_bytes: int = Field(default=8 << 20, ge=1024)


class Isolation(Document):
    """The level really enforced, found out by running it."""

    backend: str = Field(description="bubblewrap, docker, kubernetes, none")
    own_user: bool = Field(
        description="Runs as a user that owns nothing on the host, or as an unprivileged namespace user"
    )
    no_network: bool
    read_only_root: bool
    own_pids: bool
    seccomp: bool
    landlock: int = Field(default=0, ge=0, description="Version of Landlock with which steps shut themselves in too")
    memory: str = Field(description="What bounds memory: cgroup-v1, cgroup-v2, rlimit")
    processes: str = Field(description="What bounds processes: cgroup-v1, cgroup-v2, rlimit, watched, none")
    cpu: str = Field(description="What bounds CPU: cgroup-v1, cgroup-v2, rlimit, none")
    image: str = Field(default="", description="Id of the container image, sha256:...")
    runtime: str = Field(default="", description="Container runtime: runc, runsc, kata")
    notes: tuple[str, ...] = ()

    @property
    def level(self) -> str:
        """What tells this isolation from any that holds less: the backend, a runtime of its own, and what it lacks."""
        if self.backend == "none":
            return self.backend
        runtime = f" by {self.runtime}" if self.runtime not in ("", "runc") else ""
        lacking = self.lacking(get_args(Property))
        return f"{self.backend}{runtime}" + (f" without {', '.join(lacking)}" if lacking else "")

    def lacking(self, required: Iterable[str]) -> list[str]:
        """Return which of ``required``, names of the fields above, do not hold; a bound holds by a control group.

        A runtime with a kernel of its own need not know what seccomp is: that kernel is what guards this one.
        """
        held = {name for name, value in self if value is True or str(value).startswith("cgroup")}
        if any(kernel in self.runtime for kernel in ("runsc", "gvisor", "kata")):
            held.add("seccomp")
        return [name for name in required if name not in held]


class Usage(Document):
    """What one step used."""

    wall_s: float = Field(ge=0)
    cpu_s: float | None = Field(default=None, ge=0)
    peak_memory_bytes: int | None = Field(default=None, ge=0)
    import_s: float | None = Field(default=None, ge=0, description="Importing the toolchain inside the child")
    run_s: float | None = Field(default=None, ge=0, description="The step's own work inside the child")
    warm: bool = Field(default=False, description="Started in a process that had its imports done before the step came")
    gpus: int = Field(default=0, ge=0, description="GPUs that its sandbox showed it")


class StepRunState(StrEnum):
    """Where one execution is."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    LOST = "lost"
    CANCELLED = "cancelled"


class StepRun(Document):
    """One execution of a step; ``cached_from`` names the run whose outputs were reused instead of executing."""

    id: str
    job_id: str
    attempt: int = Field(ge=1)
    contender: str | None = Field(
        default=None, description="Candidate id the step belongs to, None for the job's own steps"
    )
    kind: str
    toolchain: str
    options: dict[str, Any] = Field(default_factory=dict)
    state: StepRunState
    cache_key: str
    cached_from: str | None = None
    made_at: datetime | None = Field(default=None, description="When the run that is reused here had ended")
    inputs: dict[str, str] = Field(default_factory=dict, description="Input name to sha256")
    outputs: dict[str, str] = Field(default_factory=dict, description="Output name to sha256")
    report: dict[str, Any] | None = None
    error: ErrorDocument | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    limits: Limits | None = None
    reserved_memory_bytes: int | None = Field(
        default=None, ge=0, description="What was set aside for it on the machine before it started, from an estimate"
    )
    isolation: Isolation | None = None
    usage: Usage | None = None
    log: str = ""
    started_at: datetime
    ended_at: datetime | None = None
