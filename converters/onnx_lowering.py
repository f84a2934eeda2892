"""Lower an ONNX model's opset where ONNX's own version converter has no way back."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from converters import onnx_file, onnx_older_forms
from converters.graph_walk import all_nodes
from converters.model_errors import RAISED_BY_MODELS, first_line
from schemas.errors import ConversionFailed

if TYPE_CHECKING:
    import onnx

_ONNX = ("", "ai.onnx")


def lower(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return ``model`` with operators that came after ``opset`` written out in older ones, marked ``opset``.

    Most newer versions of an operator only take more element types, so an older reader understands what is left.
    Where that is not so, onnxruntime refuses the graph or parity sees it; nothing here proves anything.
    Raises ConversionFailed that names the operators which have no older form.
    """
    import onnx
    import onnx.inliner

    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    onnx_older_forms.write_out(lowered, _newer(lowered, opset))
    newer = _newer(lowered, opset)
    if newer:
        # The inliner asks for the type of inputs that are left out, too; no tensor has an empty name.
        lowered.graph.value_info.add(name="").type.tensor_type.elem_type = onnx_file.FLOAT32
        try:
            lowered = onnx.inliner.inline_selected_functions(
                lowered, [("", name) for name in newer], exclude=False, inline_schema_functions=True
            )
        except RAISED_BY_MODELS as error:
            raise ConversionFailed(
                f"{_listed(newer)} cannot be written out in operators of opset {opset}: {first_line(error)}."
            ) from error
        nameless = [value for value in lowered.graph.value_info if not value.name]
        for value in nameless:
            lowered.graph.value_info.remove(value)
    left = _newer(lowered, opset)
    if left:
        raise ConversionFailed(
            f"{_listed(left)} came after opset {opset}, which is the newest that the target's onnxruntime loads, and "
            "nothing older gives the same.",
            hint="Export the model with an older opset, or write that layer with other operators.",
        )
    for entry in lowered.opset_import:
        if entry.domain in _ONNX:
            entry.version = opset
    for function in lowered.functions:
        for entry in function.opset_import:
            if entry.domain in _ONNX:
                entry.version = min(entry.version, opset)
    return lowered


def _newer(model: onnx.ModelProto, opset: int) -> list[str]:
    first = _first_versions()
    used = {node.op_type for node in all_nodes(model) if node.domain in _ONNX}
    return sorted(name for name in used if first.get(name, 0) > opset)


@cache
def _first_versions() -> dict[str, int]:
    """Return each of ONNX's own operators with the opset that it appeared in."""
    import onnx

    first: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain in _ONNX:
            first[schema.name] = min(schema.since_version, first.get(schema.name, schema.since_version))
    return first


def _listed(names: list[str]) -> str:
    return f"The operator{'s' if len(names) > 1 else ''} {', '.join(names[:10])}"
