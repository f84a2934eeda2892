"""Building engines from ONNX: the one code path of TensorRT-RTX and TensorRT, whose Python interfaces agree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from converters import onnx_file
from converters.sampling import SEQUENCE_AXIS, usual_size
from schemas.descriptor import BATCH_AXIS, ModelDescriptor, TensorSpec
from schemas.engine import ShapeRange
from schemas.errors import ConversionFailed
from schemas.evidence import ReferenceReport
from schemas.step_io import StepContext

SHEET_FILE = "engines.json"
_CHUNK_BYTES = 1 << 20


class Complaints:
    """What a builder logged as warnings and errors, to be told to a person; the last ones say most."""

    def __init__(self, trt: Any) -> None:
        """Make the logger that ``trt`` wants, which keeps instead of printing."""
        kept: list[str] = []

        class Keep(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                    kept.append(message)

        self.errors, self.logger = kept, Keep()

    def last(self) -> str:
        """Return the last error in one line."""
        text = " ".join(self.errors[-1].split()) if self.errors else "it gave no reason"
        return text.rstrip(".")[:400]


def parse(trt: Any, builder: Any, file: Path, complaints: Complaints, *, flags: int) -> Any:
    """Return the network of the ONNX ``file`` and its parser, which has to outlive it.

    Raises ConversionFailed that names the operator.
    """
    foreign = sorted(name for name in onnx_file.operators(onnx_file.load(file)) if "::" in name)
    if foreign:
        raise ConversionFailed(
            f"The graph uses {', '.join(foreign[:5])}, which only onnxruntime has.",
            hint="Build from the exported graph, before onnxruntime's fusions.",
            operator=foreign[0],
        )
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, complaints.logger)
    if not parser.parse_from_file(str(file)):
        errors = [parser.get_error(number) for number in range(parser.num_errors)]
        first = errors[0] if errors else None
        what = f"{first.node_operator()} ({first.node_name()}): {first.desc()}" if first else complaints.last()
        raise ConversionFailed(f"The builder cannot read the graph: {' '.join(what.split())[:400]}.")
    return network, parser


def ranges(
    context: StepContext, inputs: Sequence[TensorSpec], batch_sizes: Sequence[int], most: Mapping[str, int]
) -> dict[str, ShapeRange]:
    """Return the sizes that engines are built for, by input with a dynamic axis.

    The batch goes from 1 to the largest that the target or the reference names, best at the target's first; every
    other axis covers the sizes that the original was seen to run at, sequences from 1. ``most`` raises an axis' end.
    """
    descriptor = context.request.descriptor
    seen = _seen(context)
    axes: dict[str, tuple[int, int, int]] = {}
    for spec in inputs:
        for axis in (dim for dim in spec.shape if isinstance(dim, str)):
            best = _example(descriptor, axis)
            if axis == BATCH_AXIS:
                axes[axis] = (1, batch_sizes[0], max(*batch_sizes, *seen.get(axis, ()), most.get(axis, 1)))
            else:
                sizes = (*seen.get(axis, ()), best, most.get(axis, best))
                axes[axis] = (1 if axis == SEQUENCE_AXIS else min(sizes), best, max(sizes))
    made = {}
    for spec in inputs:
        if any(isinstance(dim, str) for dim in spec.shape):
            shapes = [
                tuple(dim if isinstance(dim, int) else axes[dim][which] for dim in spec.shape) for which in range(3)
            ]
            made[spec.name] = ShapeRange(least=shapes[0], best=shapes[1], most=shapes[2])
    return made


def named_axes(context: StepContext, inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return ``inputs`` with the descriptor's names for their axes, where it has an input of that name and rank."""
    descriptor = context.request.descriptor
    known = {spec.name: spec for spec in descriptor.inputs} if descriptor is not None else {}
    return tuple(
        spec.model_copy(update={"shape": known[spec.name].shape})
        if spec.name in known and len(known[spec.name].shape) == len(spec.shape)
        else spec
        for spec in inputs
    )


def add_profile(builder: Any, config: Any, profile: Mapping[str, ShapeRange]) -> None:
    """Give ``config`` the one optimisation profile that ``profile`` describes; none where every axis is fixed."""
    if not profile:
        return
    made = builder.create_optimization_profile()
    for name, sizes in profile.items():
        made.set_shape(name, sizes.least, sizes.best, sizes.most)
    config.add_optimization_profile(made)


def build(builder: Any, network: Any, config: Any, complaints: Complaints, what: str) -> bytes:
    """Return the serialised engine. Raises ConversionFailed with the builder's reason."""
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ConversionFailed(f"No engine could be built for {what}: {complaints.last()}.")
    return bytes(engine)


def graph_sha256(folder: Path) -> str:
    """Return the sha256 over the names and bytes of the ONNX file in ``folder`` and its data, in order of name."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob(f"{onnx_file.MODEL_FILE}*")):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def sha256(data: bytes) -> str:
    """Return the sha256 of ``data`` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _example(descriptor: ModelDescriptor | None, axis: str) -> int:
    found = descriptor.example_axes.get(axis) if descriptor is not None else None
    return found or usual_size(axis)


def _seen(context: StepContext) -> dict[str, tuple[int, ...]]:
    """Return axis to the sizes that the original ran at, by the reference; {} without one."""
    file = context.input("reference") / "cases.json" if context.has("reference") else None
    if file is None or not file.is_file():
        return {}
    report = ReferenceReport.model_validate(json.loads(file.read_text(encoding="utf-8")))
    sizes: dict[str, tuple[int, ...]] = {}
    for case in report.cases:
        for axis, size in case.axes.items():
            sizes[axis] = (*sizes.get(axis, ()), max(size, 1))
    return sizes
