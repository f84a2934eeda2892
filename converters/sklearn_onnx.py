"""scikit-learn estimators and pipelines to ONNX, by skl2onnx."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from converters import graph_interface, onnx_file, sklearn_extra, sklearn_projections, sklearn_radius
from converters.arrays import Arrays, dtype_name
from converters.boosting_sklearn import boosted, library_of, note_gaps, register
from converters.graph_walk import all_nodes
from converters.model_errors import RAISED_BY_MODELS, first_line
from converters.sklearn_runner import SklearnRunner, load_estimator, quiet
from converters.sklearn_steps import everything, inside, leading, steps_of
from converters.sklearn_trees import route_missing_values
from converters.trace_inputs import trace_cases
from schemas.catalog import SERVED_OPSET
from schemas.descriptor import DType, ModelDescriptor, TensorSpec
from schemas.errors import ConversionFailed, Unsupported
from schemas.step_io import StepContext, StepOutcome

if TYPE_CHECKING:
    import onnx

ML_OPSET = 3
"""Of ai.onnx.ml: the newest that every onnxruntime Triton ships with reads."""
_NEWER_OPSET = re.compile(r"opset \d+ < (\d+)")
_ADVERT = re.compile(r"\s*You may raise an is+ue at \S+")
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
    runner = SklearnRunner(estimator)
    domains = runner.domains
    # A finished search predicts with the best estimator it found; the search itself is no part of the model.
    estimator = unfolded(getattr(estimator, "best_estimator_", estimator))
    cases = [case.feeds for case in trace_cases(context, domains)]
    sklearn_extra.register()
    if any(boosted(estimator)):
        register()
        with quiet():
            note_gaps(estimator, runner.table(cases[0]))
    use_equivalents(estimator)
    context.progress(0.3, "Converting to ONNX")
    model = _convert_at(estimator, descriptor, context.options.opset)
    notes = [
        *_version_notes(descriptor),
        *sklearn_radius.notes(every_step(estimator)),
        *graph_interface.restore_inputs(model, descriptor.inputs),
    ]
    _restore_outputs(model, descriptor, cases[0])
    graph_interface.name_axes(model, descriptor.inputs, descriptor.outputs)
    return onnx_file.finish(context, model, cases, notes)


def unfolded(estimator: Any) -> Any:
    """Return a recursive elimination of features that predicts as what it is: columns chosen, then an estimator."""
    from sklearn.feature_selection import RFE
    from sklearn.pipeline import Pipeline

    steps = getattr(estimator, "steps", None)
    last = steps[-1][1] if steps else estimator
    if not isinstance(last, RFE) or not hasattr(last, "predict"):
        return estimator
    return Pipeline([*(steps or [])[:-1], ("chosen_columns", last), ("chosen_estimator", last.estimator_)])


def every_step(estimator: Any) -> Iterator[Any]:
    """Yield the steps of a pipeline and of the pipelines inside its ColumnTransformers."""
    for part in steps_of(estimator):
        yield part
        for _, transformer, _ in getattr(part, "transformers_", ()):
            if transformer is not None and not isinstance(transformer, str):
                yield from every_step(transformer)


def use_equivalents(estimator: Any) -> None:
    """Set what skl2onnx refuses, and what changes nothing of what is served, to what it takes.

    A KBinsDiscretizer's 'onehot' is the same table as 'onehot-dense', stored sparsely.
    """
    for part in everything(estimator):
        if getattr(part, "encode", None) == "onehot":
            part.encode = "onehot-dense"
        if isinstance(getattr(part, "weights", None), list | tuple):
            part.weights = np.array(part.weights)
    if type(estimator).__name__ == "AdaBoostClassifier" and estimator.classes_.dtype.kind == "b":
        estimator.classes_ = estimator.classes_.astype(np.int64)  # skl2onnx takes them for names
    sklearn_extra.mark_indicators(every_step(estimator))
    sklearn_projections.mark_transforming(estimator)
    for part in steps_of(estimator):
        if type(part).__name__ == "RandomTreesEmbedding":
            # skl2onnx refuses its sparse table, which is the same as the dense one.
            part.sparse_output = part.one_hot_encoder_.sparse_output = False
    drop_string_imputers(estimator)
    for inner in inside(estimator):
        if hasattr(leading(inner), "steps"):
            use_equivalents(inner)


def drop_string_imputers(estimator: Any) -> None:
    """Take imputers of strings out of pipelines: a tensor of strings has no missing value that they could fill."""
    for part in steps_of(estimator):
        for _, transformer, _ in getattr(part, "transformers_", ()):
            steps = getattr(transformer, "steps", None)
            if steps is None:
                continue
            kept = [(name, step) for name, step in steps if not _fills_strings(step)]
            transformer.steps = kept or steps
    steps = getattr(estimator, "steps", None)
    if steps is not None:
        estimator.steps = [(name, step) for name, step in steps if not _fills_strings(step)] or steps


def _fills_strings(step: Any) -> bool:
    from sklearn.impute import SimpleImputer

    missing = getattr(step, "missing_values", None)
    return (
        isinstance(step, SimpleImputer)
        and getattr(step.statistics_, "dtype", np.dtype(float)).kind in "OUS"
        and not step.add_indicator
        and not isinstance(missing, str)
    )


def _convert_at(estimator: Any, descriptor: ModelDescriptor, opset: int) -> onnx.ModelProto:
    """Convert at ``opset``; at the one that a converter names where it needs a newer one."""
    try:
        return _convert_exactly(estimator, descriptor, opset)
    except ConversionFailed as error:
        asked = _NEWER_OPSET.search(str(error.args[0]))
        if asked is None or not opset < int(asked[1]) <= SERVED_OPSET:
            raise
        return _convert_exactly(estimator, descriptor, int(asked[1]))


def _convert_exactly(estimator: Any, descriptor: ModelDescriptor, opset: int) -> onnx.ModelProto:
    """Convert; where trees follow a scaler, with the scaler in float64 as scikit-learn computes it.

    A tree's threshold often lies exactly on a value of the training data. Scaled in float32 such a value falls on the
    other side, and the answer is another one.
    """
    from sklearn.pipeline import Pipeline

    doubles = [spec.name for spec in descriptor.inputs if spec.dtype == "float32"]
    if isinstance(estimator, Pipeline) and len(steps_of(estimator)) > 1 and doubles and _grows_trees(estimator):
        from skl2onnx.sklapi import CastTransformer

        *first, last = estimator.steps
        # LightGBM compares in float64; all others take float32.
        exact = (
            estimator
            if library_of(last[1]) == "lightgbm"
            else Pipeline([*first, ("as_float32", CastTransformer()), last])
        )
        wide = tuple(
            spec.model_copy(update={"dtype": "float64"}) if spec.name in doubles else spec for spec in descriptor.inputs
        )
        try:
            model = _convert(exact, descriptor.model_copy(update={"inputs": wide}), opset)
            _cast_inputs(model, doubles)
            onnx_file.session(model.SerializeToString())
        except ConversionFailed:
            # Some operators exist in float32 only; parity will tell whether that is near enough.
            return _convert(estimator, descriptor, opset)
        return model
    return _convert(estimator, descriptor, opset)


def _grows_trees(estimator: Any) -> bool:
    last = steps_of(estimator)[-1]
    return type(last).__module__.startswith(("sklearn.tree", "sklearn.ensemble")) or library_of(last) is not None


def _cast_inputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Have the graph take ``names`` as float32 and cast them to float64 itself."""
    from onnx import helper

    mapping = {name: f"{name}_float64" for name in names}
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = mapping.get(name, name)
    casts = [helper.make_node("Cast", [name], [wide], to=onnx_file.FLOAT64) for name, wide in mapping.items()]
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for value in model.graph.input:
        if value.name in mapping:
            value.type.tensor_type.elem_type = onnx_file.FLOAT32


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
            f"skl2onnx could not convert {type(estimator).__name__}: {_ADVERT.sub('', first_line(error)).rstrip('.')}.",
            hint="Simplify the pipeline, or use an estimator that skl2onnx supports.",
        ) from error
    _use_any_locale(model)
    _split_words(model)
    route_missing_values(model, estimator)
    return model


