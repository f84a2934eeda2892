"""Which models are served as they are, by a server of their own, and not converted: GGUF files and language models."""

from __future__ import annotations

from planner.words import bytes_in_words
from schemas.descriptor import Format, ModelDescriptor
from schemas.errors import Unsupported
from schemas.plan import ORIGINAL, Candidate, ConversionPlan
from schemas.precision import Precision
from schemas.runtime import Runtime
from schemas.target import TargetProfile

SERVERS = {Runtime.VLLM: "vLLM", Runtime.LLAMA_CPP: "llama.cpp"}
_GENERATES = ("text-generation", "image-text-to-text")
_PRECISIONS = {"float32": Precision.FP32, "float16": Precision.FP16, "bfloat16": Precision.BF16}
_FEW_BITS = ("q2", "q3", "q4", "iq1", "iq2", "iq3", "iq4", "tq", "mxfp4")


def server_of(descriptor: ModelDescriptor, target: TargetProfile, *, chosen: bool) -> Runtime | None:
    """Return the server that takes the model as it is; None when it is to be converted.

    ``chosen`` says that a person named the target's runtime, which then decides. Raises Unsupported where the model
    and that runtime do not go together.
    """
    runtime = target.runtime if chosen else None
    if descriptor.format is Format.GGUF:
        if runtime in (None, Runtime.LLAMA_CPP):
            return Runtime.LLAMA_CPP
        raise Unsupported(
            f"A GGUF file is served by llama.cpp, and the target asks for {target.runtime.value}.",
            hint="Take 'runtime' out of the sidecar's target or write llama-cpp there; or drop the Hugging Face folder "
            "that the file was made from.",
        )
    if runtime is Runtime.LLAMA_CPP:
        raise Unsupported(
            f"llama.cpp serves GGUF files, and this is {descriptor.format.value}.",
            hint="Convert it with llama.cpp's `convert_hf_to_gguf.py FOLDER` and drop the .gguf file.",
        )
    if descriptor.format is not Format.HUGGINGFACE:
        if runtime is Runtime.VLLM:
            raise Unsupported(
                f"vLLM serves Hugging Face folders, and this is {descriptor.format.value}.",
                hint="Drop the folder that save_pretrained wrote, with config.json and tokenizer.",
            )
        return None
    generates = runtime is Runtime.VLLM or (runtime is None and descriptor.task in _GENERATES)
    if generates and "adapter_config.json" in descriptor.files:
        raise Unsupported(
            "This folder holds an adapter to a language model, and vLLM is to serve models that are whole.",
            hint="Merge it and drop what that gives: `model.merge_and_unload().save_pretrained(FOLDER)`; or let vLLM "
            "put it on at run time: `vllm serve BASE --enable-lora --lora-modules NAME=FOLDER`.",
        )
    if generates:
        return Runtime.VLLM
    return None


def plan_as_it_is(descriptor: ModelDescriptor, target: TargetProfile, server: Runtime) -> ConversionPlan:
    """Return the plan whose one candidate is the original, for ``server``; nothing is run for it."""
    what = bytes_in_words(descriptor.parameter_bytes or descriptor.size_bytes)
    reason = (
        f"It generates token by token with a key-value cache, which {SERVERS[server]} is made for; an exported graph "
        f"would compute all tokens anew for each one. Its {what} of weights go there as they are."
    )
    return ConversionPlan(
        planner="rules",
        reason=f"{descriptor.architecture or 'The model'} is to be served by {SERVERS[server]}. It is not converted.",
        target=target.model_copy(update={"runtime": server}),
        candidates=(
            Candidate(
                id=ORIGINAL, format=descriptor.format, precision=_precision(descriptor), steps=(), reason=reason[:500]
            ),
        ),
    )


def why_unmeasured(server: Runtime) -> str:
    """Return the one sentence that a job ends with."""
    return (
        f"Served as it is by {SERVERS[server]}; it was neither converted nor measured here, because "
        f"{SERVERS[server]} is a server of its own that does not run on this machine."
    )


def _precision(descriptor: ModelDescriptor) -> Precision:
    """Return the precision of most weights: few bits count as int4, other quantised ones as int8."""
    most = max(descriptor.parameter_dtypes.items(), key=lambda item: item[1], default=("float32", 0))[0]
    if most in _PRECISIONS:
        return _PRECISIONS[most]
    return Precision.INT4 if most.startswith(_FEW_BITS) else Precision.INT8
