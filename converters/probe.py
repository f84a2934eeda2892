"""Probe: complete a descriptor by running the model in its own runtime."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from typing import Any

import numpy as np

from converters.axes import Guess, Signature, find
from converters.batching import ROWS_AT_ONCE
from converters.domain import Domain
from converters.runners import Runner, descriptor_of, load_original
from converters.sampling import ROWS_AXIS, random_feeds, sidecar_samples, usual_size
from schemas.descriptor import BATCH_AXIS, Dim, Format, KnownBy, ModelDescriptor, ProbeReport, TensorSpec
from schemas.errors import ModelFailed, NeedsInput, Unsupported
from schemas.step_io import StepContext, StepOutcome
from schemas.step_options import ProbeOptions

_TRIED_KEPT = 40
_USUAL_IMAGE = 64
_TENSORFLOW = (Format.KERAS, Format.SAVED_MODEL, Format.TFLITE)
_TABULAR = (Format.SKLEARN, Format.SKOPS, Format.XGBOOST, Format.LIGHTGBM, Format.CATBOOST)


def probe(context: StepContext) -> StepOutcome:
    """Find out by running what the model takes and gives, and return the completed descriptor.

    Raises NeedsInput, with the sidecar to write, when no input that was tried runs; ModelFailed when the model does
    not load, or does not run on what its own header or its sidecar declares.
    """
    options: ProbeOptions = context.options
    context.progress(0.05, "loading the model")
    runner = load_original(context)
    domains = dict(runner.domains)
    tried: list[str] = []
    failure: ModelFailed | None = None
    for number, guess in enumerate(_guesses(context, runner)):
        if number >= options.max_attempts:
            tried.append(f"stopped after {number} attempts")
            break
        context.progress(0.1 + 0.7 * number / options.max_attempts, f"trying {guess}"[:200])
        try:
            signature = find(runner.run, guess, context.request.seed, domains)
        except ModelFailed as error:
            failure = error
            tried.append(f"{guess}: {error.args[0]}"[:300])
            continue
        tried += [f"{guess}: runs", *signature.tried]
        _enlarge(runner, signature, domains)
        context.progress(0.9, "the model runs")
        descriptor = _completed(context, runner, signature)
        return StepOutcome(report=ProbeReport(descriptor=descriptor, tried=_kept(tried)))
    raise _unanswered(context, runner, failure, tried)


def _guesses(context: StepContext, runner: Runner) -> Iterator[Guess]:
    """Yield what to try, the surest first. A sidecar's inputs are the only ones tried where there are some."""
    descriptor = descriptor_of(context)
    declared = _from_sidecar(context, runner)
    if declared:
        yield from declared
        return
    match descriptor.format:
        case Format.ONNX | Format.OPENVINO:
            from converters.probe_onnx import onnx_guesses

            yield from onnx_guesses(runner.inputs)
        case table if table in _TABULAR:
            yield Guess(runner.inputs, {BATCH_AXIS: 2})
        case Format.KERAS | Format.SAVED_MODEL | Format.TFLITE:
            from converters.probe_tensorflow import tensorflow_guesses

            yield from tensorflow_guesses(runner.inputs)
        case _ if _of_transformers(runner):
            from converters.probe_huggingface import huggingface_guesses

            yield from huggingface_guesses(context, runner)
        case _:
            from converters.probe_torch import torch_guesses

            yield from torch_guesses(runner)


def _of_transformers(runner: Runner) -> bool:
    """Whether the original is one of transformers' models, from a folder or by name."""
    from converters.library_module import is_transformers

    source = getattr(runner, "source", None)
    return source is not None and is_transformers(getattr(source.inner, "transformer", source.inner))


def _enlarge(runner: Runner, signature: Signature, domains: dict[str, Domain]) -> None:
    """Raise the example size of an image model that takes any size: the first small one that ran is no usual image."""
    axes = [axis for axis in ("height", "width") if signature.sizes.get(axis, _USUAL_IMAGE) < _USUAL_IMAGE]
    if len(axes) < 2:
        return
    sizes = {**signature.sizes, **dict.fromkeys(axes, _USUAL_IMAGE)}
    try:
        runner.run(random_feeds(signature.inputs, sizes, np.random.default_rng(0), domains))
    except ModelFailed as error:
        signature.tried.append(f"height, width = {_USUAL_IMAGE}: {error.args[0]}"[:300])
    else:
        signature.tried.append(f"height, width = {_USUAL_IMAGE}: runs")
        signature.sizes.update(sizes)


