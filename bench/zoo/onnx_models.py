"""ONNX's own backend test models, each in a folder with its inputs as a sidecar's samples, and what it must give.

A model's folder is what a person would drop: ``model.onnx``, ``modelium.yaml`` and ``samples.npz``. What it must give
lies in ``expected/`` beside the folders, with whether onnxruntime itself runs it, and never goes through the pipeline.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

KINDS = {
    "node": "operators",
    "simple": "simple graphs",
    "pytorch-converted": "layers exported by PyTorch",
    "pytorch-operator": "operators exported by PyTorch",
    "real": "image networks",
}
"""ONNX's name of a kind of test to ours."""
EXPECTED = "expected"
MODEL = "model.onnx"
SAMPLES = "samples.npz"
_TOLERANCE = " tolerance"
"""Key of the test's rtol and atol among what it must give; no tensor is called so."""


@dataclass(frozen=True)
class BackendCase:
    """One backend test: the model as bytes, its first set of inputs and what it must give, by position."""

    name: str
    kind: str
    model: bytes
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    rtol: float
    atol: float


def cases() -> Iterator[BackendCase]:
    """Yield every backend test that carries its model: those that would have to be downloaded are left out."""
    from onnx.backend.test import loader

    for kind in KINDS:
        with warnings.catch_warnings():
            # The tests compute what they expect with numpy, which warns of the overflows they are about.
            warnings.simplefilter("ignore")
            found = loader.load_model_tests(kind=kind)
        for case in sorted(found, key=lambda one: one.name):
            yield from _read(case)


def models(folder: Path) -> Iterator[tuple[str, Path]]:
    """Write every model below ``folder`` and yield its name, ``<kind>/<test>``, with its folder."""
    from itself import runs_itself

    for case in cases():
        made = write(case, folder)
        answer = folder / EXPECTED / case.kind / f"{made.name}.itself"
        answer.parent.mkdir(parents=True, exist_ok=True)
        answer.write_text(runs_itself(case))
        yield f"{case.kind}/{case.name.removeprefix('test_')}", made


def write(case: BackendCase, folder: Path) -> Path:
    """Write one test as a folder to drop, and what it must give beside it; return the folder."""
    import onnx

    made = folder / case.kind / case.name.removeprefix("test_")
    made.mkdir(parents=True, exist_ok=True)
    (made / MODEL).write_bytes(case.model)
    graph = onnx.load_model_from_string(case.model).graph
    stored = {tensor.name for tensor in graph.initializer}
    names = [value.name for value in graph.input]
    if len(case.inputs) != len(names):
        names = [name for name in names if name not in stored]
    given = {
        name: array for name, value in zip(names, case.inputs, strict=False) if (array := served(value)) is not None
    }
    sidecar = [f"name: {_label(case)}"]
    if given and len(given) == len(case.inputs):
        _save(made / SAMPLES, given)
        sidecar.append(f"samples: {SAMPLES}")
    if given and len(given) == len(case.inputs) and not all(_has_shape(value) for value in graph.input):
        # Where a file tells no shape, a person is asked for it.
        sidecar.append("inputs:")
        sidecar += [
            f"- {{name: {name}, dtype: {array.dtype.name}, shape: {list(array.shape)}}}"
            for name, array in given.items()
        ]
    (made / "modelium.yaml").write_text("\n".join(sidecar) + "\n")
    expected = {
        output.name: array
        for output, value in zip(graph.output, case.outputs, strict=False)
        if (array := served(value)) is not None
    }
    if len(expected) == len(graph.output):
        target = folder / EXPECTED / case.kind
        target.mkdir(parents=True, exist_ok=True)
        _save(target / f"{made.name}.npz", {**expected, _TOLERANCE: np.array([case.rtol, case.atol])})
    return made


def _has_shape(value: Any) -> bool:
    kind = value.type
    for outer in ("optional_type", "sequence_type"):
        kind = getattr(kind, outer).elem_type if kind.HasField(outer) else kind
    return bool(kind.tensor_type.HasField("shape"))