def _use_any_locale(model: onnx.ModelProto) -> None:
    """Have strings made lower case in C.UTF-8: the default, en_US.UTF-8, is not installed on most servers."""
    from onnx import helper

    for node in all_nodes(model):
        if node.op_type == "StringNormalizer":
            kept = [attribute for attribute in node.attribute if attribute.name != "locale"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("locale", "C.UTF-8")])


def _split_words(model: onnx.ModelProto) -> None:
    """Have texts split into words of two characters or more, of any alphabet, as scikit-learn's own pattern does.

    skl2onnx writes it as ASCII words of one character or more, which then stand between the two of a pair.
    """
    for node in all_nodes(model):
        for attribute in node.attribute if node.op_type == "Tokenizer" else ():
            if attribute.name == "tokenexp" and attribute.s == b"[a-zA-Z0-9_]+":
                attribute.s = rb"[\p{L}\p{N}_][\p{L}\p{N}_]+"


def _options(estimator: Any) -> dict[int, dict[str, bool]] | None:
    """Return skl2onnx's options by estimator: a plain tensor of probabilities, or the decision function itself."""
    from skl2onnx._supported_operators import sklearn_operator_name_map
    from skl2onnx.common._registration import get_converter
    from sklearn.base import is_classifier

    with quiet():
        if not is_classifier(estimator):
            return None
        probabilities = hasattr(estimator, "predict_proba")
    wanted = {"zipmap": False} if probabilities else {"zipmap": False, "raw_scores": True}
    options = {}
    known = set(wanted)
    # The last step first: skl2onnx hands a pipeline's options on to it.
    for part in {id(part): part for part in (steps_of(estimator)[-1], estimator)}.values():
        alias = sklearn_operator_name_map.get(type(part))
        if alias is None:
            continue
        # Every converter knows options of its own, and refuses others.
        known &= set(get_converter(alias).get_allowed_options() or {})
        options[id(part)] = {name: value for name, value in wanted.items() if name in known}
    return options


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


