"""int8 weights for a model too big to be held several times: matrix by matrix, straight from the file they lie in."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converters import onnx_file
from converters.graph_walk import all_nodes
from schemas.errors import ConversionFailed
from schemas.step_options import OnnxInt8Options

if TYPE_CHECKING:
    import onnx

_LEAST_OPSET = 11
"""DynamicQuantizeLinear came with it."""
_ROWS_AT_ONCE = 256
_SMALLEST = 1e-12
"""Least scale: a column of zeros has none of its own."""


def quantize_streamed(source: Path, options: OnnxInt8Options) -> onnx.ModelProto:
    """Return the model at ``source`` with int8 weights in its matrix products; no float copy of a matrix is held.

    Every product x·W becomes DynamicQuantizeLinear(x), MatMulInteger, and a multiplication by both scales, the pattern
    that onnxruntime's own quantiser writes and its kernels fuse. W is symmetric: q = round(w / s), s = max|w| / 127 of
    its column, or of all columns without ``per_channel``. Raises ConversionFailed for an opset without the operators.
    """
    model = onnx_file.load(source, weights=False)
    if onnx_file.opset(model) < _LEAST_OPSET:
        raise ConversionFailed(
            f"Opset {onnx_file.opset(model)} has no integer operators.", hint=f"Export it with {_LEAST_OPSET} or newer."
        )
    onnx_file.name_nodes(model)
    _Quantizer(model, source.parent, options).run()
    onnx_file.read_data_files(model, source.parent)
    return model


class _Quantizer:
    def __init__(self, model: onnx.ModelProto, folder: Path, options: OnnxInt8Options) -> None:
        self.model, self.folder, self.options = model, folder, options
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.made: dict[tuple[str, bool], tuple[str, str, str]] = {}
        self.inputs: dict[str, tuple[str, str, str]] = {}
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> None:
        """Rewrite the main graph, and drop the matrices that nothing uses any more."""
        for node in self.model.graph.node:
            if not self._product(node):
                self.nodes.append(node)
        del self.model.graph.node[:]
        self.model.graph.node.extend(self.nodes)
        used = Counter(name for node in all_nodes(self.model) for name in node.input)
        used.update(value.name for value in self.model.graph.output)
        for name, tensor in self.weights.items():
            if not used[name]:
                self.model.graph.initializer.remove(tensor)

    def _product(self, node: onnx.NodeProto) -> bool:
        from onnx import TensorProto, helper

        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        plain = attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0 and not attributes.get("transA", 0)
        weight = self.weights.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx") or not plain or weight is None:
            return False
        if len(weight.dims) != 2 or weight.data_type != onnx_file.FLOAT32:
            return False
        matrix, scale, zero = self._weight(weight, bool(attributes.get("transB", 0)))
        row, row_scale, row_zero = self._activation(node.input[0])
        name, bias = node.name, node.input[2] if len(node.input) > 2 else ""
        product = f"{name}_scaled" if bias else node.output[0]
        make = helper.make_node
        self.nodes += [
            make("MatMulInteger", [row, matrix, row_zero, zero], [f"{name}_integers"], name=f"{name}_quant"),
            make("Cast", [f"{name}_integers"], [f"{name}_float"], name=f"{name}_cast", to=TensorProto.FLOAT),
            make("Mul", [row_scale, scale], [f"{name}_scales"], name=f"{name}_scales_mul"),
            make("Mul", [f"{name}_float", f"{name}_scales"], [product], name=f"{name}_output_scale_mul"),
        ]
        if bias:
            self.nodes.append(make("Add", [product, bias], [node.output[0]], name=f"{name}_bias_add"))
        return True

    def _activation(self, name: str) -> tuple[str, str, str]:
        from onnx import helper

        if name not in self.inputs:
            names = (f"{name}_quantized", f"{name}_scale", f"{name}_zero_point")
            self.nodes.append(helper.make_node("DynamicQuantizeLinear", [name], list(names), name=f"{name}_quantize"))
            self.inputs[name] = names
        return self.inputs[name]

    def _weight(self, tensor: onnx.TensorProto, transposed: bool) -> tuple[str, str, str]:
        from onnx import numpy_helper

        key = (tensor.name, transposed)
        if key not in self.made:
            stem = f"{tensor.name}_transposed" if transposed else tensor.name
            names = (f"{stem}_quantized", f"{stem}_scale", f"{stem}_zero_point")
            values = onnx_file.external_array(tensor, self.folder)
            for name, array in zip(names, self._quantized(values.T if transposed else values), strict=True):
                self.model.graph.initializer.append(numpy_helper.from_array(array, name))
            self.made[key] = names
        return self.made[key]

    def _quantized(self, matrix: Any) -> tuple[Any, Any, Any]:
        """Return the integers, their scales and zero points of ``matrix``, shape (inputs, outputs)."""
        unsigned = self.options.weight_type == "uint8"
        largest = 63 if self.options.reduce_range else 127
        extent = np.maximum(matrix.max(axis=0), -matrix.min(axis=0))
        if not self.options.per_channel:
            extent = extent.max()
        scale = np.asarray(np.maximum(extent / largest, _SMALLEST), dtype=np.float32)
        kind, middle = (np.uint8, 128) if unsigned else (np.int8, 0)
        whole = np.empty(matrix.shape, kind)
        for start in range(0, len(matrix), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            whole[rows] = np.clip(np.rint(matrix[rows] / scale), -largest, largest) + middle
        return whole, scale, np.full(scale.shape, middle, kind)
