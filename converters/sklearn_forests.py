"""scikit-learn's forests and HistGradientBoosting to one operator; votes, thresholds and gaps as they are there."""

from __future__ import annotations

from typing import Any

import numpy as np

from converters.arrays import Array
from converters.boosting_outputs import Link, Outputs, write_outputs
from converters.boosting_sklearn import Container, asks_scores
from converters.catboost_forest import classes_of, plain_classes
from converters.forest import LEAF, MAX_CATEGORY, Choice, Forest, Tree, write_margins
from schemas.errors import ConversionFailed


def register() -> None:
    """Make skl2onnx use these converters; again and again does no harm."""
    from skl2onnx import update_registered_converter
    from sklearn.ensemble import (
        ExtraTreesClassifier,
        HistGradientBoostingClassifier,
        HistGradientBoostingRegressor,
        RandomForestClassifier,
    )  # fmt: skip

    for cls, convert in (
        (HistGradientBoostingClassifier, _hist),
        (HistGradientBoostingRegressor, _hist),
        (RandomForestClassifier, _votes),
        (ExtraTreesClassifier, _votes),
    ):
        options = {"zipmap": [True, False, "columns"], "raw_scores": [True, False], "nocl": [True, False],
                   "output_class_labels": [False, True], "decision_path": [True, False],
                   "decision_leaf": [True, False]}  # fmt: skip
        update_registered_converter(
            cls, f"Modelium{cls.__name__}", _shape, convert, parser=_parse, overwrite=True,
            options=options if "Classifier" in cls.__name__ else {},
        )  # fmt: skip