def _restore_outputs(model: onnx.ModelProto, descriptor: ModelDescriptor, feeds: Arrays) -> None:
    """Give the graph the descriptor's outputs, by position and with its shapes.

    skl2onnx puts the label first and may add scores; for two classes it gives both decisions, where scikit-learn gives
    the second one's, and an outlier's label gets an axis of its own. Its declared shapes are not always true, so the
    graph is run to know them.
    """
    from onnx import helper

    names = [spec.name for spec in descriptor.outputs]
    _split_targets(model, descriptor.outputs)
    found = [value.name for value in model.graph.output]
    if len(found) < len(names):
        raise ConversionFailed(f"skl2onnx made {len(found)} outputs, the original has {len(names)}.")
    del model.graph.output[len(names) :]
    graph_interface.rename_outputs(model, names)
    got = onnx_file.run(onnx_file.session(model.SerializeToString()), feeds)
    for value, spec in zip(model.graph.output, descriptor.outputs, strict=True):
        last, constant, shape = f"{spec.name}_raw", f"{spec.name}_constant", got[spec.name].shape
        nodes = []
        if len(spec.shape) == 1 and len(shape) == 2:
            # One label a row, as a column or, from some converters, all in one row.
            nodes.append(helper.make_node("Reshape", [last, constant], [f"{spec.name}_shaped"]))
            number, last = -1, f"{spec.name}_shaped"
        elif spec.shape[1:] == (1,) and len(shape) == 1:
            nodes.append(helper.make_node("Unsqueeze", [last, constant], [f"{spec.name}_shaped"]))
            number, last = 1, f"{spec.name}_shaped"
        elif spec.shape[1:] == (1,) and shape[1:] == (2,):
            nodes.append(helper.make_node("Gather", [last, constant], [f"{spec.name}_second"], axis=1))
            number, last = 1, f"{spec.name}_second"
        if nodes:
            model.graph.initializer.append(helper.make_tensor(constant, onnx_file.INT64, [1], [number]))
        if "string" not in (spec.dtype, dtype_name(got[spec.name])) and spec.dtype != dtype_name(got[spec.name]):
            # Counts of words are whole numbers in scikit-learn, and float32 here.
            to = graph_interface.value_info(spec).type.tensor_type.elem_type
            nodes.append(helper.make_node("Cast", [last], [f"{spec.name}_cast"], to=to))
        if not nodes:
            continue
        nodes[-1].output[0] = spec.name
        graph_interface.rename_outputs(model, [f"{name}_raw" if name == spec.name else name for name in names])
        model.graph.node.extend(nodes)
        value.CopyFrom(graph_interface.value_info(spec))


def _split_targets(model: onnx.ModelProto, outputs: Sequence[TensorSpec]) -> None:
    """Give each target its own output: skl2onnx puts the probabilities of several into a sequence or one tensor."""
    from onnx import helper

    parts = [spec for spec in outputs if spec.name.startswith("probabilities_")]
    if not parts or len(model.graph.output) != len(outputs) - len(parts) + 1:
        return
    whole = model.graph.output[-1]
    sequence = whole.type.HasField("sequence_type")
    for number, spec in enumerate(parts):
        index, part = f"{spec.name}_target", f"{spec.name}_part"
        model.graph.initializer.append(helper.make_tensor(index, onnx_file.INT64, [], [number]))
        operator = "SequenceAt" if sequence else "Gather"
        attributes: dict[str, Any] = {} if sequence else {"axis": 0}
        model.graph.node.append(helper.make_node(operator, [whole.name, index], [part], **attributes))
        model.graph.output.append(helper.make_tensor_value_info(part, onnx_file.FLOAT32, list(spec.shape)))
    model.graph.output.remove(whole)


def _version_notes(descriptor: ModelDescriptor) -> tuple[str, ...]:
    import sklearn

    saved = descriptor.framework_version
    if not saved or saved == sklearn.__version__:
        return ()
    return (f"The estimator was saved by scikit-learn {saved} and loaded by {sklearn.__version__}.",)
