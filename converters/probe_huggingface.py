"""Guesses for a Hugging Face folder: its config and its model's own input names tell shapes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters.axes import Guess
from converters.huggingface_inputs import CHOICES_AXIS, DECODER_AXIS, FRAMES_AXIS, LENGTH_AXIS, input_spec
from converters.runners import Runner
from converters.sampling import SEQUENCE_AXIS, TRACE_BATCH, random_feeds
from converters.torch_runner import TorchRunner, own_config, read_config
from schemas.descriptor import TensorSpec
from schemas.errors import ModelFailed, ModeliumError, Unsupported
from schemas.step_io import StepContext

_AUDIO_SAMPLES = 16_000
"""One second of speech at the rate that every speech model here takes."""
_AUDIO_FRAMES = 100
"""The same second as a spectrogram, one frame every ten milliseconds."""


def huggingface_guesses(context: StepContext, runner: Runner) -> Iterator[Guess]:
    """Yield the inputs of one forward pass. Raises Unsupported for an input whose shape no config tells."""
    if not isinstance(runner, TorchRunner):
        raise ModeliumError("A Hugging Face folder was loaded in another runtime than torch.")
    folder = context.input("model")
    config = {**_preprocessor(folder), **(read_config(folder) or own_config(runner.source.inner))}
    specs = tuple(input_spec(name, config) for name in runner.source.input_names)
    if {"input_ids", "pixel_values"} <= set(runner.source.input_names) and "vision_config" in config:
        # Every text is compared with every image, so there may be more of the one than of the other.
        specs = tuple(
            spec.model_copy(update={"shape": ("images" if spec.name == "pixel_values" else "texts", *spec.shape[1:])})
            for spec in specs
        )
    guesses = list(_sizes(specs, config))
    yield from guesses
    raise _refused(runner, guesses[0], config)


def _sizes(specs: tuple[TensorSpec, ...], config: Mapping[str, Any]) -> Iterator[Guess]:
    rows = {str(spec.shape[0]) for spec in specs}
    longest = config.get("max_position_embeddings")
    length = min(16, longest) if isinstance(longest, int) and longest > 0 else 16
    for sequence in (length, 64):
        sizes = {
            SEQUENCE_AXIS: sequence,
            DECODER_AXIS: min(sequence, 12),
            LENGTH_AXIS: _AUDIO_SAMPLES,
            FRAMES_AXIS: _AUDIO_FRAMES,
            CHOICES_AXIS: 3,
        }
        used = {dim for spec in specs for dim in spec.shape}
        for batch in (TRACE_BATCH, 1):
            yield Guess(specs, {**dict.fromkeys(rows, batch), **{a: n for a, n in sizes.items() if a in used}})


def _refused(runner: TorchRunner, guess: Guess, config: Mapping[str, Any]) -> Unsupported:
    """Return why the model runs on nothing that its config tells; asking a person for shapes would not help."""
    names = ", ".join(spec.name for spec in guess.inputs)
    why = "it runs on some sizes and not on others"
    try:
        runner.run(random_feeds(guess.inputs, guess.sizes, np.random.default_rng(0), runner.domains))
    except ModelFailed as error:
        why = str(error.args[0]).removeprefix("The original could not run: ").rstrip(".")
    hint = "Declare its inputs in modelium.yaml inside the folder, under 'inputs', with a samples file of real ones."
    architecture = next(iter(config.get("architectures") or ()), "This model")
    return Unsupported(f"{architecture} does not run on {names} alone: {why}.", hint=hint)


def _preprocessor(folder: Path) -> dict[str, Any]:
    file = folder / "preprocessor_config.json"
    if not file.is_file() or file.stat().st_size > 1 << 20:
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
