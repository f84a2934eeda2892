"""YAML as plain as JSON: no anchors, aliases, tags, duplicate keys, or surprises such as ``no`` meaning false."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from schemas.errors import InvalidDocument

MAX_DEPTH = 24


def load(text: str) -> Any:
    """Return the one document in ``text`` as JSON values. Raises InvalidDocument with the line and column."""
    try:
        loader = _StrictLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise InvalidDocument(
            f"It is not valid YAML{where}: {error.problem or error.context}.", hint="", pointer=""
        ) from None
    except yaml.YAMLError as error:
        raise InvalidDocument(f"It is not valid YAML: {str(error).splitlines()[0]}.", pointer="") from None


class _StrictLoader(yaml.SafeLoader):
    """The safe loader with YAML 1.2's core types only."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as its base declares it

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _at(event, "anchors and aliases are not allowed")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise _at(event, f"tags such as {tag[:40]} are not allowed")
        if self._depth >= MAX_DEPTH:
            raise _at(event, f"it is nested more than {MAX_DEPTH} levels deep")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise _at(key_node, "keys must be text")
            if key_node.value in mapping:
                raise _at(key_node, f"the key {key_node.value[:80]!r} stands there twice")
            mapping[key_node.value] = self.construct_object(value_node, deep=True)
        return mapping

    def construct_yaml_int(self, node: Any) -> int:
        if len(node.value) > 40:
            raise _at(node, "the number has more than 40 digits")
        return int(node.value)

    def construct_yaml_float(self, node: Any) -> float:
        value = float(node.value)
        if not math.isfinite(value):
            raise _at(node, "the number is too large")
        return value

    def construct_yaml_bool(self, node: Any) -> bool:
        return bool(node.value.lower() == "true")


def _at(place: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
):
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_yaml_int)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _StrictLoader.construct_yaml_float)
_StrictLoader.add_constructor("tag:yaml.org,2002:bool", _StrictLoader.construct_yaml_bool)
