"""TensorFlow operators that tf2onnx leaves as they are and that a few ONNX operators say as well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from converters import onnx_file
from converters.graph_walk import all_graphs

if TYPE_CHECKING:
    import onnx

_INT32 = 6
_NEEDED_OPSET = 15
"""Constants take their type from a tensor beside them by CastLike, which is that old."""


class _Writer:
    """Nodes in place of one node; the last of them gives what that gave."""

    def __init__(self, node: onnx.NodeProto) -> None:
        self.node = node
        self.made: list[onnx.NodeProto] = []
        self._prefix = node.output[0]

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        import onnx

        name = f"{self._prefix}__{len(self.made)}"
        self.made.append(onnx.helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, kind: int, values: Sequence[float]) -> str:
        """Return a vector of TensorProto's type ``kind``."""
        import onnx

        name = f"{self._prefix}__{len(self.made)}"
        tensor = onnx.helper.make_tensor(name, kind, (len(values),), list(values))
        self.made.append(onnx.helper.make_node("Constant", [], [name], name=name, value=tensor))
        return name

    def number(self, value: float) -> str:
        """Return a scalar of the type of the node's first input."""
        import onnx

        name = f"{self._prefix}__{len(self.made)}"
        tensor = onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, (), [value])
        self.made.append(onnx.helper.make_node("Constant", [], [name], name=name, value=tensor))
        return self("CastLike", name, self.node.input[0])

    def finish(self) -> list[onnx.NodeProto]:
        self.made[-1].output[0] = self.node.output[0]
        return self.made


def expand(model: onnx.ModelProto) -> None:
    """Write what is known below in ONNX's own operators, in the graph and its subgraphs; the rest stays."""
    if onnx_file.opset(model) < _NEEDED_OPSET:
        return
    for graph in all_graphs(model):
        if not any(node.op_type in _EXPANSIONS for node in graph.node):
            continue
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            expansion = _EXPANSIONS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            if expansion is None or len(node.output) != 1:
                nodes.append(node)
                continue
            writer = _Writer(node)
            expansion(writer, *node.input)
            nodes += writer.finish()
        del graph.node[:]
        graph.node.extend(nodes)


def _erfc(write: _Writer, x: str) -> None:
    one, erf = write.number(1.0), write("Erf", x)
    write("Sub", one, erf)


def _log1p(write: _Writer, x: str) -> None:
    write("Log", write("Add", x, write.number(1.0)))


def _expm1(write: _Writer, x: str) -> None:
    write("Sub", write("Exp", x), write.number(1.0))


def _silu(write: _Writer, x: str) -> None:
    write("Mul", x, write("Sigmoid", x))


def _gelu(write: _Writer, x: str) -> None:
    """0.5 x (1 + erf(x / sqrt 2)), or TFLite's approximation 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    if any(attribute.name == "approximate" and attribute.i for attribute in write.node.attribute):
        cube = write("Mul", write("Mul", x, x), x)
        inner = write("Add", x, write("Mul", cube, write.number(0.044715)))
        bent = write("Tanh", write("Mul", inner, write.number(0.7978845608028654)))
    else:
        bent = write("Erf", write("Mul", x, write.number(0.7071067811865476)))
    write("Mul", write("Mul", x, write.number(0.5)), write("Add", bent, write.number(1.0)))


def _unless_zero(write: _Writer, x: str, product: str) -> None:
    """``product``, but 0 where ``x`` is, whatever infinity it meets there."""
    zero = write.number(0.0)
    write("Where", write("Equal", x, zero), zero, product)


def _xlogy(write: _Writer, x: str, y: str) -> None:
    _unless_zero(write, x, write("Mul", x, write("Log", y)))


def _xlog1py(write: _Writer, x: str, y: str) -> None:
    _unless_zero(write, x, write("Mul", x, write("Log", write("Add", y, write.number(1.0)))))


def _xdivy(write: _Writer, x: str, y: str) -> None:
    _unless_zero(write, x, write("Div", x, y))


def _mul_no_nan(write: _Writer, x: str, y: str) -> None:
    _unless_zero(write, y, write("Mul", x, y))


def _relu_n1_to_1(write: _Writer, x: str) -> None:
    write("Clip", x, write.number(-1.0), write.number(1.0))


def _relu_0_to_1(write: _Writer, x: str) -> None:
    write("Clip", x, write.number(0.0), write.number(1.0))


def _bucketize(write: _Writer, x: str) -> None:
    """Count the boundaries that a value has reached."""
    boundaries = next((list(a.floats) for a in write.node.attribute if a.name == "boundaries"), [])
    last = write.constant(onnx_file.INT64, [-1])
    bounds = write("CastLike", write.constant(onnx_file.FLOAT32, boundaries), x)
    reached = write("GreaterOrEqual", write("Unsqueeze", x, last), bounds)
    write("ReduceSum", write("Cast", reached, to=_INT32), last, keepdims=0)


def _complex_abs(write: _Writer, x: str) -> None:
    """Lengths of complex numbers, which tf2onnx's Fourier transforms give as real and imaginary parts along axis 0."""
    parts = write("ReduceSum", write("Mul", x, x), write.constant(onnx_file.INT64, [0]), keepdims=0)
    write("Sqrt", parts)


def _identity(write: _Writer, x: str) -> None:
    write("Identity", x)


def _sum(write: _Writer, *terms: str) -> None:
    write("Sum", *terms)


def _reciprocal(write: _Writer, x: str) -> None:
    write("Reciprocal", x)


_EXPANSIONS: dict[str, Callable[..., None]] = {
    "Erfc": _erfc,
    "Log1p": _log1p,
    "Expm1": _expm1,
    "Silu": _silu,
    "TFL_GELU": _gelu,
    "TFL_RELU_N1_TO_1": _relu_n1_to_1,
    "TFL_RELU_0_TO_1": _relu_0_to_1,
    "Xlogy": _xlogy,
    "Xlog1py": _xlog1py,
    "Xdivy": _xdivy,
    "MulNoNan": _mul_no_nan,
    "Bucketize": _bucketize,
    "ComplexAbs": _complex_abs,
    "Snapshot": _identity,
    "PreventGradient": _identity,
    "AccumulateNV2": _sum,
    "Inv": _reciprocal,
}
