"""OpenVINO IR files: where a model lies, its tensors and operators, what it asks of the runtime, saving and proving."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.model_errors import RAISED_BY_MODELS, first_line
from schemas.descriptor import Dim, DType, KnownBy, ModelDescriptor, TensorSpec
from schemas.errors import ConversionFailed, ModelFailed, Unsupported
from schemas.evidence import ConversionReport
from schemas.step_io import StepContext, StepOutcome

if TYPE_CHECKING:
    import openvino

MODEL_FILE = "model.xml"
WEIGHTS_FILE = "model.bin"
OUTPUT_FOLDER = "model"
"""Below ``out/``, what every converter to OpenVINO writes: a folder with ``model.xml`` and ``model.bin``."""
SERVED_OPSET = 15
"""The newest operator set of OpenVINO 2024, which the target's Triton (24.12) carries; 25.03 carries 2025.0."""
HINT = ("modelium", "inference_precision")
"""Where the IR's ``rt_info`` says which precision it is to be run in: what Triton's parameter HINT_BF16 sets."""

_DTYPES: dict[str, DType] = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "i64": "int64", "i32": "int32",
    "i16": "int16", "i8": "int8", "u64": "uint64", "u32": "uint32", "u16": "uint16", "u8": "uint8",
    "boolean": "bool", "string": "string",
}  # fmt: skip
_SOURCE_LINE = re.compile(r"^(Exception from \S+:\d+:|Check '.*' failed at \S+:\d+:)$")
_INLINE_SOURCE = re.compile(r"(Exception from \S+:\d+:|(Check '[^']*' )?failed at \S+:\d+:|\S+\.[ch]pp:\d+:?)\s*")
_LACKING = re.compile(r"No conversion rule found for operations: ([^\n]+)")
_NO_OPERATORS = frozenset({"Parameter", "Result", "Constant"})


def find(path: Path, descriptor: ModelDescriptor | None = None) -> Path:
    """Return the .xml at ``path``: the file itself, the descriptor's entry, ``model.xml`` or the only one there.

    Raises ModelFailed when there is none, or several and no entry.
    """
    if path.is_file():
        return path
    if descriptor is not None and descriptor.entry and (path / descriptor.entry).is_file():
        return path / descriptor.entry
    for name in (MODEL_FILE, "openvino_model.xml"):
        if (path / name).is_file():
            return path / name
    files = sorted(path.rglob("*.xml"))
    if len(files) == 1:
        return files[0]
    names = ", ".join(file.relative_to(path).as_posix() for file in files[:5])
    raise ModelFailed(
        f"The folder has {len(files)} .xml files ({names})." if files else "The folder has no .xml file.",
        hint="Keep one model, its .xml and its .bin, or call the one to serve model.xml and model.bin.",
    )


def core() -> openvino.Core:
    """Return OpenVINO's core. It has no plugin but the CPU's to compile for."""
    import openvino

    return openvino.Core()


def read(path: Path) -> openvino.Model:
    """Return the model at ``path`` with the weights beside it. Raises ModelFailed when it does not load."""
    try:
        return core().read_model(str(path))
    except errors() as error:
        raise ModelFailed(
            f"OpenVINO cannot read {path.name}: {reason(error)}.",
            hint="The .xml and its .bin have to come from one export; copy both again, into one folder.",
        ) from error


def model_specs(model: openvino.Model) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return inputs and outputs. An axis that may change is called ``<tensor>_<position>``, as IR names none.

    Raises Unsupported for a tensor that has no name, or a type or a rank that cannot be served.
    """
    return tuple(_spec(port) for port in model.inputs), tuple(_spec(port) for port in model.outputs)


def _spec(port: Any) -> TensorSpec:
    name = name_of(port)
    dtype = _DTYPES.get(port.element_type.get_type_name())
    if dtype is None or dtype == "string":
        raise Unsupported(
            f"Tensor {name!r} of the model holds {port.element_type.get_type_name()}, which OpenVINO's CPU runtime "
            "does not serve.",
            hint="Text and other objects are served by onnxruntime, from an ONNX model.",
        )
    shape = port.partial_shape
    if shape.rank.is_dynamic:
        raise Unsupported(
            f"Nobody can tell how many axes tensor {name!r} has, and Triton's openvino backend has to know.",
            hint="Serve the model with onnxruntime.",
        )
    dims: tuple[Dim, ...] = tuple(
        f"{name}_{position}" if dim.is_dynamic else int(dim.get_length()) for position, dim in enumerate(shape)
    )
    return TensorSpec(name=name, dtype=dtype, shape=dims, known_by=KnownBy.HEADER)


def name_of(port: Any) -> str:
    """Return the name that Triton's backend finds a tensor by: the first of its names."""
    names = sorted(port.names)
    return names[0] if names else str(port.node.friendly_name)


