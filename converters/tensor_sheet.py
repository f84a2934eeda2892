"""The sheet that names a model's tensors, for formats whose own file knows positions only."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from schemas.descriptor import KnownBy, TensorSpec
from schemas.document import Document
from schemas.errors import ModelFailed

SHEET_FILE = "tensors.json"


class TensorSheet(Document):
    """Inputs and outputs in the order that the model takes and gives them, named as the original's are."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def parse(text: str | bytes, where: str) -> TensorSheet:
    """Return the sheet that ``text`` is. Raises ModelFailed that names ``where`` it was found."""
    try:
        return TensorSheet.model_validate_json(text)
    except ValidationError as error:
        raise ModelFailed(
            f"{where} does not name its tensors: {error.errors()[0]['msg']}.",
            hint="Only a file that Modelium wrote carries them.",
        ) from None


def read(folder: Path) -> TensorSheet:
    """Return the sheet that lies in ``folder``. Raises ModelFailed when there is none."""
    file = folder / SHEET_FILE
    if not file.is_file():
        raise ModelFailed(f"The model's folder has no {SHEET_FILE}.", hint="Convert the model again.")
    return parse(file.read_bytes(), SHEET_FILE)


def known(spec: TensorSpec) -> TensorSpec:
    """Return ``spec`` as what the model's own file says."""
    return spec.model_copy(update={"known_by": KnownBy.HEADER})
