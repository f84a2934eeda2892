"""A pickle of more than an estimator: the one that it holds among names, numbers and notes, where there is one."""

from __future__ import annotations

from collections.abc import Iterator

from analyzer.pickle_values import Entries, Global, Instance, Value

_LIBRARIES = frozenset({"sklearn", "xgboost", "lightgbm", "catboost"})
_NOT_CONVERTED = frozenset({"LabelEncoder", "Booster", "Bunch"})
"""What names classes, is loaded by a library of its own, or is a dict; in the libraries above."""
_DEPTH = 4


def only_estimator(root: Value) -> tuple[str, Instance] | None:
    """Return the one estimator in dicts, lists and tuples, with where it is; None when there is none, or are several.

    A label encoder counts for none: a model's answers are what it encodes. What else a person does before or after
    with numbers or names in the pickle, no file tells, and a note says so.
    """
    found = list(_estimators(root, "", _DEPTH))
    return found[0] if len(found) == 1 else None


def _estimators(value: Value, place: str, depth: int) -> Iterator[tuple[str, Instance]]:
    if isinstance(value, Instance):
        kind = value.kind
        if isinstance(kind, Global) and kind.module.partition(".")[0] in _LIBRARIES and kind.name not in _NOT_CONVERTED:
            yield place, value
    elif depth and isinstance(value, Entries):
        for key, inner in value.pairs:
            yield from _estimators(inner, f"{place}[{key!r}]" if isinstance(key, str | int) else place, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for number, inner in enumerate(value[:1000]):
            yield from _estimators(inner, f"{place}[{number}]", depth - 1)
