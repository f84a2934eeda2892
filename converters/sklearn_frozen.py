"""FrozenEstimator and SelfTrainingClassifier: the estimator inside, which skl2onnx does not look at."""

from __future__ import annotations

from typing import Any

from converters.sklearn_stacking import write_steps
from converters.sklearn_steps import thawed


def register() -> None:
    """Make skl2onnx use this; again and again does no harm."""
    from skl2onnx import update_registered_converter
    from sklearn.frozen import FrozenEstimator
    from sklearn.semi_supervised import SelfTrainingClassifier

    for cls in (FrozenEstimator, SelfTrainingClassifier):
        update_registered_converter(
            cls, f"Modelium{cls.__name__}", _shape, _convert, parser=_parse, overwrite=True,
            options={"zipmap": [True, False, "columns"], "raw_scores": [True, False], "nocl": [True, False],
                     "output_class_labels": [False, True]},
        )  # fmt: skip


def _parse(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
    from skl2onnx._parse import _parse_sklearn

    inner = thawed(model)
    asked = scope.get_options(model, fail=False)
    if asked:
        scope.add_options(id(inner), asked)
    return _parse_sklearn(scope, inner, inputs, custom_parsers=custom_parsers)


def _shape(operator: Any) -> None:
    """Whoever declared the operator gave its outputs their types."""


def _convert(scope: Any, operator: Any, container: Any) -> None:
    write_steps(scope, operator, container, [thawed(operator.raw_operator)])
