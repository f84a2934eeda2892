"""EngineSheet: what was built for which GPU, from which graph; EngineManifest: the same as it is published."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from schemas.descriptor import TensorSpec
from schemas.document import Document
from schemas.evidence import BatchProof
from schemas.precision import Precision

Sizes = Annotated[tuple[int, ...], Field(max_length=16)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class EngineFile(Document):
    """One engine: machine code for one GPU architecture."""

    file: str = Field(pattern=r"^model\.(engine\.sm_[0-9]{2,3}|plan)$")
    sm: str = Field(pattern=r"^sm_[0-9]{2,3}$", description="Compute capability it was built for")
    sha256: Sha256
    size_bytes: int = Field(ge=1)


class ShapeRange(Document):
    """The sizes of one input that an engine takes, the batch axis included."""

    least: Sizes
    best: Sizes = Field(description="What the engine is tuned for")
    most: Sizes


class EngineSheet(Document):
    """What the builder's step writes beside the engines as ``engines.json``."""

    builder: Literal["tensorrt-rtx", "tensorrt"]
    builder_version: str = Field(max_length=64)
    graph_sha256: Sha256 = Field(description="Of model.onnx and its data files, as graph_sha256 computes it")
    engines: tuple[EngineFile, ...] = Field(min_length=1, max_length=8)
    profile: dict[str, ShapeRange] = Field(
        default_factory=dict, description="Inputs with dynamic axes to the sizes that the engines take"
    )
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ran: bool = Field(default=False, description="Whether an engine was run on a GPU of its architecture")


class EngineManifest(Document):
    """A published version of a name: the engines, what was shown, and what was not."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    version: int = Field(ge=1)
    sheet: EngineSheet
    graph_file: str = Field(description="The ONNX graph that the engines were built from, beside them")
    precision: Precision
    proof: str = Field(max_length=1000, description="What was compared with the original, where, and the outcome")
    batching: BatchProof
    not_shown: tuple[str, ...] = Field(default=(), max_length=20, description="What nobody has seen yet, as sentences")
    created_at: datetime
