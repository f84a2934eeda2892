"""What a fitted scikit-learn estimator tells about itself."""

from __future__ import annotations

from typing import Any

from converters.flops_sklearn import estimator_work
from converters.sklearn_runner import SklearnRunner, quiet
from converters.sklearn_steps import steps_of


def estimator_facts(runner: object) -> dict[str, Any]:
    """Return descriptor fields: architecture, task and the class names, as far as the estimator has them."""
    assert isinstance(runner, SklearnRunner)
    from sklearn.base import is_classifier, is_clusterer, is_regressor

    estimator = runner.estimator
    facts: dict[str, Any] = {"architecture": type(steps_of(estimator)[-1]).__name__}
    facts.update(estimator_work(steps_of(estimator)))
    with quiet():
        if is_classifier(estimator):
            facts["task"] = "tabular-classification"
            classes = getattr(estimator, "classes_", None)
            if classes is not None and getattr(classes, "ndim", 0) == 1 and len(classes) <= 100_000:
                facts["labels"] = tuple(str(value) for value in classes)
        elif is_regressor(estimator):
            facts["task"] = "tabular-regression"
        elif is_clusterer(estimator):
            facts["task"] = "tabular-clustering"
    return facts
