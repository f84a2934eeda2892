"""Read the trees of a loaded LightGBM booster, and what its objective makes of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from converters.boosting_outputs import Outputs
from converters.forest import LEAF, MAX_NODES, Choice, Forest, Tree
from schemas.errors import ConversionFailed

ZERO = float(np.float32(1e-35))
"""LightGBM's kZeroThreshold, a float there: what is not farther from zero is zero."""

_BELOW_ZERO = float(np.nextafter(np.float32(-1e-35), np.float32(-np.inf)))


def outputs_of(model: dict[str, Any]) -> Outputs:
    """Return what the objective makes of the margins, as ``Booster.predict`` does; ``model`` is its dump."""
    words = str(model.get("objective", "")).split()
    name = words[0] if words else ""
    facts = dict(word.split(":", 1) for word in words[1:] if ":" in word)
    scale = float(facts.get("sigmoid", 1.0))
    none = np.zeros(0, np.int64)
    if name == "binary":
        return Outputs("classification", "sigmoid", np.arange(2), scale)
    if name == "multiclass":
        return Outputs("classification", "softmax", np.arange(int(model["num_class"])))
    if name == "multiclassova":
        return Outputs("classification", "sigmoid", np.arange(int(model["num_class"])), scale)
    if name in ("lambdarank", "rank_xendcg"):
        return Outputs("ranking", "identity", none)
    if name in ("poisson", "gamma", "tweedie"):
        return Outputs("regression", "exp", none)
    if name == "cross_entropy":
        return Outputs("regression", "sigmoid", none)
    if name == "cross_entropy_lambda":
        return Outputs("regression", "log1p_exp", none)
    if name.startswith("regression") and "sqrt" in words[1:]:
        return Outputs("regression", "signed_square", none)
    return Outputs("regression", "identity", none)


def forest_of(model: dict[str, Any]) -> Forest:
    """Return the trees of a booster's dump. Raises ConversionFailed for trees with linear models in their leaves."""
    targets = max(int(model["num_tree_per_iteration"]), 1)
    forest = Forest(width=int(model["max_feature_idx"]) + 1, base=np.zeros(targets), exact_float64=True)
    infos = model["tree_info"]
    share = targets / len(infos) if model.get("average_output") and infos else 1.0
    for number, info in enumerate(infos):
        forest.trees.append(_Builder(forest, number % targets, share).build(info["tree_structure"]))
    return forest


@dataclass
class _Builder:
    forest: Forest
    target: int
    share: float
    feature: list[int] = field(default_factory=list)
    threshold: list[float] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    missing_left: list[bool] = field(default_factory=list)
    value: list[float] = field(default_factory=list)

    def build(self, root: dict[str, Any]) -> Tree:
        # Trees may be deeper than Python's stack.
        waiting: list[tuple[dict[str, Any], int, bool]] = [(root, LEAF, False)]
        while waiting:
            node, parent, is_left = waiting.pop()
            own = self._add()
            if parent != LEAF:
                (self.left if is_left else self.right)[parent] = own
            if "leaf_value" in node:
                if node.get("leaf_coeff"):
                    raise ConversionFailed(
                        "The trees of this LightGBM model hold linear models in their leaves (linear_tree), which "
                        "are not converted.",
                        hint="Train it with linear_tree=false.",
                    )
                self.value[own] = float(node["leaf_value"]) * self.share
                continue
            for child, at, side in self._split(node, own):
                waiting.append((child, at, side))
        return Tree(
            feature=np.array(self.feature, np.int64),
            threshold=np.array(self.threshold, np.float64),
            left=np.array(self.left, np.int64),
            right=np.array(self.right, np.int64),
            missing_left=np.array(self.missing_left, bool),
            value=np.array(self.value, np.float64)[:, None],
            targets=(self.target,),
        )

    def _add(self) -> int:
        if len(self.feature) >= MAX_NODES:
            raise ConversionFailed("A tree of this LightGBM model grows too large where zeros count as missing.")
        for column, empty in (
            (self.feature, 0), (self.threshold, 0.0), (self.left, LEAF), (self.right, LEAF),
            (self.missing_left, False), (self.value, 0.0),
        ):  # fmt: skip
            column.append(empty)  # type: ignore[arg-type]
        return len(self.feature) - 1

    def _split(self, node: dict[str, Any], own: int) -> list[tuple[dict[str, Any], int, bool]]:
        """Fill in node ``own`` and return its children with where they hang."""
        feature, children = int(node["split_feature"]), (node["left_child"], node["right_child"])
        if node["decision_type"] == "==":
            categories = tuple(sorted(int(text) for text in str(node["threshold"]).split("||")))
            self.feature[own] = self.forest.choose(Choice(feature, categories, listed_go_left=True))
            self.threshold[own] = 0.5
            return [(children[0], own, True), (children[1], own, False)]
        threshold, default_left = _snapped(float(node["threshold"])), bool(node["default_left"])
        self.feature[own], self.threshold[own] = feature, threshold
        zero_left = threshold >= 0
        missing = node["missing_type"]
        # Where the model was not trained to tell them apart, NaN is taken for zero.
        self.missing_left[own] = default_left if missing in ("NaN", "Zero") else zero_left
        if missing != "Zero" or default_left == zero_left:
            return [(children[0], own, True), (children[1], own, False)]
        # Zero goes where missing values go, against the threshold: a branch around it, which holds a subtree twice.
        # Below zero first, then x <= ZERO (that is zero), then the rest, at the threshold where it lies on that side.
        inner = self._add()
        self.feature[inner], self.threshold[inner], self.missing_left[inner] = feature, ZERO, True
        self.threshold[own], self.missing_left[own] = (min(threshold, _BELOW_ZERO), False)
        self.right[own] = inner
        if threshold >= 0:
            # Below zero all go left; zero goes right; above it the threshold decides.
            upper = self._add()
            self.feature[upper], self.threshold[upper] = feature, threshold
            self.right[inner] = upper
            return [
                (children[0], own, True), (children[1], inner, True), (children[0], upper, True),
                (children[1], upper, False),
            ]  # fmt: skip
        # The threshold is below zero: what is above it goes right but for zero.
        return [(children[0], own, True), *self._around_zero(children, inner, feature)]

    def _around_zero(
        self, children: tuple[dict[str, Any], dict[str, Any]], inner: int, feature: int
    ) -> list[tuple[dict[str, Any], int, bool]]:
        """Between the threshold and zero rows go right, at zero left, above it right."""
        self.threshold[inner] = _BELOW_ZERO
        self.missing_left[inner] = False
        zero = self._add()
        self.feature[zero], self.threshold[zero], self.missing_left[zero] = feature, ZERO, True
        self.right[inner] = zero
        return [(children[1], inner, True), (children[0], zero, True), (children[1], zero, False)]


def _snapped(threshold: float) -> float:
    """Return a threshold that treats all that is zero alike: LightGBM hands the trees 0 for it."""
    if -ZERO <= threshold < 0:
        return _BELOW_ZERO
    return ZERO if 0 <= threshold < ZERO else threshold