def served(value: Any) -> np.ndarray[Any, Any] | None:
    """Return a test's value as a person gives it and the pipeline keeps it; None for what has no such form.

    Float8 is float16, and a sequence whose tensors have one shape is one array.
    """
    if isinstance(value, list):
        parts = [served(part) for part in value]
        if not parts or any(part is None for part in parts) or len({np.shape(part) for part in parts}) > 1:
            return None
        return np.stack([part for part in parts if part is not None])
    if not isinstance(value, np.ndarray):
        return None
    array = value.astype(np.float16) if value.dtype.name.startswith("float8") else value
    return array if _plain(array) else None


def expected(folder: Path, model: Path) -> tuple[dict[str, np.ndarray[Any, Any]], float, float] | None:
    """Return what the model at ``model`` below ``folder`` must give, with the test's rtol and atol; None if untold."""
    file = folder / EXPECTED / model.relative_to(folder).parent / f"{model.name}.npz"
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as stored:
        arrays = {name.replace("%2F", "/").replace("%25", "%"): stored[name] for name in stored.files}
    rtol, atol = arrays.pop(_TOLERANCE)
    return arrays, float(rtol), float(atol)


def _read(case: Any) -> Iterator[BackendCase]:
    from onnx import numpy_helper

    if case.model is not None:
        inputs, outputs = (tuple(_array(value) for value in side) for side in case.data_sets[0])
        yield BackendCase(case.name, case.kind, case.model.SerializeToString(), inputs, outputs, case.rtol, case.atol)
        return
    if case.model_dir is not None:
        place = Path(case.model_dir)
        data = sorted(place.glob("test_data_set_*"))
        inputs, outputs = (_tensors(data[0], side) if data else () for side in ("input", "output"))
        model = (place / MODEL).read_bytes()
        yield BackendCase(case.name, case.kind, model, inputs, outputs, case.rtol, case.atol)
        return
    import onnx

    light = Path(onnx.__file__).parent.parent / case.url
    if light.is_file():
        # The networks whose weights are made on the spot; they come with an answer to a ramp.
        model = onnx.load(light)
        stored = {tensor.name for tensor in model.graph.initializer}
        value = next(value for value in model.graph.input if value.name not in stored)
        shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        ramp = (np.arange(np.prod(shape)).reshape(shape) / np.prod(shape)).astype(np.float32)
        answer = onnx.load_tensor(light.parent / f"{light.stem}_output_0.pb")
        outputs = (numpy_helper.to_array(answer),)
        yield BackendCase(case.name, case.kind, model.SerializeToString(), (ramp,), outputs, case.rtol, case.atol)


def _tensors(folder: Path, side: str) -> tuple[Any, ...]:
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper

    files: Sequence[Path] = sorted(folder.glob(f"{side}_*.pb"), key=lambda file: int(file.stem.rpartition("_")[2]))
    values: list[Any] = []
    for file in files:
        try:
            values.append(numpy_helper.to_array(onnx.load_tensor(file)))
        except (DecodeError, TypeError, ValueError):
            values.append(None)  # a sequence or an optional value
    return tuple(values)


def _array(value: Any) -> Any:
    """Return a tensor in a message as an array, bfloat16 as the float32 that it is kept in everywhere."""
    import onnx
    from onnx import numpy_helper

    array = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
    if isinstance(array, np.generic):
        array = np.asarray(array)
    if isinstance(array, np.ndarray) and array.dtype.name == "bfloat16":
        return array.astype(np.float32)
    return array


def _label(case: BackendCase) -> str:
    """Return a name to deploy the test under: a DNS label that no other test has."""
    import hashlib
    import re

    plain = re.sub("[^a-z0-9]+", "-", f"{case.kind}-{case.name.removeprefix('test_')}".lower()).strip("-")
    return f"{plain[:50].rstrip('-')}-{hashlib.sha256(case.name.encode()).hexdigest()[:6]}"


def _plain(array: np.ndarray[Any, Any]) -> bool:
    """Whether an .npz carries the array: numbers that numpy has itself, and strings."""
    return array.dtype.kind in "biufUSO" and array.dtype.isbuiltin == 1


def _save(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            texts = array.astype(np.str_) if array.dtype.kind in "OS" else array
            member = name.replace("%", "%25").replace("/", "%2F")
            with archive.open(f"{member}.npy", "w") as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(texts).reshape(texts.shape), allow_pickle=False)
