"""What a scikit-learn estimator is made of: its steps, and the vectorisers that it begins with."""

from __future__ import annotations

from typing import Any


def steps_of(estimator: Any) -> list[Any]:
    """Return the estimators of a pipeline in order, nested pipelines and searches opened; else ``[estimator]``."""
    inner = getattr(estimator, "best_estimator_", estimator)
    steps = getattr(inner, "steps", None)
    if steps is None:
        return [inner]
    return [part for _, step in steps if step is not None and step != "passthrough" for part in steps_of(step)]


def vectorisers(part: Any) -> list[Any]:
    """Return the vectorisers that ``part`` is: itself, or those that all parts of a FeatureUnion begin with."""
    if hasattr(part, "build_analyzer"):
        return [part]
    beside = [transformer for _, transformer in getattr(part, "transformer_list", ())]
    found = [vectorisers(steps_of(each)[0]) for each in beside if each is not None and not isinstance(each, str)]
    return [each for some in found for each in some] if found and all(found) else []


def is_vectoriser(part: Any) -> bool:
    """Whether ``part`` makes features of texts alone: a vectoriser, or a union of such."""
    return bool(vectorisers(part))
