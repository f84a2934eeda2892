"""What one row costs a fitted scikit-learn estimator, by its formula: sums of products, and comparisons in trees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_DEEPEST = 8


def estimator_work(steps: Sequence[Any]) -> dict[str, Any]:
    """Return the descriptor fields ``flops`` and ``matrix_bytes`` of a pipeline's ``steps``; {} when one is unknown.

    Two operations for each multiply-add of a linear model, a layer (MLP), a kernel (SVM) or a projection (PCA); in a
    tree one comparison for each level, the levels weighed by the training samples that went down there. What is
    looked up or scaled element by element is left out.
    """
    total = 0.0
    for number, step in enumerate(steps):
        cost = _cost(step, 0)
        if cost is None and number == len(steps) - 1:
            return {}
        total += cost or 0
    matrices = [matrix for step in steps for matrix in _matrices(step)]
    facts: dict[str, Any] = {"flops": round(total)}
    if matrices:
        facts["matrix_bytes"] = sum(matrix.nbytes for matrix in matrices)
    return facts


def _matrices(estimator: Any) -> list[Any]:
    layers = getattr(estimator, "coefs_", None)
    if isinstance(layers, list):
        return layers
    weights = getattr(estimator, "coef_", None) if not hasattr(estimator, "support_vectors_") else None
    return [weights] if isinstance(weights, np.ndarray) else []


def _cost(estimator: Any, depth: int) -> float | None:
    """Return the operations of one row, None where no formula here knows the estimator."""
    if depth > _DEEPEST:
        return None
    tree = getattr(estimator, "tree_", None)
    if tree is not None and hasattr(tree, "children_left"):
        return _tree(tree)
    predictors = getattr(estimator, "_predictors", None)
    if predictors is not None:
        return float(sum(_nodes(each.nodes) for group in predictors for each in group))
    matrices = _matrices(estimator)
    if matrices:
        return float(sum(2 * matrix.size for matrix in matrices))
    vectors = getattr(estimator, "support_vectors_", None)
    if vectors is not None:
        return float(2 * np.prod(vectors.shape) + 2 * np.size(getattr(estimator, "dual_coef_", 0)))
    components = getattr(estimator, "components_", None)
    if isinstance(components, np.ndarray):
        return float(2 * components.size)
    members = getattr(estimator, "estimators_", None)
    if members is None:
        return None
    costs = [_cost(member, depth + 1) for member in np.asarray(members, dtype=object).reshape(-1)]
    known = [cost for cost in costs if cost is not None]
    return float(sum(known)) if len(known) == len(costs) else None


def _tree(tree: Any) -> float:
    """Return the mean number of comparisons: node by node, the share of training samples that reached it."""
    inner = np.asarray(tree.children_left) != np.asarray(tree.children_right)
    samples = np.asarray(tree.n_node_samples, dtype=np.float64)
    return float(samples[inner].sum() / max(samples[0], 1.0))


def _nodes(nodes: Any) -> float:
    samples = nodes["count"].astype(np.float64)
    return float(samples[nodes["is_leaf"] == 0].sum() / max(samples[0], 1.0))