def _parse(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.base import is_classifier

    operator = scope.declare_local_operator(f"Modelium{type(model).__name__}", model)
    operator.inputs.extend(inputs)
    names: tuple[str, ...] = ("label", "probabilities") if is_classifier(model) else ("variable",)
    if getattr(model, "n_outputs_", 1) > 1:
        names = ("label", *(f"probabilities_{number}" for number in range(model.n_outputs_)))
    for name in names:
        operator.outputs.append(scope.declare_local_variable(name, FloatTensorType()))
    return operator.outputs


def _shape(operator: Any) -> None:
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType

    model = operator.raw_operator
    if len(operator.outputs) == 1:
        operator.outputs[0].set_type(FloatTensorType([None, 1]))
        return
    targets = list(model.classes_) if getattr(model, "n_outputs_", 1) > 1 else [model.classes_]
    strings = np.asarray(targets[0]).dtype.kind in "OUS"
    shape = [None] if len(targets) == 1 else [None, len(targets)]
    operator.outputs[0].set_type((StringTensorType if strings else Int64TensorType)(shape))
    for variable, classes in zip(operator.outputs[1:], targets, strict=True):
        variable.set_type(FloatTensorType([None, len(classes)]))


def _hist(scope: Any, operator: Any, container: Any) -> None:
    """A HistGradientBoosting model, categories included; skl2onnx's own takes no categories and rounds thresholds."""
    from sklearn.base import is_classifier

    from converters.sklearn_extra import give

    model = operator.raw_operator
    writer = Container(scope, container)
    table, kind = _numbered(operator, writer)
    forest = hist_forest(model)
    margins = write_margins(writer, forest, table, wide=kind is np.float64)
    classes = classes_of(model) if is_classifier(model) else np.zeros(0, np.int64)
    link: Link = "identity"
    if is_classifier(model):
        link = "sigmoid" if len(forest.base) == 1 else "softmax"
    elif model.loss in ("poisson", "gamma"):
        link = "exp"
    outputs = Outputs("classification" if is_classifier(model) else "regression", link, classes)
    raw = is_classifier(model) and asks_scores(container, model)
    given = write_outputs(writer, outputs, margins, len(forest.base), raw=raw)
    for number, tensor in enumerate(given.values()):
        give(writer, tensor, operator, number)


def _numbered(operator: Any, writer: Container) -> tuple[str, type[Any]]:
    """Return one table of all inputs, named categories as their places and NaN for a strange one, and its type."""
    from skl2onnx.common.data_types import StringTensorType

    from converters.sklearn_extra import joined_inputs

    if not any(isinstance(variable.type, StringTensorType) for variable in operator.inputs):
        return joined_inputs(operator, writer)
    encoder = operator.raw_operator._preprocessor
    places = encoder._transformer_to_input_indices["encoder"]
    names = dict(zip(places, encoder.named_transformers_["encoder"].categories_, strict=True))
    columns = []
    for place, variable in enumerate(operator.inputs):
        name = variable.full_name
        if isinstance(variable.type, StringTensorType):
            keys = [str(key) for key in names[place] if isinstance(key, str)]
            numbers = [float(number) for number in range(len(keys))]
            name = writer.node(
                "LabelEncoder", [name], domain="ai.onnx.ml", keys_strings=keys, values_floats=numbers,
                default_float=float("nan"),
            )  # fmt: skip
        columns.append(writer.node("Cast", [name], to=1))
    return writer.node("Concat", columns, axis=1), np.float32


def _votes(scope: Any, operator: Any, container: Any) -> None:
    """A forest of classifiers. Leaves are summed undivided, so that equal votes stay equal."""
    from converters.sklearn_extra import give, joined_inputs

    model = operator.raw_operator
    writer = Container(scope, container)
    table, kind = joined_inputs(operator, writer)
    if kind is np.float64:
        table = writer.node("Cast", [table], to=1)
    counts = [int(count) for count in np.atleast_1d(model.n_classes_)]
    forest = Forest(width=int(model.n_features_in_), base=np.zeros(sum(counts)))
    for member in model.estimators_:
        forest.trees.append(_member(member.tree_, counts))
    votes = write_margins(writer, forest, table)
    many = writer.constant(np.array(len(model.estimators_), np.float32))
    shares = writer.node("Div", [votes, many])
    if model.n_outputs_ == 1:
        given = write_outputs(
            writer, Outputs("classification", "identity", classes_of(model)), shares, max(counts[0], 2)
        )
        for number, tensor in enumerate(given.values()):
            give(writer, tensor, operator, number)
        return
    labels, start = [], 0
    one = writer.constant(np.array([1], np.int64))
    for number, count in enumerate(counts):
        columns = writer.constant(np.arange(start, start + count))
        part = writer.node("Gather", [shares, columns], axis=1)
        outputs = Outputs("classification", "identity", plain_classes(model.classes_[number]))
        target = write_outputs(writer, outputs, part, max(count, 2))
        labels.append(writer.node("Unsqueeze", [target["label"], one]))
        give(writer, target["probabilities"], operator, number + 1)
        start += count
    give(writer, writer.node("Concat", labels, axis=1), operator, 0)


def _member(tree: Any, counts: list[int]) -> Tree:
    leaf = tree.children_left == LEAF
    shares = np.concatenate(
        [
            tree.value[:, n, :count] / tree.value[:, n, :count].sum(axis=1, keepdims=True)
            for n, count in enumerate(counts)
        ],
        axis=1,
    )
    return Tree(
        feature=np.where(leaf, 0, tree.feature).astype(np.int64),
        threshold=np.where(leaf, 0.0, tree.threshold),
        left=tree.children_left.astype(np.int64),
        right=np.where(leaf, LEAF, tree.children_right).astype(np.int64),
        missing_left=np.asarray(tree.missing_go_to_left, dtype=bool),
        value=shares,
        targets=tuple(range(shares.shape[1])),
    )


def hist_forest(model: Any) -> Forest:
    """Return the trees of a HistGradientBoosting model. Raises ConversionFailed for categories that are no numbers."""
    baseline = np.ravel(np.asarray(model._baseline_prediction, dtype=np.float64))
    forest = Forest(width=int(model.n_features_in_), base=baseline.copy(), exact_float64=True)
    order, known = _columns(model)
    for iteration in model._predictors:
        for target, predictor in enumerate(iteration):
            forest.trees.append(_hist_tree(forest, predictor, target, order, known))
    return forest


def _columns(model: Any) -> tuple[list[int], dict[int, Array]]:
    """Return for each column that the trees see the input column it is, and for categorical ones the categories."""
    encoder = getattr(model, "_preprocessor", None)
    width = int(model.n_features_in_)
    if encoder is None:
        return list(range(width)), {}
    is_categorical = np.asarray(model.is_categorical_)
    mask = np.asarray(encoder.transformers_[0][2]) if hasattr(encoder, "transformers_") else is_categorical
    if mask.dtype != bool:
        mask = np.isin(np.arange(width), mask)
    order = [*np.flatnonzero(mask).tolist(), *np.flatnonzero(~mask).tolist()]
    categories = encoder.named_transformers_["encoder"].categories_
    known: dict[int, Array] = {}
    for column, values in enumerate(categories):
        numbers = np.asarray(values)
        if numbers.dtype.kind not in "biuf":
            known[column] = np.arange(sum(isinstance(value, str) for value in values), dtype=np.float64)
            continue
        numbers = numbers[~np.isnan(numbers.astype(np.float64))].astype(np.float64)
        if not np.array_equal(numbers, np.abs(numbers.astype(np.int64))):
            raise ConversionFailed(
                "This HistGradientBoosting model takes categories that are no whole numbers from 0 on."
            )
        if len(numbers) and numbers.max() > MAX_CATEGORY:
            raise ConversionFailed(f"This HistGradientBoosting model has a category above {MAX_CATEGORY}.")
        known[column] = numbers
    return order, known


def _hist_tree(forest: Forest, predictor: Any, target: int, order: list[int], known: dict[int, Array]) -> Tree:
    nodes = predictor.nodes
    leaf = nodes["is_leaf"].astype(bool)
    features = np.array([order[int(f)] for f in np.where(leaf, 0, nodes["feature_idx"])], dtype=np.int64)
    thresholds = nodes["num_threshold"].astype(np.float64)
    for at in np.flatnonzero(nodes["is_categorical"].astype(bool) & ~leaf):
        column = int(nodes["feature_idx"][at])
        bits = predictor.raw_left_cat_bitsets[int(nodes["bitset_idx"][at])]
        codes = [code for code in range(32 * len(bits)) if int(bits[code // 32]) >> (code % 32) & 1]
        values = known.get(column)
        named = codes if values is None else [int(values[code]) for code in codes if code < len(values)]
        every = () if values is None else tuple(int(v) for v in values if v >= 0)
        choice = Choice(order[column], tuple(v for v in named if v >= 0), listed_go_left=True, known=every)
        features[at], thresholds[at] = forest.choose(choice), 0.5
    return Tree(
        feature=features,
        threshold=thresholds,
        left=np.where(leaf, LEAF, nodes["left"].astype(np.int64)),
        right=np.where(leaf, LEAF, nodes["right"].astype(np.int64)),
        missing_left=nodes["missing_go_to_left"].astype(bool),
        value=np.where(leaf, nodes["value"].astype(np.float64), 0.0)[:, None],
        targets=(target,),
    )
