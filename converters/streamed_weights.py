"""Weights of a big or tied torch model, written beside its ONNX graph tensor by tensor, each storage once.

An exporter that puts weights into the graph holds them three to five times over, and writes a tied weight twice where
one user of it wants it transposed. Here it writes a graph without weights, whose parameters are inputs.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from converters import onnx_file
from converters.graph_walk import all_nodes

if TYPE_CHECKING:
    import onnx
    import torch

_ALIGNED_BYTES = 4096
"""Offsets are whole pages, so that a runtime can map the file instead of reading it."""
_ELEMENT_TYPES = {
    "float32": 1, "uint8": 2, "int8": 3, "int16": 5, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "float64": 11,
    "bfloat16": 16,
}  # fmt: skip


def wanted(module: torch.nn.Module) -> bool:
    """Whether the weights of ``module`` are better streamed: they are many, or some matrix has two names."""
    tensors = _named(module)
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > onnx_file.APART_BYTES:
        return True
    places = Counter(
        (tensor.data_ptr(), tensor.shape) for tensor in tensors.values() if tensor.dim() > 1 and tensor.numel()
    )
    return max(places.values(), default=0) > 1


def traced(module: Any, tensors: Sequence[Any], file: Path, folder: Path, **given: Any) -> onnx.ModelProto:
    """Export ``module`` with the TorchScript exporter through ``file``; big weights go to a file in ``folder``.

    ``given`` are the exporter's own arguments, ``input_names`` among them. The model returned refers to that file.
    """
    import torch

    for with_weights in (False, True) if wanted(module) else (True,):
        shutil.rmtree(folder, ignore_errors=True)
        torch.onnx.export(
            module,
            tuple(tensors),
            str(file),
            dynamo=False,
            verbose=False,
            export_params=with_weights,
            do_constant_folding=with_weights,
            **given,
        )
        model = onnx_file.load(file)
        # What is an input still would be a weight under a name of the exporter's.
        if with_weights or (
            attach(model, module, folder) and {value.name for value in model.graph.input} <= set(given["input_names"])
        ):
            return model
    raise AssertionError("the loop ends with its return")


def attach(model: onnx.ModelProto, module: torch.nn.Module, folder: Path) -> bool:
    """Turn the inputs of ``model`` that are weights of ``module`` into initializers kept in ``folder``/model.onnx.data.

    A weight that only a Transpose takes is written transposed. Returns False, having changed nothing, when a graph's
    input is neither and the exporter named its weights otherwise.
    """
    tensors = _named(module)
    found = [value.name for value in model.graph.input if value.name in tensors]
    if not found or any(_ELEMENT_TYPES.get(_dtype(tensors[name])) is None for name in found):
        return False
    transposed = _transposed(model, set(found))
    kept = [value for value in model.graph.input if value.name not in tensors]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / onnx_file.DATA_FILE).open("wb") as out:
        writer = _Writer(out)
        for name in found:
            tensor = tensors[name].detach()
            writer.add(model.graph, transposed.get(name, name), tensor.t() if name in transposed else tensor)
    return True


def _named(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return every parameter and buffer under every name it has."""
    named = dict(module.named_parameters(remove_duplicate=False))
    return named | dict(module.named_buffers(remove_duplicate=False))


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _transposed(model: onnx.ModelProto, weights: set[str]) -> dict[str, str]:
    """Take away Transpose nodes that are a matrix's only user; return the matrix's name to the node's output."""
    users: Counter[str] = Counter()
    for node in all_nodes(model):
        users.update(name for name in node.input if name)
    outputs = {value.name for value in model.graph.output}
    folded: dict[str, str] = {}
    for node in list(model.graph.node):
        if node.op_type != "Transpose" or node.input[0] not in weights or users[node.input[0]] != 1:
            continue
        perm = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), [1, 0])
        if perm == [1, 0] and node.output[0] not in outputs:
            folded[node.input[0]] = node.output[0]
            model.graph.node.remove(node)
    return folded


class _Writer:
    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._places: dict[tuple[Any, ...], tuple[int, int]] = {}

    def add(self, graph: onnx.GraphProto, name: str, tensor: torch.Tensor) -> None:
        """Add ``tensor`` as initializer ``name``; one that stands in the file already is pointed at again."""
        import torch

        proto = graph.initializer.add(name=name, data_type=_ELEMENT_TYPES[_dtype(tensor)], dims=list(tensor.shape))
        size_bytes = tensor.numel() * tensor.element_size()
        if size_bytes < onnx_file.SMALL_BYTES:
            proto.raw_data = _bytes(tensor).tobytes()
            return
        key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if key not in self._places:
            self._out.write(b"\0" * (-self._out.tell() % _ALIGNED_BYTES))
            self._places[key] = (self._out.tell(), size_bytes)
            with torch.no_grad():
                _bytes(tensor).tofile(self._out)
        offset, length = self._places[key]
        proto.data_location = proto.EXTERNAL
        for entry, value in (("location", onnx_file.DATA_FILE), ("offset", str(offset)), ("length", str(length))):
            proto.external_data.add(key=entry, value=value)


def _bytes(tensor: torch.Tensor) -> Any:
    """Return the elements as a numpy array of bytes; a copy only of what is not contiguous."""
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
