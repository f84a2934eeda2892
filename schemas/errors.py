"""The whole error tree, and the document an error travels as."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from schemas.document import Document

Fact = str | int | float | bool | None


class ErrorDocument(Document):
    """An error as it crosses the sandbox, the broker or the API; never a pickle."""

    code: str = Field(max_length=64)
    message: str = Field(max_length=2000)
    hint: str = Field(default="", max_length=2000)
    facts: dict[str, Fact] = Field(default_factory=dict, max_length=32)


class ModeliumError(Exception):
    """Base of all our errors; ``str()`` is the fact, then the hint that says what to do."""

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", **facts: Fact) -> None:
        super().__init__(message)
        self.hint, self.facts = hint, facts

    def __str__(self) -> str:
        return f"{self.args[0]} {self.hint}".strip()

    def document(self) -> ErrorDocument:
        """Return this error as the document that crosses processes, cut to its size limits."""
        facts = {k[:64]: (v[:500] if isinstance(v, str) else v) for k, v in list(self.facts.items())[:32]}
        return ErrorDocument(code=self.code, message=str(self.args[0])[:2000], hint=self.hint[:2000], facts=facts)


class UsageError(ModeliumError):
    """The command, setting or sidecar as written cannot be obeyed."""

    code = "usage"
    exit_code = 2


class InvalidDocument(UsageError):
    """A document does not satisfy its schema; ``facts['pointer']`` is the JSON pointer of the first offence."""

    code = "invalid_document"


class NotFound(UsageError):
    """What was named does not exist here."""

    code = "not_found"


class Conflict(UsageError):
    """What was asked contradicts what is recorded or running."""

    code = "conflict"


class ModelFailed(ModeliumError):
    """The job cannot succeed with this model as it is: broken, unsupported or not convertible."""

    code = "model_failed"
    exit_code = 3


class Unsupported(ModelFailed):
    """The format, operator or target is recognised and not served; the hint says what to do instead."""

    code = "unsupported"


class ConversionFailed(ModelFailed):
    """A converter could not convert; the message names the operator or layer where it is known."""

    code = "conversion_failed"


class SizesFrozen(ConversionFailed):
    """A converter's result holds, or can be made, at some sizes of the inputs only, which the original does not.

    With the sizes fixed in the descriptor the same conversion may do.
    """

    code = "sizes_frozen"


class LimitExceeded(ModelFailed):
    """A limit of the sandbox was reached; ``facts`` carry ``limit`` and ``actual``."""

    code = "limit_exceeded"


class Quarantined(ModeliumError):
    """The content is known to be dangerous."""

    code = "quarantined"
    exit_code = 4


class NeedsInput(ModeliumError):
    """A person has to answer one question; the message is that question, the hint how to answer it."""

    code = "needs_input"
    exit_code = 5


class Cancelled(ModeliumError):
    """The job was cancelled by a person."""

    code = "cancelled"
    exit_code = 130


class SandboxUnavailable(ModeliumError):
    """No isolation can be had on this machine."""

    code = "no_isolation"


class SandboxCrashed(ModeliumError):
    """The sandboxed interpreter died of a signal or wrote no valid result."""

    code = "sandbox_crashed"
    retryable = True


class ToolchainMissing(ModeliumError):
    """A step's toolchain is not installed; a job that needs it has failed until it is."""

    code = "toolchain_missing"
    exit_code = 3


class StorageFull(ModeliumError):
    """There is not enough disk for the drop and what is made of it."""

    code = "storage_full"
    retryable = True


class StoreUnavailable(ModeliumError):
    """The bucket that holds the artifacts cannot be read or written; the hint says what to do."""

    code = "store_unavailable"
    retryable = True


class CorruptObject(ModeliumError):
    """What the bucket holds under a name is not what the name says; it is not used."""

    code = "corrupt_object"


class StillChanging(ModeliumError):
    """What was dropped changed while it was read; it is taken once it has settled."""

    code = "still_changing"
    exit_code = 3
    retryable = True


_BY_CODE: dict[str, type[ModeliumError]] = {
    cls.code: cls
    for cls in (
        UsageError,
        InvalidDocument,
        NotFound,
        Conflict,
        ModelFailed,
        Unsupported,
        ConversionFailed,
        SizesFrozen,
        LimitExceeded,
        Quarantined,
        NeedsInput,
        Cancelled,
        SandboxUnavailable,
        SandboxCrashed,
        ToolchainMissing,
        StorageFull,
        StoreUnavailable,
        CorruptObject,
        StillChanging,
    )
}


def from_document(document: ErrorDocument) -> ModeliumError:
    """Return the exception that ``document`` describes; unknown codes become the base class (our fault)."""
    return _BY_CODE.get(document.code, ModeliumError)(document.message, hint=document.hint, **document.facts)
