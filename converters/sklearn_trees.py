"""Where a tree sends a missing value: scikit-learn's answer, put into the graph that skl2onnx made."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.graph_walk import all_nodes
from converters.sklearn_steps import steps_of

if TYPE_CHECKING:
    import onnx

_TRACKS = "nodes_missing_value_tracks_true"
_INSIDE = ("final_estimator_", "estimator_", "regressor_", "estimator")
"""Where estimators of estimators keep another; one that is only to be fitted has no trees."""
_SHAPE = ("nodes_truenodeids", "nodes_falsenodeids")


def route_missing_values(model: onnx.ModelProto, estimator: Any) -> None:
    """Send NaN down the branch that each tree of ``estimator`` sends it; skl2onnx sends it always to the right.

    scikit-learn's trees take missing values also when they never saw one: down the branch with more samples. The trees
    of the graph are told from one another by their branches, and by their order where those are the same.
    """
    waiting: dict[tuple[bytes, bytes], deque[Any]] = defaultdict(deque)
    for tree in _trees(estimator):
        waiting[_branches(tree.children_left, tree.children_right)].append(tree)
    if not waiting:
        return
    for node in all_nodes(model):
        found = {attribute.name: attribute for attribute in node.attribute}
        if _TRACKS not in found or "nodes_treeids" not in found or not all(name in found for name in _SHAPE):
            continue
        owners = np.array(found["nodes_treeids"].ints)
        left, right = (np.array(found[name].ints) for name in _SHAPE)
        tracks = np.array(found[_TRACKS].ints)
        for owner in dict.fromkeys(owners.tolist()):
            mine = owners == owner
            leaf = left[mine] == right[mine]
            matching = waiting.get(_branches(np.where(leaf, -1, left[mine]), np.where(leaf, -1, right[mine])))
            if matching:
                # A tree that the graph holds twice, once for labels and once for scores, stays in the queue.
                tree = matching[0]
                matching.rotate(-1)
                tracks[mine] = np.where(leaf, 0, np.asarray(tree.missing_go_to_left, dtype=np.int64))
        del found[_TRACKS].ints[:]
        found[_TRACKS].ints.extend(tracks.tolist())


def _branches(left: Any, right: Any) -> tuple[bytes, bytes]:
    return np.asarray(left, dtype=np.int64).tobytes(), np.asarray(right, dtype=np.int64).tobytes()


def _trees(estimator: Any) -> Iterator[Any]:
    for part in steps_of(estimator):
        tree = getattr(part, "tree_", None)
        if tree is not None and hasattr(tree, "missing_go_to_left"):
            yield tree
        members = getattr(part, "estimators_", None)
        for member in np.asarray(members, dtype=object).reshape(-1) if members is not None else ():
            yield from _trees(member)
        for name in _INSIDE:
            if (inner := vars(part).get(name)) is not None and not isinstance(inner, str):
                yield from _trees(inner)
        for calibrated in getattr(part, "calibrated_classifiers_", ()):
            yield from _trees(calibrated.estimator)
