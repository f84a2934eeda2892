"""Lookup tables of TensorFlow: what they hold, and those that are not between strings and int64, as tf2onnx's are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from converters.arrays import Array

if TYPE_CHECKING:
    from tf2onnx.graph import Graph, Node

_LOOKUP = "LookupTableFindV2"
_KEYS = {"int64": "keys_int64s", "int32": "keys_int64s", "float32": "keys_floats", "object": "keys_strings"}
_VALUES = {"int64": "int64", "int32": "int64", "float32": "float", "object": "string"}


def handlers(tables: Mapping[bytes, tuple[Array, Array]]) -> dict[str, tuple[Callable[..., None], list[Any]]]:
    """Return tf2onnx's custom handlers for lookups in ``tables``: shared name to keys and values, as it froze them.

    ONNX's LabelEncoder has all pairs of int64, float32 and strings; int32 goes through int64.
    """
    from tf2onnx.custom_opsets.onnx_ml import LookupTableFind

    def convert(graph: Graph, node: Node, name: str, arguments: list[Any]) -> None:
        table = node.inputs[0]
        while table.type == "Identity":
            table = table.inputs[0]
        keys, values = tables.get(table.get_attr_value("shared_name"), (None, None))
        if keys is None or values is None or not _is_ours(node, keys, values):
            LookupTableFind.version_8(graph, node, initialized_tables=tables)
            return
        _encode(graph, node, keys, values)
        if not graph.find_output_consumers(table.output[0]):
            graph.remove_node(table.name)

    return {_LOOKUP: (convert, [])}


def table_keys(function: Any) -> list[Any]:
    """Return the keys of all tables that a traced function looks things up in, its inner functions' too."""
    import tensorflow as tf
    from tensorflow.python.ops import lookup_ops

    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for inner in graph.library.function for node in inner.node_def)]
    kinds = {(node.attr["Tin"].type, node.attr["Tout"].type) for node in nodes if node.op == _LOOKUP}
    handles = [tensor for tensor in function.captured_inputs if tensor.dtype == tf.resource] if kinds else []
    found: list[Any] = []
    for handle in handles:
        for key, value in kinds:
            with contextlib.suppress(tf.errors.OpError):  # a table of other types, or no table
                keys, _ = lookup_ops.lookup_table_export_v2(handle, key, value)
                found += keys.numpy().tolist()
    return found


def _is_ours(node: Node, keys: Array, values: Array) -> bool:
    if node.inputs[1].is_const() or not node.inputs[2].is_const():
        return False
    kinds = (keys.dtype.name, values.dtype.name)
    return kinds not in (("object", "int64"), ("int64", "object")) and kinds[0] in _KEYS and kinds[1] in _VALUES


def _encode(graph: Graph, node: Node, keys: Array, values: Array) -> None:
    import onnx
    from tf2onnx.constants import AI_ONNX_ML_DOMAIN

    source, output = node.input[1], node.output[0]
    shape, given = graph.get_shape(source), graph.get_dtype(output)
    kind = _VALUES[values.dtype.name]
    default = node.inputs[2].get_tensor_value(as_list=False).item()
    graph.remove_node(node.name)
    if keys.dtype.name == "int32":
        source = graph.make_node("Cast", [source], attr={"to": onnx.TensorProto.INT64}).output[0]
    narrow = values.dtype.name == "int32"
    found = graph.make_node(
        "LabelEncoder",
        [source],
        domain=AI_ONNX_ML_DOMAIN,
        outputs=None if narrow else [output],
        attr={_KEYS[keys.dtype.name]: keys.tolist(), f"values_{kind}s": values.tolist(), f"default_{kind}": default},
        shapes=[shape],
        dtypes=[onnx.TensorProto.INT64 if narrow else given],
    )
    if narrow:
        graph.make_node("Cast", [found.output[0]], outputs=[output], attr={"to": given}, shapes=[shape], dtypes=[given])
