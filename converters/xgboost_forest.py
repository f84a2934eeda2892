"""Read the trees of a loaded XGBoost booster, and what its objective makes of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from converters.arrays import Array
from converters.boosting_outputs import Link, Outputs
from converters.forest import LEAF, Choice, Forest, Tree
from schemas.errors import ConversionFailed, ModelFailed

_LOGIT = frozenset({"binary:logistic", "reg:logistic"})
_LOG = frozenset({"count:poisson", "reg:gamma", "reg:tweedie", "survival:cox", "survival:aft"})
_CATEGORICAL = 1


def learner_of(booster: Any) -> dict[str, Any]:
    """Return the ``learner`` part of a booster's own JSON."""
    found: dict[str, Any] = json.loads(bytes(booster.save_raw("json")))["learner"]
    return found


def outputs_of(learner: dict[str, Any], targets: int) -> Outputs:
    """Return what the objective makes of the margins, as ``Booster.predict`` does, with labels where it classifies."""
    objective = str(learner["objective"]["name"])
    none = np.zeros(0, np.int64)
    if objective == "binary:logistic":
        classes = np.arange(2)
        return Outputs("classification" if targets == 1 else "multilabel", "sigmoid", classes)
    if objective in ("multi:softprob", "multi:softmax"):
        return Outputs("classification", "softmax", np.arange(targets))
    if objective.startswith("rank:"):
        return Outputs("ranking", "identity", none)
    links: dict[str, Link] = {"reg:logistic": "sigmoid", "binary:hinge": "step", **dict.fromkeys(_LOG, "exp")}
    return Outputs("regression", links.get(objective, "identity"), none)


def count_targets(learner: dict[str, Any]) -> int:
    """Return how many margins a row has: classes, targets or quantiles."""
    shape = learner["learner_model_param"]
    base = _base_scores(shape["base_score"])
    return max(int(shape.get("num_class", 0)), int(shape.get("num_target", 1)), len(base), 1)


def forest_of(learner: dict[str, Any], iterations: int | None = None) -> Forest:
    """Return the trees; only those of the first ``iterations`` where it is given.

    Raises ConversionFailed for a linear booster, see :func:`linear_of`, and for leaves in a form of another version.
    """
    shape = learner["learner_model_param"]
    targets = count_targets(learner)
    forest = Forest(width=int(shape["num_feature"]), base=_base(learner, targets))
    booster = learner["gradient_booster"]
    weights: list[float] | None = None
    if booster["name"] == "dart":
        weights = [float(w) for w in booster["weight_drop"]]
        booster = booster["gbtree"]
    if "model" not in booster or "trees" not in booster["model"]:
        raise ConversionFailed(f"This XGBoost model is of kind {booster.get('name')!r}, which has no trees.")
    model = booster["model"]
    ends = model.get("iteration_indptr")
    last = len(model["trees"])
    if iterations is not None and ends and iterations < len(ends):
        last = int(ends[iterations])
    for number, tree in enumerate(model["trees"][:last]):
        weight = weights[number] if weights is not None else 1.0
        forest.trees.append(_tree(forest, tree, int(model["tree_info"][number]), targets, weight))
    return forest


def linear_of(learner: dict[str, Any]) -> tuple[Array, Array] | None:
    """Return weights (width, targets) and bias (targets,) of a linear booster with its base; None for trees."""
    booster = learner["gradient_booster"]
    if booster["name"] != "gblinear":
        return None
    targets = count_targets(learner)
    flat = np.array(booster["model"]["weights"], dtype=np.float64).reshape(-1, targets)
    return flat[:-1], flat[-1] + _base(learner, targets)


def _base_scores(text: Any) -> list[float]:
    found = json.loads(text) if isinstance(text, str) else text
    return [float(value) for value in found] if isinstance(found, list) else [float(found)]


def _base(learner: dict[str, Any], targets: int) -> Array:
    """Return base margins: ``base_score`` is kept in the unit of the prediction."""
    scores = np.array(_base_scores(learner["learner_model_param"]["base_score"]), dtype=np.float64)
    objective = str(learner["objective"]["name"])
    if objective in _LOGIT:
        scores = -np.log(1.0 / scores - 1.0)
    elif objective in _LOG:
        scores = np.log(scores)
    if len(scores) not in (1, targets):
        raise ModelFailed(f"The XGBoost model has {len(scores)} base scores and {targets} outputs.")
    return np.broadcast_to(scores, (targets,)).copy()


def _tree(forest: Forest, tree: dict[str, Any], target: int, targets: int, weight: float) -> Tree:
    left = np.array(tree["left_children"], dtype=np.int64)
    leaf = left == LEAF
    conditions = np.array(tree["split_conditions"], dtype=np.float32)
    # A row goes left where x < condition; both are float32.
    thresholds = np.nextafter(conditions, np.float32(-np.inf)).astype(np.float64)
    features = np.array(tree["split_indices"], dtype=np.int64)
    for number, node in enumerate(tree.get("categories_nodes", ())):
        start, size = int(tree["categories_segments"][number]), int(tree["categories_sizes"][number])
        categories = tuple(sorted(int(c) for c in tree["categories"][start : start + size]))
        features[node] = forest.choose(Choice(int(features[node]), categories, listed_go_left=False))
        thresholds[node] = 0.5
    size_leaf = int(tree["tree_param"].get("size_leaf_vector", 1))
    if size_leaf > 1:
        value, members = _vector_leaves(tree, size_leaf), tuple(range(size_leaf))
    else:
        value, members = conditions.astype(np.float64)[:, None], (target if targets > 1 else 0,)
    return Tree(
        feature=features,
        threshold=thresholds,
        left=left,
        right=np.where(leaf, LEAF, np.array(tree["right_children"], dtype=np.int64)),
        missing_left=np.array(tree["default_left"], dtype=bool),
        value=np.where(leaf[:, None], value * weight, 0.0),
        targets=members,
    )


def _vector_leaves(tree: dict[str, Any], size: int) -> Array:
    """Return the leaves of a multi-target tree, (nodes, size)."""
    left = np.array(tree["left_children"], dtype=np.int64)
    if "leaf_weights" in tree and len(tree["leaf_weights"]):
        # Since 3.1 leaves lie apart, and a leaf's right child says which is its own.
        leaves = np.array(tree["leaf_weights"], dtype=np.float64).reshape(-1, size)
        right = np.array(tree["right_children"], dtype=np.int64)
        return np.where((left == LEAF)[:, None], leaves[np.clip(right, 0, len(leaves) - 1)], 0.0)
    return np.array(tree["base_weights"], dtype=np.float64).reshape(len(left), size)
