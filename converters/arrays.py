"""Arrays: the numpy side of tensors, their dtypes, and the plain .npz files they are kept in."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from converters.model_errors import first_line
from schemas.descriptor import DType, TensorSpec
from schemas.errors import InvalidDocument, ModelFailed, Unsupported

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
"""Tensor name to array."""

MAX_NPZ_BYTES = 4 << 30
"""Arrays of one file together, uncompressed: an .npz is a zip and may be a bomb."""

_KEPT_AS: dict[str, str] = {"bfloat16": "float32", "string": "str"}
_DTYPES: frozenset[str] = frozenset(get_args(DType))


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """Return the dtype that arrays of ``dtype`` are kept in: bfloat16 as float32, strings as unicode."""
    return np.dtype(_KEPT_AS.get(dtype, dtype))


def dtype_name(array: Array) -> DType:
    """Return our name for an array's dtype. Raises Unsupported for complex, dates and the like."""
    if array.dtype.kind in "USO":
        return "string"
    name = array.dtype.name
    if name not in _DTYPES:
        raise Unsupported(
            f"The model gives values of type {name}, which no served format carries.",
            hint="Have the model return floats, integers, booleans or strings"
            + (": torch.view_as_real makes two floats of each." if array.dtype.kind == "c" else "."),
        )
    return name  # type: ignore[return-value]


def kind(dtype: DType) -> str:
    """Return 'float', 'integer', 'bool' or 'string': what comparing and drawing samples depend on."""
    if dtype in ("string", "bool"):
        return dtype
    return "float" if "float" in dtype else "integer"


def plain(array: Array) -> Array:
    """Return ``array`` without Python objects: objects and bytes become unicode; the rest is returned as it is."""
    if array.dtype.kind == "S":
        return np.char.decode(array, "utf-8", "replace")
    if array.dtype.kind == "O":
        texts = [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in array.reshape(-1)]
        return np.array(texts, dtype=np.str_).reshape(array.shape)
    return array


def save(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write ``arrays`` as an .npz that needs no pickle to read."""
    # Names such as 'file' would collide with savez's own parameter, so the members are written one by one.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(_member(name), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(plain(array)).reshape(array.shape), None, False)


def load(path: Path) -> Arrays:
    """Read an .npz. Raises InvalidDocument when it is broken, too large or holds Python objects."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            size_bytes = sum(member.file_size for member in members)
            if size_bytes > MAX_NPZ_BYTES:
                raise InvalidDocument(
                    f"The arrays in {path.name} take {size_bytes >> 20} MiB, the limit is {MAX_NPZ_BYTES >> 20} MiB.",
                    hint="Keep fewer rows in it.",
                )
            arrays: Arrays = {}
            for member in members:
                with archive.open(member) as stream:
                    array = np.lib.format.read_array(stream, allow_pickle=False)
                arrays[_name(member.filename)] = array
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        raise InvalidDocument(
            f"{path.name} is not a readable .npz: {first_line(error)}.",
            hint="Write it with numpy.savez, from arrays of numbers or strings, without Python objects.",
        ) from error
    return arrays


def _member(name: str) -> str:
    # A tensor may be called 'encoder/output'; a zip member of that name is legal, but '/' at the front is not.
    return f"{name.replace('%', '%25').replace('/', '%2F')}.npy"


def _name(member: str) -> str:
    return member.removesuffix(".npy").replace("%2F", "/").replace("%25", "%")


def cast(array: Array, spec: TensorSpec) -> Array:
    """Return ``array`` in the dtype that ``spec`` is kept in. Raises ModelFailed for values of another kind."""
    wanted = numpy_dtype(spec.dtype)
    if array.dtype == wanted or (spec.dtype == "string" and array.dtype.kind == "U"):
        return array
    if spec.dtype == "string":
        return plain(array.astype(object))
    if array.dtype.kind not in "biuf":
        raise ModelFailed(
            f"Input {spec.name!r} takes {spec.dtype}, but the array for it holds {array.dtype.name}.",
            hint="Check the dtype of this input in the sidecar and in its samples.",
        )
    return array.astype(wanted)
