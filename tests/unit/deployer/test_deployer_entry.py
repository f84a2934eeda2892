from __future__ import annotations

import pytest

from deployer import entry_spec
from schemas.descriptor import Format, KnownBy, ModelDescriptor, TensorSpec
from schemas.errors import Unsupported
from schemas.evidence import BatchProof, ParityReport, ReferenceCase
from schemas.precision import Precision
from schemas.target import DEFAULT_TOLERANCES, TargetProfile

TARGET = TargetProfile()


def tensor(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec.model_validate({"name": name, "dtype": dtype, "shape": shape, "known_by": KnownBy.PROBE})


def proof(
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    *,
    holds: bool = True,
    sizes: tuple[int, ...] = (1, 8),
) -> ParityReport:
    return ParityReport(
        passed=True,
        reason="All outputs agree.",
        precision=Precision.FP32,
        tolerance=DEFAULT_TOLERANCES[Precision.FP32],
        outputs=(),
        cases=(ReferenceCase(id="b2", source="random", axes={"batch": 2, "sequence": 11}, rows=2),),
        real_samples=False,
        batching=BatchProof(holds=holds, reason="It was tried.", sizes=sizes),
        inputs=inputs,
        served_outputs=outputs,
    )


def described(**facts: object) -> ModelDescriptor:
    return ModelDescriptor.model_validate(
        {"artifact_sha256": "a" * 64, "format": Format.ONNX, "size_bytes": 1, **facts}
    )


def test_a_proven_batch_is_served_up_to_the_size_that_was_proven() -> None:
    report = proof((tensor("x", "batch", 4),), (tensor("y", "batch", 3),))
    spec = entry_spec("m", 1, report, described(), TargetProfile(batch_sizes=(1, 64)))
    assert spec.max_batch_size == 8
    assert spec.example_axes == {"batch": 2, "sequence": 11}


def test_an_unproven_batch_is_not_served() -> None:
    report = proof((tensor("x", "batch", 4),), (tensor("y", "batch", 3),), holds=False)
    assert entry_spec("m", 1, report, described(), TARGET).max_batch_size == 0


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ((tensor("x", 4, 2),), (tensor("y", 4, 2),)),
        ((tensor("x", "batch", 2),), (tensor("y", "batch", 2), tensor("loss", 1))),
        ((tensor("x", "batch", 2), tensor("step", 1)), (tensor("y", "batch", 2),)),
    ],
)
def test_a_tensor_without_the_batch_axis_turns_batching_off(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> None:
    assert entry_spec("m", 1, proof(inputs, outputs), described(), TARGET).max_batch_size == 0


def test_a_single_size_of_one_proves_no_batching() -> None:
    report = proof((tensor("x", "batch", 4),), (tensor("y", "batch", 3),), sizes=(1,))
    assert entry_spec("m", 1, report, described(), TARGET).max_batch_size == 0


def test_labels_name_the_output_that_has_as_many_places() -> None:
    outputs = (tensor("hidden", "batch", 7), tensor("label", "batch", 3, dtype="int64"), tensor("scores", "batch", 3))
    spec = entry_spec("m", 1, proof((tensor("x", "batch", 4),), outputs), described(labels=("a", "b", "c")), TARGET)
    assert (spec.labels_output, spec.labels) == ("scores", ("a", "b", "c"))
    spec = entry_spec("m", 1, proof((tensor("x", "batch", 4),), outputs), described(labels=("a", "b")), TARGET)
    assert (spec.labels_output, spec.labels) == (None, ())


def test_a_number_without_any_axis_cannot_be_served_and_says_so() -> None:
    report = proof((tensor("x", "batch", 4),), (tensor("loss"),))
    with pytest.raises(Unsupported, match="'loss' is a single number"):
        entry_spec("m", 1, report, described(), TARGET)


def test_an_empty_axis_cannot_be_served_and_says_so() -> None:
    report = proof((tensor("x", "batch", 4),), (tensor("y", "batch", 0),))
    with pytest.raises(Unsupported, match="axis of size 0"):
        entry_spec("m", 1, report, described(), TARGET)
