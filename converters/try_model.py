"""Try: one sample inference with a model as it is deployed."""

from __future__ import annotations

import time

import numpy as np

from converters.arrays import Array
from converters.batching import fixed_rows, row_count, take
from converters.runners import Runner, load_candidate, load_original
from converters.sampling import ROWS_AXIS, example_sizes, random_feeds, sentence_feeds, sidecar_samples
from schemas.descriptor import BATCH_AXIS, ModelDescriptor
from schemas.evidence import TryReport
from schemas.step_io import StepContext, StepOutcome
from schemas.step_options import TryOptions

_SHOWN = 8


def try_model(context: StepContext) -> StepOutcome:
    """Run the model once, on a person's samples where there are some, else on sentences or random values.

    Without a descriptor the model's own header says what it takes. Raises ModelFailed when it does not run.
    """
    options: TryOptions = context.options
    descriptor = context.request.descriptor
    model = context.input("model")
    runner: Runner
    if options.original and descriptor is not None:
        runner = load_original(context)
    else:
        runner = load_candidate(model, options.format, threads=context.request.threads)
    specs = runner.inputs
    known = {spec.name: spec for spec in descriptor.inputs} if descriptor is not None else {}
    # The descriptor's axis names say what an axis is; the graph's own may be anything.
    specs = tuple(
        known[spec.name] if spec.name in known and len(known[spec.name].shape) == len(spec.shape) else spec
        for spec in specs
    )
    samples, _ = sidecar_samples(context, specs, options.rows)
    feeds = samples
    rows = fixed_rows(specs) or options.rows
    if samples and row_count(samples) < rows:
        feeds = take(samples, np.arange(rows) % row_count(samples))
    if not feeds:
        texts = sentence_feeds(model, specs)
        feeds = take(texts[0], slice(0, rows)) if texts else {}
    if not feeds:
        described = (descriptor or _bare()).model_copy(update={"inputs": specs})
        sizes = example_sizes(described)
        sizes.update({axis: rows for axis in sizes if axis in (BATCH_AXIS, ROWS_AXIS)})
        feeds = random_feeds(specs, sizes, np.random.default_rng(context.request.seed), runner.domains)
    runner.run(feeds)
    start = time.perf_counter()
    outputs = runner.run(feeds)
    latency_ms = (time.perf_counter() - start) * 1000
    return StepOutcome(
        report=TryReport(
            inputs=specs,
            outputs={name: _first(array) for name, array in outputs.items()},
            shapes={name: tuple(int(n) for n in array.shape) for name, array in outputs.items()},
            latency_ms=latency_ms,
        )
    )


def _first(array: Array) -> list[float | int | str | bool | None]:
    values = array.reshape(-1)[:_SHOWN].tolist()
    return [
        None if isinstance(v, float) and not np.isfinite(v) else v[:200] if isinstance(v, str) else v for v in values
    ]


def _bare() -> ModelDescriptor:
    from schemas.descriptor import Format

    return ModelDescriptor(artifact_sha256="", format=Format.ONNX, size_bytes=0)
