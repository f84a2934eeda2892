"""What a drop's name lets one expect before it has been analysed: only a hint, for what takes long to have ready."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from schemas.catalog import TOOLCHAIN_OF_FORMAT
from schemas.descriptor import Format

_FORMATS = {
    ".pt": Format.TORCHSCRIPT,
    ".pth": Format.TORCHSCRIPT,
    ".pt2": Format.EXPORTED_PROGRAM,
    ".ts": Format.TORCHSCRIPT,
    ".safetensors": Format.SAFETENSORS,
    ".onnx": Format.ONNX,
    ".pkl": Format.SKLEARN,
    ".pickle": Format.SKLEARN,
    ".joblib": Format.SKLEARN,
    ".skops": Format.SKOPS,
    ".cbm": Format.CATBOOST,
    ".ubj": Format.XGBOOST,
    ".keras": Format.KERAS,
    ".h5": Format.KERAS,
    ".tflite": Format.TFLITE,
}
_FOLDERS = {"config.json": Format.HUGGINGFACE, "saved_model.pb": Format.SAVED_MODEL}


def expected_toolchain(name: str, place: Path) -> str | None:
    """Return the toolchain that a drop of that name, whose content lies at ``place``, most likely needs first."""
    if place.is_dir():
        found = next((format_ for marker, format_ in _FOLDERS.items() if (place / marker).is_file()), None)
    else:
        found = _FORMATS.get(PurePosixPath(name).suffix.lower())
    return TOOLCHAIN_OF_FORMAT[found] if found is not None else None
