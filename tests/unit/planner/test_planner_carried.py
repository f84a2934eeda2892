"""What Triton has no shape for is not offered as it is; halves without weights are halves."""

from __future__ import annotations

import pytest

from planner import rules
from planner.shape_of_work import not_carried, own_precision
from schemas.descriptor import Dim, DType, Format, KnownBy, ModelDescriptor, TensorSpec
from schemas.precision import Precision
from schemas.target import TargetProfile


def _onnx(inputs: dict[str, tuple[DType, tuple[Dim, ...]]], output: tuple[Dim, ...] = ("batch", 3)) -> ModelDescriptor:
    specs = tuple(
        TensorSpec(name=name, dtype=dtype, shape=shape, known_by=KnownBy.PROBE)
        for name, (dtype, shape) in inputs.items()
    )
    given = TensorSpec(name="y", dtype=specs[0].dtype, shape=output, known_by=KnownBy.PROBE)
    return ModelDescriptor(
        artifact_sha256="0" * 64, format=Format.ONNX, size_bytes=10, opset=17, inputs=specs, outputs=(given,)
    )


@pytest.mark.parametrize(
    ("inputs", "output", "why"),
    [
        ({"x": ("float32", ("batch", 3)), "low": ("float32", ())}, ("batch", 3), "its input 'low' is a scalar"),
        ({"x": ("float32", ("batch", 3))}, (), "its output 'y' is a scalar"),
        ({"x": ("float32", (2, 3)), "e": ("float32", (0, 3))}, (2, 3), "its input 'e' has an axis of size 0"),
    ],
)
def test_an_original_that_triton_has_no_shape_for_is_left_out_with_the_reason(
    inputs: dict[str, tuple[DType, tuple[Dim, ...]]], output: tuple[Dim, ...], why: str
) -> None:
    plan = rules.plan(_onnx(inputs, output), TargetProfile())
    assert not_carried(_onnx(inputs, output)) == why
    assert "original" not in [candidate.id for candidate in plan.candidates]
    assert "onnx-optimized" in [candidate.id for candidate in plan.candidates]
    assert why in plan.reason


def test_an_original_of_a_type_that_is_served_as_another_is_left_out_with_the_type() -> None:
    descriptor = _onnx({"x": ("float16", (2, 3))}).model_copy(update={"types_in_file": {"y": "float8_e5m2"}})
    assert not_carried(descriptor) == "its output 'y' is of type float8_e5m2"
    assert [candidate.id for candidate in rules.plan(descriptor, TargetProfile()).candidates] == ["onnx-optimized"]


def test_an_original_with_axes_of_its_own_stays() -> None:
    descriptor = _onnx({"x": ("float32", ("batch", 3))})
    assert not_carried(descriptor) == ""
    assert rules.plan(descriptor, TargetProfile()).candidates[0].id == "original"


@pytest.mark.parametrize(
    ("dtypes", "precision"),
    [(("float16",), Precision.FP16), (("float32",), Precision.FP32), (("float16", "float32"), Precision.FP32),
     (("int64",), Precision.FP32)],
)  # fmt: skip
def test_without_weights_the_inputs_say_the_precision(dtypes: tuple[DType, ...], precision: Precision) -> None:
    descriptor = _onnx({f"x{number}": (dtype, ("batch", 3)) for number, dtype in enumerate(dtypes)})
    assert own_precision(descriptor) is precision


def test_a_list_of_maps_is_not_carried() -> None:
    zipped = _onnx({"x": ("float32", (2, 3))}, (2, 3)).model_copy(update={"operators": {"ai.onnx.ml::ZipMap": 1}})
    assert "ZipMap" in not_carried(zipped)