def operators(model: openvino.Model) -> dict[str, int]:
    """Return operator to count, without the ends of the graph and its constants."""
    counts = Counter(op.get_type_name() for op in all_operators(model))
    return {name: number for name, number in sorted(counts.items()) if name not in _NO_OPERATORS}


def all_operators(model: openvino.Model) -> list[Any]:
    """Return every operator in an order of execution."""
    return list(model.get_ordered_ops())


def hint(model: openvino.Model) -> str | None:
    """Return the precision that the model says it is to be run in, ``bf16``, or None."""
    if not model.has_rt_info(list(HINT)):
        return None
    return str(model.get_rt_info(list(HINT)).astype(str))


def errors() -> tuple[type[Exception], ...]:
    """Return what OpenVINO raises about a model: its frontends' own classes share no base but Exception."""
    from openvino import frontend

    own = (value for value in vars(frontend).values() if isinstance(value, type) and issubclass(value, Exception))
    return (*own, *RAISED_BY_MODELS)


def reason(error: BaseException) -> str:
    """Return what OpenVINO says, without its own source lines and our paths."""
    lacking = _LACKING.search(str(error))
    if lacking:
        return f"it has no operator {', '.join(lacking.group(1).split())}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not _SOURCE_LINE.match(line)]
    text = _INLINE_SOURCE.sub("", " ".join(lines))
    return first_line(RuntimeError(re.sub(r"(/[\w.-]+){2,}/", "", text) or type(error).__name__), 300)


def check_served(model: openvino.Model) -> None:
    """Raise ConversionFailed when the target's OpenVINO does not know an operator, or Triton cannot feed an input."""
    for op in all_operators(model):
        version = str(op.get_type_info().version_id or "")
        number = version.removeprefix("opset")
        if number.isdigit() and int(number) > SERVED_OPSET:
            raise ConversionFailed(
                f"Operator {op.get_type_name()} is of {version}; the target's OpenVINO knows up to opset{SERVED_OPSET}."
            )
    for port in model.inputs:
        if port.partial_shape.rank.is_static and port.partial_shape.rank.get_length() == 0:
            raise ConversionFailed(
                f"Input {name_of(port)!r} is a single number, and Triton's openvino backend takes no such input.",
                hint="Serve the model with onnxruntime.",
            )


def finish(
    context: StepContext,
    model: openvino.Model,
    cases: Iterable[Mapping[str, Any]],
    notes: Sequence[str] = (),
    *,
    compress_to_fp16: bool = False,
) -> StepOutcome:
    """Save ``model`` as the step's output, load it back, run it on ``cases``, and return the outcome and its report.

    Raises ConversionFailed when what was written does not load or run.
    """
    import openvino

    from converters.openvino_runner import OpenvinoRunner

    check_served(model)
    context.progress(0.85, "Saving and running the OpenVINO model")
    folder = context.out / OUTPUT_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / MODEL_FILE
    counts = operators(model)
    openvino.save_model(model, str(file), compress_to_fp16=compress_to_fp16)
    try:
        runner = OpenvinoRunner(file, threads=context.request.threads)
        for feeds in cases:
            runner.run(feeds)
    except ModelFailed as error:
        raise ConversionFailed(f"The OpenVINO model that was written does not run: {error.args[0]}") from error
    report = ConversionReport(
        operators=counts,
        inputs=runner.inputs,
        outputs=runner.outputs,
        size_bytes=sum(part.stat().st_size for part in folder.iterdir()),
        notes=tuple(dict.fromkeys(note[:500] for note in notes))[:50],
    )
    context.progress(1.0, "Converted")
    return StepOutcome(report=report, outputs={"model": OUTPUT_FOLDER})
