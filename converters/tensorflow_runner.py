"""Run Keras files and SavedModels in TensorFlow, and TFLite files in its interpreter."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from converters import tensorflow_source
from converters.arrays import Array, Arrays, cast, kind, plain
from converters.domain import Domain
from converters.lookup_keys import Keys, with_keys
from converters.model_errors import first_line
from converters.sampling import random_feeds, usual_size
from converters.tensorflow_source import TensorflowModel
from converters.tensorflow_tables import table_keys
from schemas.descriptor import Format, TensorSpec
from schemas.errors import ModelFailed
from schemas.precision import Precision
from schemas.step_io import StepContext

if TYPE_CHECKING:
    from converters.runners import Runner

_RANGE = re.compile(r"is not in \[0, (\d+)\)")
_MOST = (1 << 31) - 1
_MOVES = frozenset({"Identity", "IdentityN", "StopGradient", "Reshape", "Transpose", "ExpandDims", "Squeeze"})
"""Operators that take half floats and compute nothing."""


class TensorflowRunner:
    """One traced function on the CPU."""

    runtime = "tensorflow"

    def __init__(self, model: TensorflowModel, *, threads: int = 1) -> None:
        self.model = model
        self._tf = tensorflow_source.tensorflow(threads)
        self._errors = tensorflow_source.errors()
        self.inputs = model.inputs
        self.outputs: tuple[TensorSpec, ...] = ()
        """Known from running; see the ``probe`` step."""

    @staticmethod
    def load(context: StepContext) -> Runner:
        """Load input ``model`` in TensorFlow; a TFLite file in its interpreter. Raises ModelFailed."""
        from converters.runners import descriptor_of
        from converters.tflite_runner import TfliteRunner

        path, descriptor, threads = context.input("model"), descriptor_of(context), context.request.threads
        if descriptor.format is Format.TFLITE:
            file = path / descriptor.entry if path.is_dir() and descriptor.entry else path
            return TfliteRunner(file, threads=threads)
        runner = TensorflowRunner(tensorflow_source.load(path, descriptor, threads=threads), threads=threads)
        runner.outputs = descriptor.outputs
        return runner

    @cached_property
    def arithmetic(self) -> Precision:
        """The coarsest float that an operator of the graph computes in; weights that are only stored in it don't count.

        TensorFlow rounds after every operator, and onnxruntime leaves roundings between two of them out.
        """
        graph = self.model.function.graph.as_graph_def()
        nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        computed = {node.attr["T"].type for node in nodes if node.op not in _MOVES}
        for name, precision in (("bfloat16", Precision.BF16), ("float16", Precision.FP16)):
            if self._tf.dtypes.as_dtype(name).as_datatype_enum in computed:
                return precision
        return Precision.FP32

    @cached_property
    def domains(self) -> Mapping[str, Domain]:
        """Bounds of integer inputs that index weights, found out by asking for a row they cannot have; keys of tables.

        Which table an input is looked up in is not followed: it may be any of those with keys of its dtype.
        """
        keys = Keys()
        keys.add(table_keys(self.model.function))
        return with_keys(integer_limits(self.run, self.inputs), self.inputs, {s.name: keys for s in self.inputs})

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Return the outputs by name. Raises ModelFailed when the model refuses these inputs."""
        given = self._call(feeds)()
        return {name: _kept(given[key]) for key, name in self.model.outputs.items()}

    def bind(self, feeds: Mapping[str, Array]) -> Callable[[], object]:
        """Return a call that runs ``feeds`` once on tensors that are already made."""
        return self._call(feeds)

    def _call(self, feeds: Mapping[str, Array]) -> Callable[[], Any]:
        missing = [spec.name for spec in self.inputs if spec.name not in feeds]
        if missing:
            raise ModelFailed(
                f"The model takes an input {missing[0]!r} that was not given.", hint=signature(self.inputs)
            )
        function, failures = self.model.function, self._errors
        try:
            ready = {
                argument: self._tf.constant(_fed(feeds[spec.name], spec), self._tf.dtypes.as_dtype(spec.dtype))
                for argument, spec in zip(self.model.arguments, self.inputs, strict=True)
            }
        except failures as error:
            raise self._refused(error) from error

        def call() -> Any:
            try:
                return function(**ready)
            except failures as error:
                raise self._refused(error) from error

        return call

    def _refused(self, error: Exception) -> ModelFailed:
        return ModelFailed(f"TensorFlow could not run the model: {first_line(error)}.", hint=signature(self.inputs))


def signature(inputs: tuple[TensorSpec, ...]) -> str:
    """Return the sentence that says what a model takes."""
    takes = ", ".join(f"{spec.name}: {spec.dtype}{list(spec.shape)}" for spec in inputs)
    return f"It takes {takes}."[:1000]


def _fed(array: Array, spec: TensorSpec) -> Array:
    array = cast(array, spec)
    return array.astype(object) if spec.dtype == "string" else array


def _kept(value: Any) -> Array:
    array = plain(np.array(value.numpy()))
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def integer_limits(run: Callable[[Mapping[str, Array]], Arrays], inputs: tuple[TensorSpec, ...]) -> dict[str, Domain]:
    """Return how many values each integer input of a loaded model may take, where more make it fail.

    A table's lookup fails on the CPU for a row that is not there; TensorFlow names the number of rows, and where the
    runtime does not, the bound is searched for. Models that cannot run on zeros tell nothing.
    """
    integers = [spec for spec in inputs if kind(spec.dtype) == "integer" and spec.dtype not in ("uint8", "int8")]
    if not integers:
        return {}
    sizes = {dim: usual_size(dim) for spec in inputs for dim in spec.shape if isinstance(dim, str)}
    feeds = random_feeds(inputs, sizes, np.random.default_rng(0))
    for spec in integers:
        feeds[spec.name] = np.zeros_like(feeds[spec.name])
    limits: dict[str, Domain] = {}

    def failure(name: str, value: int) -> str | None:
        try:
            run({**feeds, name: np.full_like(feeds[name], value)})
        except ModelFailed as error:
            return str(error.args[0])
        return None

    for spec in integers:
        most = min(_MOST, int(np.iinfo(spec.dtype).max))
        why = failure(spec.name, most)
        if why is None or failure(spec.name, 0) is not None:
            continue
        told = _RANGE.search(why)
        limits[spec.name] = Domain(limit=int(told[1]) if told else _bound(partial(failure, spec.name), most))
    return limits


def _bound(failure: Callable[[int], str | None], most: int) -> int:
    """Return the least value that fails, given that 0 runs and ``most`` fails."""
    runs, fails = 0, most
    while fails - runs > 1:
        middle = (runs + fails) // 2
        if failure(middle) is None:
            runs = middle
        else:
            fails = middle
    return fails
