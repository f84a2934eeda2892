"""Read the trees of a loaded CatBoost model, and what its loss makes of them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from converters.arrays import Array, plain
from converters.boosting_outputs import Link, Outputs
from converters.forest import LEAF, Forest, Tree
from schemas.errors import ConversionFailed

_RANKING = ("YetiRank", "PairLogit", "QueryRMSE", "QuerySoftMax", "QueryCrossEntropy", "StochasticRank", "LambdaMart")
_EXPONENT = frozenset({"Poisson", "Tweedie"})


def loss_of(model: Any) -> str:
    """Return the name of the loss that the model was trained with; empty where it does not say."""
    try:
        text = model.get_metadata()["params"]
    except KeyError:
        return ""
    loss = json.loads(text).get("loss_function", {})
    return str(loss.get("type", "") if isinstance(loss, dict) else loss)


def classes_of(model: Any) -> Array:
    """Return the class labels, int64 or unicode; empty for a model without classes."""
    return plain_classes(getattr(model, "classes_", ()))


def plain_classes(classes: Any) -> Array:
    """Return class labels as int64 or unicode."""
    found = np.asarray(classes)
    if not found.size:
        return np.zeros(0, np.int64)
    if found.dtype.kind in "biuf" and np.array_equal(found, found.astype(np.int64)):
        return found.astype(np.int64)
    return plain(found.astype(object))


def outputs_of(model: Any) -> Outputs:
    """Return what the loss makes of the margins, as the model's own predict and predict_proba do."""
    loss, classes = loss_of(model), classes_of(model)
    none = np.zeros(0, np.int64)
    if loss in ("MultiLogloss", "MultiCrossEntropy"):
        return Outputs("multilabel", "sigmoid", classes)
    if loss == "MultiClassOneVsAll":
        return Outputs("classification", "sigmoid", classes)
    if loss == "MultiClass" or len(classes) > 2:
        return Outputs("classification", "softmax", classes)
    if len(classes) == 2:
        return Outputs("classification", "sigmoid", classes)
    if loss.startswith(_RANKING):
        return Outputs("ranking", "identity", none)
    links: dict[str, Link] = {"RMSEWithUncertainty": "variance", **dict.fromkeys(_EXPONENT, "exp")}
    return Outputs("regression", links.get(loss, "identity"), none)


def forest_of(model: Any) -> Forest:
    """Return the trees. Raises ConversionFailed for features that are no numbers, and for an empty model."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.json"
        model.save_model(str(file), format="json")
        dump = json.loads(file.read_text(encoding="utf-8"))
    info = dump["features_info"]
    for kind, name in (
        ("categorical_features", "categorical"), ("text_features", "text"), ("embedding_features", "embedding"),
        ("ctrs", "categorical"),
    ):  # fmt: skip
        if info.get(kind):
            raise ConversionFailed(
                f"This CatBoost model was trained with {name} features, whose hashes and statistics ONNX has no "
                "operator for; only models of numeric features are converted.",
                hint="Encode them as numbers in a pipeline before the model (for example with OrdinalEncoder), or "
                "serve the .cbm file with CatBoost itself.",
            )
    features = info.get("float_features", [])
    flat = {int(f["feature_index"]): int(f["flat_feature_index"]) for f in features}
    missing_left = {int(f["feature_index"]): f.get("nan_value_treatment") != "AsTrue" for f in features}
    scale, bias = dump["scale_and_bias"]
    base = np.atleast_1d(np.array(bias, dtype=np.float64))
    forest = Forest(width=max(len(model.feature_names_), max(flat.values(), default=-1) + 1), base=base)
    for tree in dump.get("oblivious_trees", ()):
        forest.trees.append(_oblivious(tree, len(base), float(scale), flat, missing_left))
    for tree in dump.get("trees", ()):
        forest.trees.append(_branching(tree, len(base), float(scale), flat, missing_left))
    return forest


def _border(split: dict[str, Any]) -> tuple[int, float]:
    if split.get("split_type") != "FloatFeature":
        raise ConversionFailed(
            f"This CatBoost model splits by {split.get('split_type')}, and only numeric splits are converted."
        )
    return int(split["float_feature_index"]), float(np.float32(split["border"]))


def _oblivious(tree: dict[str, Any], targets: int, scale: float, flat: dict[int, int], nan: dict[int, bool]) -> Tree:
    """Return a tree with one split a level: bit i of a leaf's number is whether x is above the border of split i."""
    splits = [_border(split) for split in tree.get("splits") or ()]
    depth = len(splits)
    inner, leaves = (1 << depth) - 1, 1 << depth
    values = np.array(tree["leaf_values"], dtype=np.float64).reshape(leaves, targets) * scale
    number = np.arange(inner + leaves, dtype=np.int64)
    level = np.array([(n + 1).bit_length() - 1 for n in number.tolist()], dtype=np.int64)
    is_leaf = level == depth
    # In a heap the path from the root is the number's binary digits, the first split's first; leaves have it last.
    path = number[is_leaf] - inner
    reverse = np.zeros(leaves, dtype=np.int64)
    for bit in range(depth):
        reverse |= ((path >> (depth - 1 - bit)) & 1) << bit
    value = np.zeros((inner + leaves, targets))
    value[is_leaf] = values[reverse]
    at = np.where(is_leaf, 0, level)
    features = np.array([flat[f] for f, _ in splits] or [0], dtype=np.int64)
    return Tree(
        feature=features[at],
        threshold=np.array([b for _, b in splits] or [0.0])[at],
        left=np.where(is_leaf, LEAF, 2 * number + 1),
        right=np.where(is_leaf, LEAF, 2 * number + 2),
        missing_left=np.array([nan[f] for f, _ in splits] or [True])[at],
        value=value,
        targets=tuple(range(targets)),
    )


def _branching(tree: dict[str, Any], targets: int, scale: float, flat: dict[int, int], nan: dict[int, bool]) -> Tree:
    nodes: list[tuple[int, float, int, int, bool, Any]] = []
    waiting: list[tuple[dict[str, Any], int, int]] = [(tree, LEAF, 0)]
    links: dict[tuple[int, int], int] = {}
    while waiting:
        node, parent, side = waiting.pop()
        own = len(nodes)
        links[(parent, side)] = own
        if "split" not in node:
            leaf = np.broadcast_to(np.asarray(node["value"], dtype=np.float64) * scale, (targets,))
            nodes.append((0, 0.0, LEAF, LEAF, True, leaf))
            continue
        feature, border = _border(node["split"])
        nodes.append((flat[feature], border, 0, 0, nan[feature], np.zeros(targets)))
        waiting += [(node["right"], own, 1), (node["left"], own, 0)]
    return Tree(
        feature=np.array([n[0] for n in nodes], np.int64),
        threshold=np.array([n[1] for n in nodes], np.float64),
        left=np.array([links[(i, 0)] if n[2] != LEAF else LEAF for i, n in enumerate(nodes)], np.int64),
        right=np.array([links[(i, 1)] if n[2] != LEAF else LEAF for i, n in enumerate(nodes)], np.int64),
        missing_left=np.array([n[4] for n in nodes], bool),
        value=np.stack([n[5] for n in nodes]),
        targets=tuple(range(targets)),
    )
