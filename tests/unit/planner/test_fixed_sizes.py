"""What is tried when no conversion of a model holds at any size."""

from __future__ import annotations

from planner.fixed_sizes import fixed_sizes
from schemas.descriptor import Format, KnownBy, ModelDescriptor, TensorSpec


def spec(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape, known_by=KnownBy.PROBE)


def described(*inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = (), **axes: int) -> ModelDescriptor:
    return ModelDescriptor(
        artifact_sha256="0" * 64,
        format=Format.HUGGINGFACE,
        size_bytes=1,
        inputs=inputs,
        outputs=outputs,
        example_axes=axes,
    )


def test_the_batch_stays_open_first_and_is_fixed_last() -> None:
    image = spec("image", "batch", 3, "height", "width")
    open_, shut = fixed_sizes(described(image, batch=2, height=32, width=24))
    assert [choice.inputs[0].shape for choice in open_] == [("batch", 3, 32, 24)]
    assert open_[0].example_axes == {"batch": 2}
    assert [choice.inputs[0].shape for choice in shut] == [(1, 3, 32, 24)]
    assert shut[0].example_axes == {}


def test_texts_get_a_useful_length_before_the_one_that_was_probed() -> None:
    outputs = (spec("hidden", "batch", "sequence", 8), spec("pooled", "batch", "pooled_1"))
    open_, shut = fixed_sizes(described(spec("input_ids", "batch", "sequence"), outputs=outputs, batch=2, sequence=16))
    assert [choice.inputs[0].shape for choice in open_] == [("batch", 128), ("batch", 16)]
    assert [spec.shape for spec in open_[0].outputs] == [("batch", 128, 8), ("batch", "pooled_1")]
    assert [choice.inputs[0].shape for choice in shut] == [(1, 128), (1, 16)]
    assert "sequence at 128" in open_[0].notes[-1]
    assert "sidecar" in open_[0].notes[-1]


def test_a_model_without_open_sizes_has_nothing_to_fix() -> None:
    assert fixed_sizes(described(spec("x", 1, 4))) == ()
    assert fixed_sizes(described(spec("x", "unknown", 4))) == ()
