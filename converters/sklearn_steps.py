"""What a scikit-learn estimator is made of: its steps, and the vectorisers that it begins with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def steps_of(estimator: Any) -> list[Any]:
    """Return the estimators of a pipeline in order, nested pipelines and searches opened; else ``[estimator]``."""
    inner = getattr(estimator, "best_estimator_", estimator)
    steps = getattr(inner, "steps", None)
    if steps is None:
        return [inner]
    return [part for _, step in steps if step is not None and step != "passthrough" for part in steps_of(step)]


def thawed(estimator: Any) -> Any:
    """Return the fitted estimator that answers for ``estimator``."""
    from sklearn.frozen import FrozenEstimator
    from sklearn.semi_supervised import SelfTrainingClassifier

    if isinstance(estimator, FrozenEstimator):
        return thawed(estimator.estimator)
    return thawed(estimator.estimator_) if isinstance(estimator, SelfTrainingClassifier) else estimator


def opened(estimator: Any) -> Any:
    """Return the estimator that a frozen one or a search stands for."""
    found = thawed(estimator)
    return opened(found.best_estimator_) if hasattr(found, "best_estimator_") else found


def inside(estimator: Any) -> list[Any]:
    """Return fitted estimators inside ``estimator`` that are given the very rows that it is given."""
    if hasattr(estimator, "estimators_features_") or type(estimator).__name__.endswith("Chain"):
        return []
    own = vars(estimator) if hasattr(estimator, "__dict__") else {}
    found = [own[name] for name in ("estimator_", "regressor_", "best_estimator_") if name in own]
    if thawed(estimator) is not estimator:
        found.append(thawed(estimator))
    members = own.get("estimators_")
    # numpy would make rows of the steps of pipelines in a list.
    flat = members.reshape(-1) if isinstance(members, np.ndarray) else members
    found += list(flat) if isinstance(flat, list | np.ndarray) else []
    found += [each.estimator for each in own.get("calibrated_classifiers_", ())]
    return [each for each in found if hasattr(each, "get_params")]


def leading(estimator: Any) -> Any:
    """Return the first estimator inside others that tells what their rows are; else ``estimator``.

    That is a pipeline, or trees that encode categories themselves.
    """
    if _tells(estimator):
        return estimator
    return next((found for each in inside(estimator) if _tells(found := leading(each))), estimator)


def _tells(estimator: Any) -> bool:
    return hasattr(estimator, "steps") or getattr(estimator, "_preprocessor", None) is not None


def everything(estimator: Any) -> Iterator[Any]:
    """Yield the estimator and all that it is made of and that sees columns of its rows."""
    yield estimator
    parts = [step for _, step in getattr(estimator, "steps", ())]
    parts += [transformer for _, transformer, *_ in getattr(estimator, "transformers_", ())]
    parts += [transformer for _, transformer in getattr(estimator, "transformer_list", ())]
    for part in (*parts, *inside(estimator)):
        if part is not None and not isinstance(part, str):
            yield from everything(part)


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
