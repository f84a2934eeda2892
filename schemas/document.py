"""The base of every document that crosses a process, the database or a person's screen."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION: Final = 1
"""Version of every published schema; raised when a document stops being readable by its predecessor's readers."""


class Document(BaseModel):
    """A frozen, closed document: unknown keys are refused, fields never change after construction."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null", protected_namespaces=())
