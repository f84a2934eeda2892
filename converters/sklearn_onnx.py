"""scikit-learn estimators and pipelines to ONNX, by skl2onnx."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from converters import graph_interface, onnx_file
from converters.model_errors import RAISED_BY_MODELS, first_line
from converters.sklearn_runner import load_estimator, quiet, steps_of
from converters.trace_inputs import trace_cases
from schemas.descriptor import DType, ModelDescriptor, TensorSpec
from schemas.errors import ConversionFailed, Unsupported
from schemas.step_io import StepContext, StepOutcome

if TYPE_CHECKING:
    import onnx

ML_OPSET = 3
"""Of ai.onnx.ml: the newest that every onnxruntime Triton ships with reads."""
_CLASS = re.compile(r"<class '(?:[\w.]*\.)?(\w+)'>")


def convert(context: StepContext) -> StepOutcome:
    """Unpickle input ``model`` and convert it, with the descriptor's inputs and outputs; only ever in the sandbox.

    Labels stay one value a row, (batch,); probabilities are a plain tensor. Raises ConversionFailed that names the
    estimator skl2onnx has no converter for.
    """
    descriptor = context.request.descriptor
    if descriptor is None or not descriptor.inputs:
        raise ValueError("sklearn_onnx needs a descriptor with inputs")
    path = context.input("model")
    file = path / descriptor.entry if path.is_dir() and descriptor.entry else path
    context.progress(0.05, "Loading the estimator")
    estimator = load_estimator(file)
    use_positions(estimator)
    context.progress(0.3, "Converting to ONNX")
    model = _convert(estimator, descriptor, context.options.opset)
    notes = [*_version_notes(descriptor), *graph_interface.restore_inputs(model, descriptor.inputs)]
    _restore_outputs(model, descriptor)
    graph_interface.name_axes(model, descriptor.inputs, descriptor.outputs)
    return onnx_file.finish(context, model, [case.feeds for case in trace_cases(context)], notes)


def use_positions(estimator: Any) -> None:
    """Have every ColumnTransformer choose its columns by position instead of by name.

    A table of numbers is served as one matrix, whose columns have no names.
    """
    for part in steps_of(estimator):
        positions = getattr(part, "_transformer_to_input_indices", None)
        if positions is None or not hasattr(part, "transformers_"):
            continue
        part.transformers_ = [
            (name, transformer, [int(i) for i in positions.get(name, [])])
            for name, transformer, _ in part.transformers_
        ]
        for _, transformer, _ in part.transformers_:
            if transformer is not None and not isinstance(transformer, str):
                use_positions(transformer)


def _convert(estimator: Any, descriptor: ModelDescriptor, opset: int) -> onnx.ModelProto:
    from skl2onnx import to_onnx

    try:
        with quiet():
            model: onnx.ModelProto = to_onnx(
                estimator,
                initial_types=[(spec.name, _tensor_type(spec)) for spec in descriptor.inputs],
                target_opset={"": opset, "ai.onnx.ml": ML_OPSET},
                options=_options(estimator),
            )
    except RAISED_BY_MODELS as error:
        named = _CLASS.search(str(error))
        if named and "Unable to find" in str(error):
            raise ConversionFailed(
                f"skl2onnx has no converter for {named[1]}.",
                hint="Use an estimator of scikit-learn itself that skl2onnx supports in its place.",
                operator=named[1],
            ) from error
        raise ConversionFailed(
            f"skl2onnx could not convert {type(estimator).__name__}: {first_line(error)}.",
            hint="Simplify the pipeline, or use an estimator that skl2onnx supports.",
        ) from error
    return model


def _options(estimator: Any) -> dict[int, dict[str, bool]] | None:
    from sklearn.base import is_classifier

    with quiet():
        if not is_classifier(estimator):
            return None
        options = {"zipmap": False}
        # Without probabilities the second output is the decision function itself.
        if not hasattr(estimator, "predict_proba") and hasattr(estimator, "decision_function"):
            options["raw_scores"] = True
        return {id(estimator): options}


def _tensor_type(spec: TensorSpec) -> Any:
    from skl2onnx.common import data_types

    classes: dict[DType, Any] = {
        "float32": data_types.FloatTensorType,
        "float64": data_types.DoubleTensorType,
        "int64": data_types.Int64TensorType,
        "int32": data_types.Int32TensorType,
        "bool": data_types.BooleanTensorType,
        "string": data_types.StringTensorType,
    }
    if spec.dtype not in classes:
        raise Unsupported(f"Input {spec.name!r} is {spec.dtype}, which skl2onnx does not take.", hint="Use float32.")
    return classes[spec.dtype]([None if isinstance(dim, str) else dim for dim in spec.shape])


def _restore_outputs(model: onnx.ModelProto, descriptor: ModelDescriptor) -> None:
    """Give the graph the descriptor's outputs by position; skl2onnx puts the label first and may add scores."""
    names = [spec.name for spec in descriptor.outputs]
    found = [value.name for value in model.graph.output]
    if len(found) < len(names):
        raise ConversionFailed(f"skl2onnx made {len(found)} outputs, the original has {len(names)}.")
    del model.graph.output[len(names) :]
    graph_interface.rename_outputs(model, names)


def _version_notes(descriptor: ModelDescriptor) -> tuple[str, ...]:
    import sklearn

    saved = descriptor.framework_version
    if not saved or saved == sklearn.__version__:
        return ()
    return (f"The estimator was saved by scikit-learn {saved} and loaded by {sklearn.__version__}.",)
