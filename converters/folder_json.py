"""The JSON files of a model folder, read with an error that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from converters.model_errors import first_line
from schemas.errors import ModelFailed


def read_object(file: Path) -> dict[str, Any]:
    """Return the object in ``file``. Raises ModelFailed when it is missing or holds something else."""
    value = _parse(file)
    if not isinstance(value, dict):
        raise ModelFailed(f"{file.name} is not a JSON object.", hint="Save the model again with save_pretrained.")
    return value


def read_list(file: Path) -> list[dict[str, Any]]:
    """Return the list of objects in ``file``. Raises ModelFailed when it is missing or holds something else."""
    value = _parse(file)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ModelFailed(f"{file.name} is not a list of JSON objects.", hint="Save the model again.")
    return value


def _parse(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFailed(
            f"The folder has no {file.name}.", hint="Save the model again with save_pretrained."
        ) from None
    except ValueError as error:
        raise ModelFailed(
            f"{file.name} is not valid JSON: {first_line(error)}.", hint="Save the model again."
        ) from error
