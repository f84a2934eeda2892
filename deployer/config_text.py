"""config.pbtxt: written and read back with Triton's own protobuf messages."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from deployer.backends import backend_of
from schemas.deployment import EntrySpec
from schemas.descriptor import DType, TensorSpec
from schemas.errors import InvalidDocument, ToolchainMissing

CONFIG_FILE = "config.pbtxt"
QUEUE_DELAY_US = 100
"""How long a lone request waits for company: far below the time a model takes, enough to collect a burst."""
UNKNOWN_AXIS = 8
"""Size of a dynamic axis in the warm-up where no size is known; small, and above a convolution's usual window of 7."""
TRITON_TYPES: dict[DType, str] = {
    "float64": "TYPE_FP64",
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "int16": "TYPE_INT16",
    "int8": "TYPE_INT8",
    "uint64": "TYPE_UINT64",
    "uint32": "TYPE_UINT32",
    "uint16": "TYPE_UINT16",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
    "string": "TYPE_STRING",
}


def labels_file(version: int) -> str:
    """Return the name of a version's label file; each has its own, so that a rollback finds the right one."""
    return f"labels-{version}.txt"


def labels_text(labels: tuple[str, ...]) -> str:
    """Return one label a line; whatever would start a new line becomes a space, so that no label moves the others."""
    return "".join("".join(c if c.isprintable() else " " for c in label) + "\n" for label in labels)


def config_text(spec: EntrySpec) -> str:
    """Return the text of ``spec``'s config.pbtxt. Raises Unsupported for a format that Triton has no backend for."""
    proto = _messages()
    backend = backend_of(spec.format)
    config = proto.ModelConfig(
        name=spec.name,
        platform=backend.platform,
        backend=backend.name,
        default_model_filename=backend.model_file,
        max_batch_size=spec.max_batch_size,
    )
    config.version_policy.specific.versions.append(spec.version)
    batched = spec.max_batch_size > 0
    for tensor in spec.inputs:
        item = config.input.add(name=tensor.name, data_type=_type(proto, tensor.dtype))
        _shape(item, tensor, batched=batched)
    for tensor in spec.outputs:
        item = config.output.add(name=tensor.name, data_type=_type(proto, tensor.dtype))
        _shape(item, tensor, batched=batched)
        if tensor.name == spec.labels_output and spec.labels:
            item.label_filename = labels_file(spec.version)
    kind = proto.ModelInstanceGroup.KIND_GPU if spec.hardware == "gpu" else proto.ModelInstanceGroup.KIND_CPU
    config.instance_group.add(kind=kind, count=1)
    for key, value in sorted(spec.parameters.items()):
        config.parameters[key].string_value = value
    if batched:
        config.dynamic_batching.preferred_batch_size.extend(_preferred(spec))
        config.dynamic_batching.max_queue_delay_microseconds = QUEUE_DELAY_US
    _warm_up(config, proto, spec)
    return _format(config)


def parse_config(text: str) -> Any:
    """Return ``text`` as Triton's ModelConfig message. Raises InvalidDocument with line and column."""
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, _messages().ModelConfig())
    except text_format.ParseError as error:
        raise InvalidDocument(f"{CONFIG_FILE} is not a Triton model configuration: {error}.") from None


def dims_of(tensor: TensorSpec, *, batched: bool) -> list[int]:
    """Return the dims of ``tensor`` as a client sees them: -1 for a dynamic axis, the batch axis left out."""
    shape = tensor.shape[1:] if batched else tensor.shape
    return [dim if isinstance(dim, int) else -1 for dim in shape] or [1]


def example_shape(spec: EntrySpec, tensor: TensorSpec, *, rows: int = 1) -> list[int]:
    """Return a shape that a client can send, with the batch axis where there is one."""
    batched = spec.max_batch_size > 0
    axes = tensor.shape[1:] if batched else tensor.shape
    sizes = [dim if isinstance(dim, int) else _axis(spec, dim) for dim in axes] or [1]
    return [rows, *sizes] if batched else sizes


def _axis(spec: EntrySpec, axis: str) -> int:
    return max(1, spec.example_axes.get(axis, 1 if axis == "batch" else UNKNOWN_AXIS))


def _shape(item: Any, tensor: TensorSpec, *, batched: bool) -> None:
    item.dims.extend(dims_of(tensor, batched=batched))
    if batched and len(tensor.shape) == 1:
        # One number a row: Triton wants at least one dim, and the model has none beside the batch axis.
        item.reshape.SetInParent()


def _preferred(spec: EntrySpec) -> list[int]:
    return sorted({size for size in spec.batching.sizes if 1 < size < spec.max_batch_size} | {spec.max_batch_size})[-2:]


def _warm_up(config: Any, proto: Any, spec: EntrySpec) -> None:
    """Add one request of zeros, so that the first caller does not pay for allocation and kernel selection.

    A model that takes strings gets none: an empty string may be a category that the model refuses, and a warm-up that
    fails keeps the model from loading. So does an axis whose size nobody has seen run.
    """
    for tensor in spec.inputs:
        axes = [dim for dim in tensor.shape if isinstance(dim, str) and dim != "batch"]
        if tensor.dtype == "string" or any(axis not in spec.example_axes for axis in axes):
            return
    warm_up = config.model_warmup.add(name="zeros", batch_size=1)
    for tensor in spec.inputs:
        item = warm_up.inputs[tensor.name]
        item.data_type = _type(proto, tensor.dtype)
        shape = example_shape(spec, tensor)
        item.dims.extend(shape[1:] if spec.max_batch_size > 0 else shape)
        item.zero_data = True


def _type(proto: Any, dtype: DType) -> int:
    return int(proto.DataType.Value(TRITON_TYPES[dtype]))


def _format(config: Any) -> str:
    from google.protobuf import text_format

    return str(text_format.MessageToString(config))


@cache
def _messages() -> Any:
    """Load Triton's generated messages from the tritonclient package without importing the package.

    Importing ``tritonclient.grpc`` brings numpy and grpc, 60 MB in every control-plane process; the generated module
    needs protobuf alone.
    """
    found = importlib.util.find_spec("tritonclient")
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder) / "grpc" / "model_config_pb2.py"
        spec = importlib.util.spec_from_file_location("deployer_model_config_pb2", path)
        if path.is_file() and spec is not None and spec.loader is not None:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise ToolchainMissing(
        "Triton's configuration messages are not installed.",
        hint="Install tritonclient: pip install tritonclient[grpc].",
    )
