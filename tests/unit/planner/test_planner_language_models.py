"""Which models go to a server of their own as they are, and what a person's own choice changes."""

from __future__ import annotations

import pytest

from planner.language_models import plan_as_it_is, server_of, why_unmeasured
from schemas.descriptor import Format, ModelDescriptor
from schemas.errors import Unsupported
from schemas.plan import ORIGINAL
from schemas.precision import Precision
from schemas.runtime import Runtime
from schemas.target import TargetProfile


def descriptor(format_: Format, task: str | None = "text-generation", **more: object) -> ModelDescriptor:
    return ModelDescriptor(artifact_sha256="0" * 64, format=format_, size_bytes=10, task=task, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("format_", "task", "server"),
    [
        (Format.GGUF, "text-generation", Runtime.LLAMA_CPP),
        (Format.GGUF, "feature-extraction", Runtime.LLAMA_CPP),
        (Format.HUGGINGFACE, "text-generation", Runtime.VLLM),
        (Format.HUGGINGFACE, "image-text-to-text", Runtime.VLLM),
        (Format.HUGGINGFACE, "text2text-generation", None),
        (Format.HUGGINGFACE, "feature-extraction", None),
        (Format.ONNX, "text-generation", None),
    ],
)
def test_a_model_goes_where_its_kind_is_served_best(format_: Format, task: str, server: Runtime | None) -> None:
    assert server_of(descriptor(format_, task), TargetProfile(), chosen=False) is server


def test_a_named_triton_runtime_converts_a_language_model() -> None:
    target = TargetProfile(runtime=Runtime.TRITON_ONNXRUNTIME)
    assert server_of(descriptor(Format.HUGGINGFACE), target, chosen=True) is None


def test_a_named_vllm_takes_any_folder() -> None:
    target = TargetProfile(runtime=Runtime.VLLM)
    assert server_of(descriptor(Format.HUGGINGFACE, "feature-extraction"), target, chosen=True) is Runtime.VLLM


@pytest.mark.parametrize(
    ("format_", "runtime", "what_to_do"),
    [
        (Format.GGUF, Runtime.TRITON, "llama-cpp"),
        (Format.HUGGINGFACE, Runtime.LLAMA_CPP, "convert_hf_to_gguf"),
        (Format.ONNX, Runtime.VLLM, "save_pretrained"),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_to_do(
    format_: Format, runtime: Runtime, what_to_do: str
) -> None:
    with pytest.raises(Unsupported) as refused:
        server_of(descriptor(format_), TargetProfile(runtime=runtime), chosen=True)
    assert what_to_do in refused.value.hint


@pytest.mark.parametrize(
    ("dtypes", "precision"),
    [
        ({"bfloat16": 100, "float32": 3}, Precision.BF16),
        ({"q4_k": 100, "float32": 3}, Precision.INT4),
        ({"q8_0": 100}, Precision.INT8),
        ({}, Precision.FP32),
    ],
)
def test_the_plan_is_the_original_in_its_own_precision(dtypes: dict[str, int], precision: Precision) -> None:
    plan = plan_as_it_is(descriptor(Format.GGUF, parameter_dtypes=dtypes), TargetProfile(), Runtime.LLAMA_CPP)
    (candidate,) = plan.candidates
    assert (candidate.id, candidate.steps, candidate.precision) == (ORIGINAL, (), precision)
    assert plan.target.runtime is Runtime.LLAMA_CPP


@pytest.mark.parametrize("server", [Runtime.VLLM, Runtime.LLAMA_CPP])
def test_the_reason_is_one_sentence_that_says_what_was_not_done(server: Runtime) -> None:
    reason = why_unmeasured(server)
    assert reason.count(".") - reason.count("llama.cpp") == 1 and "not" not in reason[:10] and "measured" in reason