def _from_sidecar(context: StepContext, runner: Runner) -> list[Guess]:
    """Return guesses from the sidecar's inputs, else from the shapes of its samples."""
    sidecar, descriptor = context.request.sidecar, descriptor_of(context)
    if sidecar is None or descriptor.format in (Format.SKLEARN, Format.SKOPS):
        return []
    if descriptor.format is Format.ONNX and not sidecar.inputs:
        from converters.probe_onnx import sampled_guesses

        specs = runner.inputs
        return list(sampled_guesses(specs, sidecar_samples(context, specs, max_rows=ROWS_AT_ONCE)[0]))
    samples, _ = sidecar_samples(context, (), max_rows=2)
    if sidecar.inputs:
        header = {spec.name: spec for spec in runner.inputs if spec.known_by is KnownBy.HEADER}
        specs = tuple(
            TensorSpec(
                name=item.name,
                dtype=header[item.name].dtype if item.name in header else item.dtype,
                shape=item.shape,
                known_by=KnownBy.SIDECAR,
            )
            for item in sidecar.inputs
        )
        return _sized(specs, samples)
    names = _input_names(runner)
    if not names or not samples or not set(names) <= set(samples):
        return []
    known = {spec.name: spec.dtype for spec in runner.inputs}
    specs = tuple(
        TensorSpec(
            name=name,
            dtype=known.get(name) or _sample_dtype(samples[name]),
            shape=(BATCH_AXIS, *samples[name].shape[1:]),
            known_by=KnownBy.SIDECAR,
        )
        for name in names
    )
    return _sized(specs, samples)


def _sample_dtype(array: Any) -> Any:
    from converters.arrays import dtype_name

    # Numpy's own default is float64, which no weight here is; what a person saved without a thought becomes float32.
    name = dtype_name(array)
    return "float32" if name == "float64" else name


def _sized(specs: tuple[TensorSpec, ...], samples: dict[str, Any]) -> list[Guess]:
    sizes: dict[str, int] = {}
    for spec in specs:
        array = samples.get(spec.name)
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str) and dim not in sizes:
                seen = array.shape[axis] if axis and array is not None and array.ndim == len(spec.shape) else None
                sizes[dim] = seen or (2 if axis == 0 else usual_size(dim))
    guesses = [Guess(specs, sizes)]
    leading = {spec.shape[0] for spec in specs if spec.shape and isinstance(spec.shape[0], str)}
    if leading:
        # A model that only takes one row at a time.
        guesses.append(Guess(specs, {**sizes, **dict.fromkeys((str(axis) for axis in leading), 1)}))
    return guesses


def _input_names(runner: Runner) -> tuple[str, ...]:
    source = getattr(runner, "source", None)
    return tuple(source.input_names) if source is not None else tuple(spec.name for spec in runner.inputs)


