"""Run a TFLite file in TensorFlow's own interpreter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from converters import tensorflow_source
from converters.arrays import Array, Arrays, cast, plain
from converters.domain import Domain
from converters.model_errors import first_line
from schemas.descriptor import TensorSpec
from schemas.errors import ModelFailed

_QUANTISED = frozenset({"int8", "uint8", "int16"})


class TfliteRunner:
    """One interpreter on the CPU; resized when the sizes of its inputs change."""

    runtime = "tflite"

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        """Load ``path``. Raises ModelFailed when the interpreter does not take it."""
        tf = tensorflow_source.tensorflow(threads)
        self._errors = tensorflow_source.errors()
        try:
            self._interpreter = tf.lite.Interpreter(model_content=path.read_bytes(), num_threads=threads)
            self._interpreter.allocate_tensors()
        except self._errors as error:
            raise ModelFailed(
                f"TFLite's interpreter does not load the model: {first_line(error)}.",
                hint="A model of custom operators needs their library and cannot be converted; else save it again.",
            ) from error
        takes, gives = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self.input_names, self.output_names = names_of(self._interpreter, takes, gives)
        self._takes = dict(zip(self.input_names, takes, strict=True))
        self._gives = dict(zip(self.output_names, gives, strict=True))
        self.inputs = tuple(
            tensorflow_source.spec_of(name, _shape(d), _dtype(d), single=len(takes) == 1)
            for name, d in self._takes.items()
        )
        self.outputs: tuple[TensorSpec, ...] = ()
        """Known from running; see the ``probe`` step."""
        self._shapes = {name: tuple(int(n) for n in d["shape"]) for name, d in self._takes.items()}

    @cached_property
    def domains(self) -> Mapping[str, Domain]:
        """Bounds of integer inputs that index a table, and the whole range of quantised ones."""
        from converters.tensorflow_runner import integer_limits

        full = {
            spec.name: Domain(limit=int(np.iinfo(spec.dtype).max) + 1)
            for spec in self.inputs
            if spec.dtype in _QUANTISED
        }
        return {**full, **integer_limits(self.run, self.inputs)}

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Return the outputs by name. Raises ModelFailed when the model refuses these inputs."""
        self._call(feeds)()
        return {name: _kept(self._interpreter.get_tensor(d["index"])) for name, d in self._gives.items()}

    def bind(self, feeds: Mapping[str, Array]) -> Callable[[], object]:
        """Return a call that runs ``feeds`` once; its inputs are set, so it holds until the next ``run``."""
        return self._call(feeds)

    def _call(self, feeds: Mapping[str, Array]) -> Callable[[], Any]:
        from converters.tensorflow_runner import signature

        missing = [name for name in self._takes if name not in feeds]
        if missing:
            raise ModelFailed(
                f"The model takes an input {missing[0]!r} that was not given.", hint=signature(self.inputs)
            )
        ready = {spec.name: np.ascontiguousarray(cast(feeds[spec.name], spec)) for spec in self.inputs}
        for spec in self.inputs:
            given = np.shape(feeds[spec.name])
            fits = len(given) == len(spec.shape) and all(
                isinstance(dim, str) or dim == size for dim, size in zip(spec.shape, given, strict=True)
            )
            if not fits:
                raise ModelFailed(
                    f"Input {spec.name!r} takes {list(spec.shape)}, and {list(given)} was given.",
                    hint=signature(self.inputs),
                )
            ready[spec.name] = ready[spec.name].reshape(given)
        interpreter, failures = self._interpreter, self._errors
        shapes = {name: array.shape for name, array in ready.items()}

        def call() -> None:
            try:
                if shapes != self._shapes:
                    for name, shape in shapes.items():
                        interpreter.resize_tensor_input(self._takes[name]["index"], list(shape))
                    self._shapes = {}
                    interpreter.allocate_tensors()
                    self._shapes = dict(shapes)
                for name, array in ready.items():
                    interpreter.set_tensor(self._takes[name]["index"], array)
                interpreter.invoke()
            except failures as error:
                raise ModelFailed(
                    f"TFLite could not run the model: {first_line(error)}.", hint=signature(self.inputs)
                ) from error

        return call


def names_of(interpreter: Any, takes: list[Any], gives: list[Any]) -> tuple[list[str], list[str]]:
    """Return the names of inputs and outputs: those of the only signature, else the tensors' own."""
    signatures = interpreter.get_signature_list()
    if len(signatures) == 1:
        runner = interpreter.get_signature_runner(next(iter(signatures)))
        inputs = {d["index"]: name for name, d in runner.get_input_details().items()}
        outputs: dict[int, list[str]] = {}
        for name, d in runner.get_output_details().items():
            outputs.setdefault(d["index"], []).append(name)
        if {d["index"] for d in takes} <= set(inputs) and {d["index"] for d in gives} <= set(outputs):
            # Two names may stand for one tensor; each takes the next of its names.
            named = [outputs[d["index"]].pop(0) if outputs[d["index"]] else f"output_{n}" for n, d in enumerate(gives)]
            return [inputs[d["index"]] for d in takes], named
    return _plain(takes, "input"), _plain(gives, "output")


def _plain(details: list[Any], otherwise: str) -> list[str]:
    names: list[str] = []
    for number, detail in enumerate(details):
        name = str(detail["name"]).split(":")[0] or f"{otherwise}_{number}"
        names.append(name if name not in names else f"{name}_{number}")
    return names


def _shape(detail: Any) -> list[int | None]:
    declared = detail.get("shape_signature")
    sizes = declared if declared is not None and len(declared) == len(detail["shape"]) else detail["shape"]
    return [None if int(n) < 0 else int(n) for n in sizes]


def _dtype(detail: Any) -> str:
    return "string" if detail["dtype"] in (np.bytes_, np.object_) else str(np.dtype(detail["dtype"]).name)


def _kept(value: Array) -> Array:
    array = plain(np.array(value))
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
