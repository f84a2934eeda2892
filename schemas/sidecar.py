"""Sidecar: what a person says about a model beside it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from schemas.descriptor import Dim, DType
from schemas.document import Document
from schemas.target import TargetProfile

FILE_SUFFIX = ".modelium.yaml"
"""A file's sidecar is ``<filename>.modelium.yaml`` beside it."""
FOLDER_NAME = "modelium.yaml"
"""A folder's sidecar is this file inside it."""


def _plain_relative(path: str) -> str:
    parts = path.split("/")
    if path.startswith("/") or "\\" in path or "\0" in path or any(p in ("", ".", "..") for p in parts):
        raise ValueError("must be a plain relative path below the model's own folder")
    return path


RelativePath = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_plain_relative)]


class SidecarInput(Document):
    """One input as the person declares it; strings in ``shape`` name dynamic axes."""

    name: str = Field(max_length=256)
    dtype: DType = "float32"
    shape: tuple[Dim, ...] = Field(max_length=16)


class ModuleSource(Document):
    """The class that a state_dict belongs to; it runs only in the sandbox.

    Either ``file`` names a Python file beside the model, or ``library`` a library that has the class: then ``args`` are
    its configuration's (transformers) or its own (torchvision, timm).
    """

    file: RelativePath | None = None
    library: Literal["transformers", "torchvision", "timm"] | None = None
    class_name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)
    args: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the class, plain JSON values")

    @model_validator(mode="after")
    def _one_place(self) -> ModuleSource:
        if (self.file is None) == (self.library is None):
            raise ValueError("name either 'file', a Python file beside the model, or 'library'")
        return self


class Sidecar(Document):
    """What a person says about a model. Every key is optional; unknown keys are refused."""

    schema_version: Literal[1] = 1
    name: str | None = Field(default=None, pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", description="A DNS label")
    task: str | None = Field(default=None, max_length=100)
    license: str | None = Field(default=None, max_length=200)
    inputs: tuple[SidecarInput, ...] = Field(default=(), max_length=64)
    outputs: tuple[str, ...] = Field(default=(), max_length=64, description="Names of the outputs, in order")
    module: ModuleSource | None = None
    samples: RelativePath | None = Field(
        default=None,
        description="An .npz beside the model: one array per input name, rows first, or the inputs of one call where "
        "they have no rows in common; no object arrays. "
        "Key 'labels' holds the right answers",
    )
    labels: tuple[str, ...] = Field(default=(), max_length=100_000, description="Class names, in order")
    target: TargetProfile | None = None

    def companions(self) -> tuple[str, ...]:
        """Return the relative paths of the files this sidecar names beside the model."""
        return tuple(p for p in (self.module.file if self.module else None, self.samples) if p)