def _completed(context: StepContext, runner: Runner, signature: Signature) -> ModelDescriptor:
    descriptor, sidecar = descriptor_of(context), context.request.sidecar
    known_by = dict(descriptor.known_by)
    facts: dict[str, Any] = {
        "inputs": tuple(_surest(spec) for spec in signature.inputs),
        "outputs": signature.outputs,
        "example_axes": signature.sizes,
    }
    known_by.update({"inputs": KnownBy.PROBE, "outputs": KnownBy.PROBE, "example_axes": KnownBy.PROBE})

    def learn(field: str, value: Any, how: KnownBy = KnownBy.PROBE) -> None:
        if value and not getattr(descriptor, field):
            facts[field], known_by[field] = value, how

    if sidecar is not None:
        learn("labels", sidecar.labels, KnownBy.SIDECAR)
        learn("task", sidecar.task, KnownBy.SIDECAR)
    if runner.runtime == "sklearn":
        from converters.probe_sklearn import estimator_facts

        for field, value in estimator_facts(runner).items():
            if field not in facts:
                learn(field, value)
    if runner.runtime == "torch":
        from converters.flops import torch_work
        from converters.probe_torch import module_facts

        for field, value in module_facts(runner).items():
            learn(field, value)
        sizes = {**signature.sizes, **({BATCH_AXIS: 1} if BATCH_AXIS in signature.sizes else {})}
        row = random_feeds(signature.inputs, sizes, np.random.default_rng(context.request.seed), dict(runner.domains))
        for field, value in torch_work(runner, row, sizes.get(ROWS_AXIS, 1)).items():
            if getattr(descriptor, field) in (None, {}):  # no matrices at all is a fact, too
                facts[field], known_by[field] = value, KnownBy.PROBE
    if runner.runtime == "tensorflow":
        from converters.probe_tensorflow import model_facts as tensorflow_facts
        from converters.tensorflow_runner import TensorflowRunner

        assert isinstance(runner, TensorflowRunner)
        sizes = {**signature.sizes, **({BATCH_AXIS: 1} if BATCH_AXIS in signature.sizes else {})}
        for field, value in tensorflow_facts(runner, signature.inputs, sizes).items():
            learn(field, value)
    # The process has loaded the model and run it, so what it took at most is what running takes.
    learn("memory_bytes", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    facts["known_by"] = known_by
    return descriptor.model_copy(update=facts)


def _surest(spec: TensorSpec) -> TensorSpec:
    return spec.model_copy(update={"known_by": KnownBy.PROBE}) if spec.known_by is KnownBy.GUESS else spec


def _unanswered(context: StepContext, runner: Runner, failure: ModelFailed | None, tried: list[str]) -> Exception:
    descriptor, sidecar = descriptor_of(context), context.request.sidecar
    why = str(failure.args[0]) if failure else "Nothing could be tried."
    if isinstance(failure, Unsupported):
        return failure
    if sidecar is not None and sidecar.inputs:
        return ModelFailed(
            f"The model does not run on the inputs that its sidecar declares. {why}",
            hint="Check names, order, dtypes and shapes under 'inputs' in the sidecar.",
        )
    if descriptor.format in (Format.ONNX, Format.OPENVINO, *_TENSORFLOW, *_TABULAR):
        return ModelFailed(
            f"The model loads, but does not run. {why}",
            hint="Write one set of real inputs into an .npz beside the model, one array for each input by name, and "
            "name it as 'samples' in the sidecar; where a dynamic axis takes only some sizes, declare it there.",
        )
    names = _input_names(runner)
    asked = f"input {names[0]!r}" if len(names) == 1 else "each of the inputs " + ", ".join(repr(n) for n in names)
    lines = "\n".join(f"- {{name: {name}, {_example(tried, name)}}}" for name in names)
    told = "none of the shapes that were tried runs" if tried else "nothing in it tells"
    return NeedsInput(
        f"What shape does {asked or 'the input'} take?",
        hint=f"The file does not say, and {told}. Write it into "
        f"{'modelium.yaml inside the folder' if context.input('model').is_dir() else '<filename>.modelium.yaml'}, "
        f"with your own numbers:\ninputs:\n{lines}",
        attempts=len(tried),
        last_refusal=why[:500],
    )


def _example(tried: list[str], name: str) -> str:
    """Return the dtype, and a shape of the rank, that were tried last, as an example to change."""
    dims: list[Dim] = [BATCH_AXIS, 3, 224, 224]
    dtype = "float32"
    for line in reversed(tried):
        found = re.search(rf"(?:^|, ){re.escape(name)} (\w+)\[([^\]]*)\]", line)
        if found:
            dtype, rank = found[1], found[2].count(",") + 1
            examples: dict[int, list[Dim]] = {1: [BATCH_AXIS], 2: [BATCH_AXIS, 64], 3: [BATCH_AXIS, "sequence", 64]}
            dims = examples.get(rank, dims)
            break
    return f"dtype: {dtype}, shape: [{', '.join(str(dim) for dim in dims)}]"


def _kept(tried: list[str]) -> tuple[str, ...]:
    return tuple(tried if len(tried) <= _TRIED_KEPT else [*tried[:5], "...", *tried[-_TRIED_KEPT + 6 :]])
