"""Deployment: a published revision of a model."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field

from schemas.descriptor import Format, TensorSpec
from schemas.document import Document
from schemas.evidence import BatchProof


class DeploymentState(StrEnum):
    """``active`` is served; ``previous`` is kept for a rollback; ``retired`` is out of the repository."""

    ACTIVE = "active"
    PREVIOUS = "previous"
    RETIRED = "retired"


class EntrySpec(Document):
    """What the deployer publishes: everything a ``config.pbtxt`` says, in our own words."""

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    version: int = Field(ge=1)
    format: Format = Field(default=Format.ONNX, description="Decides Triton's backend and the model file's name")
    inputs: tuple[TensorSpec, ...] = Field(
        min_length=1, description="Shapes with the batch axis, as the model has them"
    )
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    batching: BatchProof
    max_batch_size: int = Field(ge=0, description="0: no batching; else proven, the first axis is left out of dims")
    labels: tuple[str, ...] = ()
    labels_output: str | None = Field(default=None, description="The output whose last axis the labels name")
    hardware: Literal["cpu", "gpu"] = Field(default="cpu", description="What the server's instances run on")
    parameters: dict[str, str] = Field(
        default_factory=dict, description="Parameters of Triton's backend, such as INFERENCE_NUM_THREADS of openvino"
    )
    example_axes: dict[str, int] = Field(
        default_factory=dict,
        description="Dynamic axis name to a size that was seen to run; warm-up and snippets use it",
    )


class Health(Document):
    """What was seen of a deployment's health."""

    state: Literal["unknown", "ready", "failed"] = "unknown"
    detail: str = ""


class Deployment(Document):
    """A published revision of a model."""

    schema_version: Literal[1] = 1
    name: str
    version: int
    job_id: str
    contender: str = Field(description="Candidate id, or 'original'")
    model_sha256: str
    state: DeploymentState
    entry: str = Field(description="The Triton repository entry's folder")
    manifest: str | None = Field(default=None, description="The KServe manifest's path")
    config: str = Field(description="Text of config.pbtxt")
    spec: EntrySpec
    health: Health = Health()
    previous_version: int | None = None
    created_at: datetime
