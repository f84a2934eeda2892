"""Read a model's sidecar: the settings a person wrote beside it. It is data; nothing in it runs here."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from ingestion import strict_yaml
from ingestion.opening import LinkFound, opened, shown
from schemas.errors import InvalidDocument, ModelFailed, NeedsInput
from schemas.sidecar import FILE_SUFFIX, FOLDER_NAME, Sidecar

MAX_BYTES = 256 << 10
MAX_CODE_BYTES = 1 << 20
MAX_SAMPLES_BYTES = 2 << 30
_HINT = (
    "Every key stands in schemas/v1/sidecar.schema.json. Mend the sidecar and save it: the model is then taken again."
)


@dataclass(frozen=True)
class SidecarFiles:
    """A sidecar with the files it names: path as the sidecar has it, to where the file stands."""

    sidecar: Sidecar
    path: Path
    text: bytes
    companions: dict[str, Path] = field(default_factory=dict)


def place(model: Path) -> Path:
    """Return where the sidecar of ``model`` stands if it has one."""
    return (
        model / FOLDER_NAME if model.is_dir() and not model.is_symlink() else model.with_name(model.name + FILE_SUFFIX)
    )


def read_text(model: Path) -> tuple[Path, bytes] | None:
    """Return the sidecar's path and bytes, None when there is none. Raises InvalidDocument for no small file."""
    path = place(model)
    try:
        with opened(path) as fd:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise InvalidDocument(f"{shown(path.name)} is a folder, not a file.", hint=_HINT, pointer="")
            if info.st_size > MAX_BYTES:
                raise InvalidDocument(
                    f"The sidecar {shown(path.name)} has {info.st_size} bytes; {MAX_BYTES} are allowed.",
                    hint="Put samples into an .npz file beside it and name that file.",
                    pointer="",
                )
            with os.fdopen(os.dup(fd), "rb") as file:
                return path, file.read(MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidDocument(
            f"The sidecar {shown(path.name)} cannot be read: {error.strerror}.", hint=_HINT, pointer=""
        ) from None
    except ModelFailed as refused:
        raise InvalidDocument(str(refused.args[0]), hint=refused.hint, pointer="") from None


def parse(text: str | bytes, *, name: str = FOLDER_NAME) -> Sidecar:
    """Return the sidecar that ``text`` spells.

    Raises:
        InvalidDocument: Its ``facts['pointer']`` is the JSON pointer of the first offence.
    """
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
        values = strict_yaml.load(decoded)
    except UnicodeDecodeError as error:
        raise InvalidDocument(
            f"The sidecar {name} is not UTF-8 text (byte {error.start}).", hint=_HINT, pointer=""
        ) from None
    except InvalidDocument as fault:
        raise InvalidDocument(f"The sidecar {name}: {fault.args[0]}", hint=_HINT, pointer="") from None
    if not isinstance(values, dict | None):
        raise InvalidDocument(
            f"The sidecar {name} must be a list of `key: value` lines, not {type(values).__name__}.",
            hint=_HINT,
            pointer="",
        )
    from schemas.published import validate  # jsonschema takes a while to import

    try:
        return validate(Sidecar, values or {}, what=f"The sidecar {name}")
    except InvalidDocument as fault:
        raise InvalidDocument(str(fault.args[0]), hint=_HINT, **fault.facts) from None


def read(model: Path) -> SidecarFiles | None:
    """Return the sidecar of the file or folder ``model`` with its companions, None when it has none.

    Raises:
        InvalidDocument: The sidecar or a companion is not what it may be; names the JSON pointer.
        NeedsInput: A file that the sidecar names is not there.
    """
    found = read_text(model)
    if found is None:
        return None
    path, text = found
    parsed = parse(text, name=shown(path.name))
    return SidecarFiles(sidecar=parsed, path=path, text=text, companions=companions(parsed, path))


def companions(sidecar: Sidecar, path: Path) -> dict[str, Path]:
    """Return the files that ``sidecar``, standing at ``path``, names. Raises as :func:`read` does."""
    files = {}
    if sidecar.module is not None and sidecar.module.file is not None:
        files[sidecar.module.file] = _companion(path, sidecar.module.file, "/module/file", MAX_CODE_BYTES)
    if sidecar.samples is not None:
        files[sidecar.samples] = _companion(path, sidecar.samples, "/samples", MAX_SAMPLES_BYTES)
    return files


def _companion(path: Path, named: str, pointer: str, limit_bytes: int) -> Path:
    file = path.parent / named
    fault = None
    try:
        with opened(file, below=path.parent) as fd:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                fault = "is a folder, not a file"
            elif info.st_size > limit_bytes:
                fault = f"has {info.st_size} bytes; {limit_bytes} are allowed"
    except FileNotFoundError:
        raise NeedsInput(
            f"The sidecar {shown(path.name)} names {named}, which is not there.",
            hint=f"Copy {named} into {shown(file.parent)}; the model is then taken again.",
            pointer=pointer,
        ) from None
    except LinkFound:
        fault = "is a link; links are not followed"
    except ModelFailed as refused:
        fault = f"cannot be used: {refused.args[0]}"
    except OSError as error:
        fault = f"cannot be read: {error.strerror}"
    if fault:
        raise InvalidDocument(f"The sidecar's {pointer}: {named} {fault}.", hint=_HINT, pointer=pointer)
    return file
