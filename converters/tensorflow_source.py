"""Load Keras files and SavedModels in TensorFlow, as one traced function with named inputs and outputs."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.model_errors import RAISED_BY_MODELS, first_line
from schemas.descriptor import BATCH_AXIS, Dim, DType, Format, KnownBy, ModelDescriptor, TensorSpec
from schemas.errors import ModelFailed, Unsupported

SIGNATURES = ("serving_default", "serve", "predict")
"""Signatures of a SavedModel in the order they are preferred; a model with a single one is served by that."""
_QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "-1",
    "KERAS_BACKEND": "tensorflow",
    "GRPC_VERBOSITY": "NONE",
}
_DTYPES: dict[str, DType] = {
    "float64": "float64", "float32": "float32", "float16": "float16", "bfloat16": "bfloat16", "int64": "int64",
    "int32": "int32", "int16": "int16", "int8": "int8", "uint64": "uint64", "uint32": "uint32", "uint16": "uint16",
    "uint8": "uint8", "bool": "bool", "string": "string",
}  # fmt: skip
_EXPORT_HINT = 'Where its class is defined, run `model.export("folder")` and drop that folder, a SavedModel.'


def tensorflow(threads: int) -> Any:
    """Import TensorFlow for the CPU alone, silent, with at most ``threads`` threads; the first call decides."""
    os.environ.update(_QUIET)
    import tensorflow as tf

    logging.getLogger("tensorflow").setLevel(logging.CRITICAL)
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        # The process has run something already; its threads are what they are.
        pass
    return tf


def errors() -> tuple[type[Exception], ...]:
    """Return what TensorFlow and Keras raise about a model."""
    from tensorflow.errors import OpError

    return (OpError, *RAISED_BY_MODELS)


@dataclass(frozen=True)
class TensorflowModel:
    """A model as one concrete function, traced with the axes that its file leaves open."""

    trackable: Any
    """What owns the function's variables and tables; they die with it."""
    function: Any
    """A ConcreteFunction that takes its inputs by keyword, ``arguments``, and gives a dict."""
    inputs: tuple[TensorSpec, ...]
    arguments: tuple[str, ...]
    """The function's own keyword for each of ``inputs``."""
    outputs: dict[str, str]
    """Key of the function's dict to the output's name, in the model's order."""
    signature: str = ""
    operators: dict[str, int] | None = None


def dtype_of(dtype: Any, name: str) -> DType:
    """Return our name of a TensorFlow dtype. Raises Unsupported for resources, complex numbers and the like."""
    text = str(getattr(dtype, "name", dtype))
    if text not in _DTYPES:
        raise Unsupported(
            f"Tensor {name!r} of the model is of type {text}, which no served format carries.",
            hint="Export the model with inputs and outputs that are numbers, booleans or strings.",
        )
    return _DTYPES[text]


def spec_of(name: str, shape: Any, dtype: Any, *, single: bool) -> TensorSpec:
    """Return the spec of a tensor of TensorFlow's ``shape``; open axes get names, the leading one ``batch``.

    An open axis of the only input (``single``) is named for what it is in most models of that rank.
    """
    if getattr(shape, "rank", 0) is None:
        raise Unsupported(
            f"Tensor {name!r} of the model has no known number of axes.",
            hint="Export the model with an input signature that says how many axes each input has.",
        )
    dims: list[Dim] = []
    sizes = list(shape)
    for axis, size in enumerate(sizes):
        if size is not None and int(size) >= 0:
            dims.append(int(size))
        elif axis == 0:
            dims.append(BATCH_AXIS)
        elif single and len(sizes) == 4 and axis in (1, 2):
            dims.append("height" if axis == 1 else "width")
        elif single and len(sizes) in (2, 3) and axis == 1:
            dims.append("sequence")
        else:
            dims.append(f"{name[:200]}_{axis}")
    return TensorSpec(name=name, dtype=dtype_of(dtype, name), shape=tuple(dims), known_by=KnownBy.HEADER)


def load(path: Path, descriptor: ModelDescriptor, *, threads: int) -> TensorflowModel:
    """Load the Keras file or the SavedModel folder at ``path``. Raises ModelFailed that says why it does not load."""
    tf = tensorflow(threads)
    if descriptor.format is Format.SAVED_MODEL:
        return _saved_model(tf, path)
    file = path / descriptor.entry if path.is_dir() and descriptor.entry else path
    return _traced(tf, load_keras(file))


def load_keras(file: Path) -> Any:
    """Return the Keras model in ``file``, uncompiled, in safe mode: no code in it is deserialised.

    Raises ModelFailed, and Unsupported for a class that only the author's own code has.
    """
    import keras

    with _with_suffix(file) as named:
        try:
            return keras.saving.load_model(named, compile=False, safe_mode=True)
        except errors() as error:
            raise _not_loaded(error) from error


def _not_loaded(error: Exception) -> ModelFailed:
    text = str(error)
    if "Could not locate class" in text or "Unknown layer" in text or "Unknown object" in text:
        return Unsupported(f"Keras cannot load it: {first_line(error)}.", hint=_EXPORT_HINT)
    if "Lambda" in text or "safe_mode" in text:
        return Unsupported(
            "The model holds a Lambda layer, that is compiled Python code, which is never loaded.",
            hint="Replace it by a layer, for example Rescaling or an Activation, and save the model again.",
        )
    return ModelFailed(
        f"Keras cannot load it: {first_line(error)}.",
        hint="Load and save it once with Keras 3 (`keras.saving.load_model(path).save('model.keras')`), or export it "
        'as a SavedModel: `model.export("folder")`.',
    )


