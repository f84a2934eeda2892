"""The plain files between steps: ``step.json`` in, ``result.json`` out, and the context a step's function gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from schemas.descriptor import ModelDescriptor
from schemas.document import Document
from schemas.errors import ErrorDocument
from schemas.sidecar import Sidecar
from schemas.target import TargetProfile

STEP_FILE = "step.json"
RESULT_FILE = "result.json"
LEASE_INPUT, LEASE_FILE = "lease", "machine"
"""An input that is a folder, and its file: empty until the step has the machine alone. By hand there is none."""
READY = "waiting for the machine"
"""The progress message of a step that has prepared and does nothing until it has the machine alone."""


class StepRequest(Document):
    """What a step reads. Paths are relative to the workspace, so that anyone can rerun the folder by hand."""

    schema_version: Literal[1] = 1
    kind: str
    options: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, str] = Field(
        default_factory=dict,
        description="Input name to path. 'model' is the model (file or folder), 'code' the folder that holds the "
        "sidecar's companions, 'reference' the reference folder",
    )
    interpreters: dict[str, str] = Field(
        default_factory=dict,
        description="Toolchain name to interpreter, of those that the step starts processes of beside its own",
    )
    artifact_sha256: str = ""
    seed: int = 0
    threads: int = Field(default=1, ge=1)
    memory_bytes: int = Field(default=8 << 30, description="What the sandbox allows")
    descriptor: ModelDescriptor | None = None
    sidecar: Sidecar | None = None
    target: TargetProfile | None = None


class StepResult(Document):
    """What a step writes. ``report`` satisfies the catalogue's report model of its kind; the host checks it."""

    schema_version: Literal[1] = 1
    ok: bool
    outputs: dict[str, str] = Field(default_factory=dict, max_length=64, description="Output name to path below out/")
    report: dict[str, Any] | None = None
    error: ErrorDocument | None = None
    versions: dict[str, str] = Field(default_factory=dict, max_length=64)
    import_s: float = Field(default=0, ge=0)
    run_s: float = Field(default=0, ge=0)


@dataclass
class StepOutcome:
    """What a step's function returns: its typed report, and its outputs as paths below ``context.out``."""

    report: Document | None = None
    outputs: dict[str, str] = field(default_factory=dict)


@dataclass
class StepContext:
    """What a step's function gets; lives as long as the child process."""

    request: StepRequest
    workspace: Path
    options: Any
    """The kind's own options model, already validated."""
    progress: Callable[[float, str], None] = lambda fraction, message: None
    """Report ``fraction`` in 0..1 and a short message; cheap, may be called often."""

    @property
    def out(self) -> Path:
        """The one writable folder."""
        return self.workspace / "out"

    def input(self, name: str) -> Path:
        """Return the path of input ``name``; read-only. Raises KeyError when the step has no such input."""
        return self.workspace / self.request.inputs[name]

    def has(self, name: str) -> bool:
        """Whether input ``name`` was given."""
        return name in self.request.inputs


StepFunction = Callable[[StepContext], StepOutcome]
