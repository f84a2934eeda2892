"""What comes out of a sandbox: every byte of it is the attacker's until it has passed here."""

from __future__ import annotations

import json
import os
import re
import stat
import unicodedata
from pathlib import Path, PurePosixPath
from typing import Any

from schemas.catalog import entry
from schemas.errors import ErrorDocument, InvalidDocument, LimitExceeded, ModeliumError, SandboxCrashed
from schemas.published import validate
from schemas.step_io import RESULT_FILE, StepResult
from schemas.step_run import Limits

MAX_DEPTH = 32
MORE_ROOM = "Raise step_workspace_bytes (MODELIUM_STEP_WORKSPACE_BYTES) if this model really needs it."
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HINT = "The step's own log may say more; nothing of what it wrote was used."
_CODES_OF_A_STEP = frozenset(
    {
        "conversion_failed",
        "internal",
        "invalid_document",
        "limit_exceeded",
        "model_failed",
        "needs_input",
        "not_found",
        "quarantined",
        "sizes_frozen",
        "toolchain_missing",
        "unsupported",
        "usage",
    }
)
"""What a step may end with. The others are the host's to say: a step must not claim a cancellation or a retry."""


def clean(text: str) -> str:
    """Return ``text`` without control characters but newline and tab, so that no terminal obeys it."""
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else "�" for c in text)


def read_result(out: Path, kind: str, limits: Limits) -> StepResult:
    """Return the validated result document in ``out``.

    Raises LimitExceeded when it is too large, SandboxCrashed when it is absent or not what a step of ``kind`` writes.
    """
    document = _parse(_read_plain(out / RESULT_FILE, limits.result_bytes))
    try:
        result = validate(StepResult, document, what="The step's result")
        if result.ok:
            if result.error is not None or result.report is None:
                raise SandboxCrashed("The step said it succeeded without a report, or with an error.", hint=_HINT)
            validate(entry(kind).report, result.report, what="The step's report")
        elif result.error is None or result.error.code not in _CODES_OF_A_STEP:
            raise SandboxCrashed("The step failed without an error that a step can have.", hint=_HINT)
    except InvalidDocument as error:
        raise SandboxCrashed(clean(str(error.args[0])), hint=_HINT) from None
    except RecursionError:
        raise SandboxCrashed("The step's result is not valid: it is nested too deeply.", hint=_HINT) from None
    if result.error is None:
        return result
    told = result.error
    facts = {clean(key): clean(v) if isinstance(v, str) else v for key, v in told.facts.items()}
    cleaned = ErrorDocument(code=told.code, message=clean(told.message), hint=clean(told.hint), facts=facts)
    return result.model_copy(update={"error": cleaned, "outputs": {}, "report": None})


def read_outputs(out: Path, outputs: dict[str, str], limits: Limits) -> dict[str, Path]:
    """Return the named outputs as host paths that hold plain files and folders only, with plain modes.

    To be called when nothing of the sandbox runs any more. Raises SandboxCrashed for a name or path that leaves
    ``out``, a link, a device or a pipe, and LimitExceeded when there is more than ``limits`` allow.
    """
    budget = _Budget(limits)
    found: dict[str, Path] = {}
    root = os.open(out, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        for name, relative in outputs.items():
            parts = PurePosixPath(relative).parts
            if not _NAME.fullmatch(name) or not parts or parts[0] in ("/", "//") or ".." in parts:
                raise SandboxCrashed(f"The step named an output outside its folder: {clean(relative)!r}.", hint=_HINT)
            parent = os.dup(root)
            try:
                for part in parts[:-1]:
                    parent = _descend(parent, part)
                _accept(parent, parts[-1], budget, depth=len(parts))
            except OSError as error:
                raise SandboxCrashed(
                    f"The output {clean(relative)!r} cannot be read ({error.strerror}).", hint=_HINT
                ) from None
            finally:
                os.close(parent)
            found[name] = out.joinpath(*parts)
    finally:
        os.close(root)
    return found


class _Budget:
    """Counts what is accepted against the limits."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.files, self.size_bytes = limits, 0, 0

    def spend(self, size_bytes: int) -> None:
        self.files += 1
        self.size_bytes += size_bytes
        if self.files > self.limits.workspace_files:
            raise _too_much("files", self.limits.workspace_files, self.files)
        if self.size_bytes > self.limits.workspace_bytes:
            raise _too_much("bytes", self.limits.workspace_bytes, self.size_bytes)


def _too_much(what: str, limit: int, actual: int) -> ModeliumError:
    return LimitExceeded(
        f"The step's outputs hold {actual} {what}, {limit} are allowed.",
        hint=MORE_ROOM if what.startswith("bytes") else "No step of ours needs as many; no setting allows more.",
        limit=limit,
        actual=actual,
    )


def _accept(parent: int, name: str, budget: _Budget, depth: int) -> None:
    """Check one entry and all below it, and give it a plain mode: no set-uid bits, readable by the next step."""
    if depth > MAX_DEPTH:
        raise _too_much("levels of folders", MAX_DEPTH, depth)
    if clean(name) != name or "\n" in name or "\t" in name or not _is_utf8(name):
        raise SandboxCrashed("An output's file name holds control characters or is not UTF-8.", hint=_HINT)
    # O_NONBLOCK: opening a pipe must not wait for a writer.
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=parent)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            os.fchmod(descriptor, 0o755)
            budget.spend(0)
            with os.scandir(descriptor) as below:
                for child in below:
                    _accept(descriptor, child.name, budget, depth + 1)
        elif stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            os.fchmod(descriptor, 0o644)
            budget.spend(status.st_size)
        else:
            raise SandboxCrashed(
                f"The output {name!r} is not a plain file or folder (links, devices and pipes are refused).", hint=_HINT
            )
    finally:
        os.close(descriptor)


def _descend(parent: int, part: str) -> int:
    child = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    os.close(parent)
    return child


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_plain(path: Path, limit_bytes: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise SandboxCrashed(f"The step wrote no result ({error.strerror}).", hint=_HINT) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise SandboxCrashed("The step's result is not a plain file.", hint=_HINT)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(limit_bytes + 1)
    finally:
        os.close(descriptor)
    if len(content) > limit_bytes:
        raise LimitExceeded(
            f"The step's result is larger than {limit_bytes} bytes.",
            hint="Raise result_bytes if this model really needs it.",
            limit=limit_bytes,
            actual=max(status.st_size, len(content)),
        )
    return content


def _parse(content: bytes) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(content, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise SandboxCrashed(f"The step's result is not JSON: {clean(str(error))[:300]}.", hint=_HINT) from None