@contextmanager
def _with_suffix(file: Path) -> Iterator[str]:
    """Yield a path to ``file`` whose suffix is what its content is: Keras goes by the suffix alone."""
    with file.open("rb") as handle:
        suffix = ".keras" if handle.read(2) == b"PK" else ".h5"
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, f"model{suffix}")
        link.symlink_to(file.resolve())
        yield str(link)


def _traced(tf: Any, model: Any) -> TensorflowModel:
    """Trace a Keras model in inference mode, with its inputs and outputs named as Keras names them."""
    tensors = list(getattr(model, "inputs", None) or ())
    if not tensors:
        raise ModelFailed(
            "The Keras model was saved without ever being built, so that its inputs are not known.",
            hint="Call it once on an example, or start it with keras.Input, and save it again.",
        )
    names = _unique([str(tensor.name).split(":")[0] for tensor in tensors])
    inputs = tuple(
        spec_of(name, tensor.shape, tf.dtypes.as_dtype(tensor.dtype), single=len(tensors) == 1)
        for name, tensor in zip(names, tensors, strict=True)
    )
    # Keras names may hold what a function's parameter may not.
    arguments = tuple(f"input_{number}" for number in range(len(tensors)))
    signature = {
        argument: tf.TensorSpec(tensor.shape, tf.dtypes.as_dtype(tensor.dtype), name=argument)
        for argument, tensor in zip(arguments, tensors, strict=True)
    }
    labels: list[str] = []

    def serve(**given: Any) -> Any:
        ordered = [given[argument] for argument in arguments]
        result = model(ordered[0] if len(ordered) == 1 else ordered, training=False)
        flat = _flat(result, model)
        labels[:] = _unique([name for name, _ in flat])
        return {f"output_{number:04d}": tensor for number, (_, tensor) in enumerate(flat)}

    try:
        function = tf.function(serve, autograph=False).get_concrete_function(**signature)
    except errors() as error:
        raise ModelFailed(
            f"The model loads, but TensorFlow cannot trace it: {first_line(error)}.", hint=_EXPORT_HINT
        ) from error
    outputs = {f"output_{number:04d}": label for number, label in enumerate(labels)}
    return TensorflowModel(model, function, inputs, arguments, outputs, "Keras", _layers(model))


def _flat(result: Any, model: Any) -> list[tuple[str, Any]]:
    """Return name and tensor of every output: a dict's keys, else the layers that give them."""
    if isinstance(result, dict):
        named = [(str(key), value) for key, value in result.items()]
    else:
        values = list(result) if isinstance(result, list | tuple) else [result]
        inner = getattr(model, "_functional", None) or model
        layers = list(getattr(inner, "output_names", None) or ())
        if len(layers) != len(values):
            layers = [f"output_{number}" for number in range(len(values))]
        named = list(zip(map(str, layers), values, strict=True))
    for name, value in named:
        if not hasattr(value, "dtype") or not hasattr(value, "shape"):
            raise Unsupported(
                f"Output {name!r} of the model is a structure of tensors, which a server cannot name.",
                hint="Have the model return tensors, a list of tensors or a dict of tensors.",
            )
    return named


def _unique(names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in found:
            candidate, number = f"{name}_{number}", number + 1
        found.append(candidate[:256])
    return found


def _layers(model: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for layer in model._flatten_layers(include_self=False, recursive=True):
        counts[type(layer).__name__] = counts.get(type(layer).__name__, 0) + 1
    return counts


def _saved_model(tf: Any, path: Path) -> TensorflowModel:
    try:
        loaded = tf.saved_model.load(str(path))
    except errors() as error:
        raise ModelFailed(
            f"TensorFlow cannot load the SavedModel: {first_line(error)}.",
            hint="Copy the whole folder again, with variables/ in it; a model of custom operators needs their library "
            "and cannot be converted.",
        ) from error
    key = choose_signature([name for name in loaded.signatures if not name.startswith("__")])
    function = loaded.signatures[key]
    keywords = function.structured_input_signature[1]
    inputs = tuple(spec_of(name, spec.shape, spec.dtype, single=len(keywords) == 1) for name, spec in keywords.items())
    given = function.structured_outputs
    if not isinstance(given, dict) or not given:
        raise Unsupported(
            f"Signature {key!r} of the SavedModel gives nothing.",
            hint="Export it with a signature that returns a dict of tensors.",
        )
    return TensorflowModel(loaded, function, inputs, tuple(keywords), {name: name for name in given}, key)


def choose_signature(names: Sequence[str]) -> str:
    """Return the signature that is served. Raises Unsupported where there is none, or nothing tells which."""
    for wanted in SIGNATURES:
        if wanted in names:
            return wanted
    if len(names) == 1:
        return names[0]
    if not names:
        raise Unsupported(
            "The SavedModel has no signature, that is, no function with named inputs and outputs.",
            hint="Save it with one: `tf.saved_model.save(model, folder, signatures={'serving_default': function})`.",
        )
    raise Unsupported(
        f"The SavedModel has {len(names)} signatures ({', '.join(sorted(names)[:8])}) and none is called "
        "serving_default.",
        hint="Save it again with the one to serve under that name.",
    )
