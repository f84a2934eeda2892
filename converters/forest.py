"""Forest: trees of any boosting library in one form, and the ONNX nodes that give the same sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from converters.arrays import Array
from schemas.errors import ConversionFailed

LEAF = -1
MAX_NODES = 20_000_000
"""Of one forest; its ONNX attributes take about 50 bytes a node, and protobuf ends at 2 GiB."""
MAX_CATEGORY = 1 << 20
"""Largest category that is looked up in a table."""


class GraphWriter(Protocol):
    """Where nodes go: a graph of our own, or skl2onnx's container."""

    def node(self, op_type: str, inputs: Sequence[str], *, domain: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its one output."""

    def constant(self, array: Array) -> str:
        """Add an initializer and return its name."""


@dataclass(frozen=True)
class Tree:
    """One tree; arrays have an entry for each node, the root first. A row goes left where ``x <= threshold``."""

    feature: Array
    """int64; beyond the width of the table it counts the forest's ``choices``."""
    threshold: Array
    """float64, exact in the library's own arithmetic."""
    left: Array
    """int64; LEAF for a leaf."""
    right: Array
    missing_left: Array
    """bool: where NaN goes."""
    value: Array
    """float64, shape (nodes, targets of this tree): what leaves add."""
    targets: tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """A feature made of a categorical one: 0 where a split sends the category left, 1 where it sends it right."""

    feature: int
    categories: tuple[int, ...]
    listed_go_left: bool
    known: tuple[int, ...] = ()
    """Categories that are not missing; () for all."""


@dataclass
class Forest:
    """Trees whose leaves are summed on top of ``base``."""

    width: int
    base: Array
    """float64, one a target."""
    trees: list[Tree] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    exact_float64: bool = False
    """The library compares in float64; else in float32."""
    gap: float | None = None
    """A value that counts as missing beside NaN."""
    _numbers: dict[Choice, int] = field(default_factory=dict)

    def choose(self, choice: Choice) -> int:
        """Return the number of the feature that ``choice`` makes; equal ones are one."""
        if choice.categories and max(choice.categories) > MAX_CATEGORY:
            raise ConversionFailed(
                f"The model splits on category {max(choice.categories)} of feature {choice.feature}, and categories "
                f"above {MAX_CATEGORY} are not converted.",
                hint="Number the categories from 0 on before training.",
            )
        if choice not in self._numbers:
            self._numbers[choice] = self.width + len(self.choices)
            self.choices.append(choice)
        return self._numbers[choice]

    def thresholds(self) -> dict[int, Array]:
        """Return feature to the sorted thresholds that its values are compared with; categorical ones excepted."""
        features = [tree.feature[tree.left != LEAF] for tree in self.trees]
        values = [tree.threshold[tree.left != LEAF] for tree in self.trees]
        if not features:
            return {}
        feature, value = np.concatenate(features), np.concatenate(values)
        known = (feature < self.width) & np.isfinite(value)
        return {int(f): np.unique(value[known & (feature == f)]) for f in np.unique(feature[known])}

    def categories(self) -> dict[int, Array]:
        """Return categorical feature to the categories that its splits name."""
        found: dict[int, set[int]] = {}
        for choice in self.choices:
            found.setdefault(choice.feature, set()).update(choice.categories)
        return {feature: np.array(sorted(values), dtype=np.float64) for feature, values in found.items()}


def float32_floor(values: Array) -> Array:
    """Return the largest float32 not above each float64: ``x <= value`` keeps its answer for every float32 x."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
    above = rounded.astype(np.float64) > values
    return np.where(above, np.nextafter(rounded, np.float32(-np.inf)), rounded).astype(np.float32)


def write_margins(writer: GraphWriter, forest: Forest, table: str, *, wide: bool = False) -> str:
    """Add the nodes that sum ``forest`` over ``table`` (batch, width) and return (batch, targets), float32.

    ``table`` is float32, or float64 with ``wide``, and then thresholds are compared in float64. Raises
    ConversionFailed for a forest that is too large for one node.
    """
    number = sum(len(tree.feature) for tree in forest.trees)
    if number > MAX_NODES:
        raise ConversionFailed(f"The model has {number} nodes, and at most {MAX_NODES} are converted.")
    kind = np.float64 if wide else np.float32
    if forest.gap is not None:
        value, missing = writer.constant(np.full(1, forest.gap, kind)), writer.constant(np.full(1, np.nan, kind))
        table = writer.node("Where", [writer.node("Equal", [table, value]), missing, table])
    table = _with_choices(writer, forest, table, kind)
    targets = len(forest.base)
    if not forest.trees:
        return _constant_margins(writer, forest, table, kind)
    attributes = _attributes(forest, wide)
    margins = writer.node(
        "TreeEnsembleRegressor", [table], domain="ai.onnx.ml", n_targets=targets, aggregate_function="SUM",
        post_transform="NONE", **attributes,
    )  # fmt: skip
    return margins


def _constant_margins(writer: GraphWriter, forest: Forest, table: str, kind: type[Any]) -> str:
    """Return the base for each row: a model that has learned nothing."""
    first = writer.node("Gather", [table, writer.constant(np.zeros(1, np.int64))], axis=1)
    none = writer.node("Cast", [writer.node("IsNaN", [first])], to=1)
    zero = writer.node("Mul", [none, writer.constant(np.zeros(1, np.float32))])
    return writer.node("Add", [zero, writer.constant(forest.base.astype(np.float32)[None])])


def _attributes(forest: Forest, wide: bool) -> dict[str, Any]:
    sizes = [len(tree.feature) for tree in forest.trees]
    joined = {
        name: np.concatenate([getattr(tree, name) for tree in forest.trees])
        for name in ("feature", "threshold", "left", "right", "missing_left")
    }
    owner = np.repeat(np.arange(len(sizes)), sizes)
    node = np.concatenate([np.arange(size) for size in sizes])
    leaf = joined["left"] == LEAF
    modes = np.where(leaf, "LEAF", "BRANCH_LEQ").tolist()
    found: dict[str, Any] = {
        "nodes_treeids": owner.tolist(),
        "nodes_nodeids": node.tolist(),
        "nodes_featureids": np.where(leaf, 0, joined["feature"]).tolist(),
        "nodes_modes": modes,
        "nodes_truenodeids": np.where(leaf, 0, joined["left"]).tolist(),
        "nodes_falsenodeids": np.where(leaf, 0, joined["right"]).tolist(),
        "nodes_missing_value_tracks_true": np.where(leaf, 0, joined["missing_left"]).astype(np.int64).tolist(),
    }
    thresholds = np.where(leaf, 0.0, joined["threshold"])
    owners, nodes, targets, weights = [], [], [], []
    for number, tree in enumerate(forest.trees):
        leaves = np.flatnonzero(tree.left == LEAF)
        for column, target in enumerate(tree.targets):
            owners.append(np.full(len(leaves), number))
            nodes.append(leaves)
            targets.append(np.full(len(leaves), target))
            weights.append(tree.value[leaves, column])
    found["target_treeids"] = np.concatenate(owners).tolist()
    found["target_nodeids"] = np.concatenate(nodes).tolist()
    found["target_ids"] = np.concatenate(targets).tolist()
    weight = np.concatenate(weights)
    if wide:
        from onnx import helper

        def tensor(name: str, values: Array) -> Any:
            return helper.make_tensor(name, 11, [len(values)], values.astype(np.float64))

        found["nodes_values_as_tensor"] = tensor("nodes_values", thresholds)
        found["target_weights_as_tensor"] = tensor("target_weights", weight)
        found["base_values_as_tensor"] = tensor("base_values", forest.base)
    else:
        found["nodes_values"] = float32_floor(thresholds).tolist()
        found["target_weights"] = weight.astype(np.float32).tolist()
        found["base_values"] = forest.base.astype(np.float32).tolist()
    return found


def _with_choices(writer: GraphWriter, forest: Forest, table: str, kind: type[Any]) -> str:
    """Append a column for each choice: looked up by category, NaN where the category is missing."""
    if not forest.choices:
        return table
    columns = [table]
    order: list[int] = []
    by_feature: dict[int, list[int]] = {}
    for number, choice in enumerate(forest.choices):
        by_feature.setdefault(choice.feature, []).append(number)
    for feature, numbers in by_feature.items():
        mine = [forest.choices[number] for number in numbers]
        top = max((max((*choice.categories, *choice.known), default=0) for choice in mine), default=0)
        # One row for each category, and a last one for all that no split names.
        rows = np.array([[float(choice.listed_go_left)] * (top + 2) for choice in mine]).T
        for column, choice in enumerate(mine):
            if choice.known:
                rows[np.setdiff1d(np.arange(top + 2), choice.known), column] = np.nan
            rows[list(choice.categories), column] = 0.0 if choice.listed_go_left else 1.0
        value = writer.node("Gather", [table, writer.constant(np.array(feature, np.int64))], axis=1)
        missing = writer.node("IsNaN", [value])
        outside = writer.constant(np.array(top + 1, kind))
        usable = writer.node("Where", [missing, outside, value])
        negative = writer.node("Less", [usable, writer.constant(np.array(0, kind))])
        usable = writer.node("Where", [negative, outside, usable])
        usable = writer.node("Min", [usable, outside])
        index = writer.node("Cast", [usable], to=7)
        found = writer.node("Gather", [writer.constant(rows.astype(kind)), index], axis=0)
        gap = writer.node("Unsqueeze", [missing, writer.constant(np.array([1], np.int64))])
        columns.append(writer.node("Where", [gap, writer.constant(np.array(np.nan, kind)), found]))
        order += numbers
    joined = writer.node("Concat", columns, axis=1)
    if order == sorted(order):
        return joined
    places = [*range(forest.width), *(forest.width + order.index(n) for n in range(len(order)))]
    return writer.node("Gather", [joined, writer.constant(np.array(places, np.int64))], axis=1)
