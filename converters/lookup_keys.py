"""What the lookup tables inside a model know: inputs are drawn from it, since nothing else would be found in them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.arrays import Array, kind
from converters.domain import ANYTHING, Domain
from converters.sentences import SENTENCES
from schemas.descriptor import TensorSpec

if TYPE_CHECKING:
    import onnx

_MOST_KEYS = 1000
_MOVES = frozenset({"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Concat", "Slice",
                    "Split", "Gather", "ArrayFeatureExtractor", "StringNormalizer"})  # fmt: skip
"""Operators whose outputs hold values of their inputs. Those of skl2onnx that pick columns are among them."""
_ATTRIBUTES = ("keys_strings", "keys_int64s", "keys_tensor", "cats_strings", "cats_int64s")


@dataclass
class Keys:
    """Keys of the tables that one input is looked up in. ``strict``: what is not among them makes the model fail."""

    words: set[str] = field(default_factory=set)
    numbers: set[int] = field(default_factory=set)
    strict: bool = False

    def add(self, keys: Iterable[Any]) -> None:
        """Add strings, bytes or integers; other keys are left out."""
        for key in keys:
            if isinstance(key, bytes | str):
                self.words.add(key.decode("utf-8", "replace") if isinstance(key, bytes) else key)
            elif isinstance(key, int | np.integer):
                self.numbers.add(int(key))


def with_keys(
    domains: Mapping[str, Domain], inputs: Sequence[TensorSpec], keys: Mapping[str, Keys]
) -> dict[str, Domain]:
    """Return ``domains`` with choices for the inputs that tables have keys for, and a few that they have none for."""
    found = dict(domains)
    for spec in inputs:
        domain = found.get(spec.name, ANYTHING)
        if spec.name in keys and domain.choices is None and (choices := _choices(spec, domain, keys[spec.name])):
            found[spec.name] = replace(domain, choices=np.array(choices, object if spec.dtype == "string" else None))
    return found


def _choices(spec: TensorSpec, domain: Domain, keys: Keys) -> list[Any]:
    if spec.dtype == "string" and keys.words:
        return [*_some(keys.words), *([] if keys.strict else SENTENCES[:2])]
    if kind(spec.dtype) == "integer" and keys.numbers:
        bounds, limit = np.iinfo(spec.dtype), domain.limit
        others = [] if keys.strict else [max(keys.numbers) + 1, min(keys.numbers) - 1]
        least, most = (int(bounds.min), int(bounds.max)) if limit is None else (0, min(limit - 1, int(bounds.max)))
        return [number for number in (*_some(keys.numbers), *others) if least <= number <= most]
    return []


def _some(keys: set[Any]) -> list[Any]:
    """Return the keys in order, or as many of them as are kept, from all over."""
    ordered = sorted(keys)
    return ordered[:: -(-len(ordered) // _MOST_KEYS)]


def onnx_keys(graph: onnx.GraphProto) -> dict[str, Keys]:
    """Return the keys of the label encoders, category mappers and one-hots that each input of the graph goes into."""
    stored = {tensor.name for tensor in graph.initializer}
    origins: dict[str, set[str]] = {value.name: {value.name} for value in graph.input if value.name not in stored}
    found: defaultdict[str, Keys] = defaultdict(Keys)
    for node in graph.node:
        reached = set().union(*(origins.get(name, ()) for name in node.input))
        if node.op_type in _MOVES:
            origins.update((output, reached) for output in node.output)
        known = _known(node)
        for name in reached if known else ():
            found[name].add(known)
            found[name].strict |= _is_strict(node)
    return dict(found)


def _known(node: onnx.NodeProto) -> list[Any]:
    import onnx

    if node.op_type not in ("LabelEncoder", "CategoryMapper", "OneHotEncoder"):
        return []
    keys: list[Any] = []
    for attribute in node.attribute:
        if attribute.name in _ATTRIBUTES:
            value = onnx.helper.get_attribute_value(attribute)
            array: Array | None = onnx.numpy_helper.to_array(value) if attribute.name == "keys_tensor" else None
            keys += list(value) if array is None else array.ravel().tolist()
    return keys


def _is_strict(node: onnx.NodeProto) -> bool:
    return node.op_type == "OneHotEncoder" and any(a.name == "zeros" and a.i == 0 for a in node.attribute)
