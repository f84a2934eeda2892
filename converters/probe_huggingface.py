"""Guesses for a Hugging Face folder: its config and its model's own input names tell shapes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters.axes import Guess
from converters.runners import Runner
from converters.sampling import SEQUENCE_AXIS, TRACE_BATCH, random_feeds
from converters.torch_runner import TorchRunner, read_config
from schemas.descriptor import BATCH_AXIS, Dim, DType, KnownBy, TensorSpec
from schemas.errors import ModelFailed, ModeliumError, Unsupported
from schemas.step_io import StepContext

_LENGTH_AXIS = "length"
_CHOICES_AXIS = "choices"
_AUDIO_SAMPLES = 16_000
"""One second of speech at the rate that every speech model here takes."""


def huggingface_guesses(context: StepContext, runner: Runner) -> Iterator[Guess]:
    """Yield the inputs of one forward pass. Raises Unsupported for an input whose shape no config tells."""
    if not isinstance(runner, TorchRunner):
        raise ModeliumError("A Hugging Face folder was loaded in another runtime than torch.")
    folder = context.input("model")
    config = {**_preprocessor(folder), **read_config(folder)}
    specs = tuple(_spec(name, config) for name in runner.source.input_names)
    if {"input_ids", "pixel_values"} <= set(runner.source.input_names):
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
        sizes = {SEQUENCE_AXIS: sequence, _LENGTH_AXIS: _AUDIO_SAMPLES, _CHOICES_AXIS: 3}
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
    if config.get("is_encoder_decoder") and architecture.endswith("Model"):
        hint = (
            "An encoder and a decoder together need the decoder's inputs. Drop the encoder alone: "
            "model.get_encoder().save_pretrained(FOLDER)."
        )
    return Unsupported(f"{architecture} does not run on {names} alone: {why}.", hint=hint)


def _spec(name: str, config: Mapping[str, Any]) -> TensorSpec:
    shape: tuple[Dim, ...] = (BATCH_AXIS, SEQUENCE_AXIS)
    dtype: DType = "int64"
    if name in ("pixel_values", "images"):
        height, width = _image_size(config)
        dtype, shape = "float32", (BATCH_AXIS, int(config.get("num_channels") or 3), height, width)
    elif name == "input_values" and isinstance(config.get("max_length"), int) and "num_mel_bins" in config:
        # A spectrogram, as the Audio Spectrogram Transformer takes it, and not the sound itself.
        dtype, shape = "float32", (BATCH_AXIS, config["max_length"], int(config["num_mel_bins"]))
    elif name == "input_values":
        dtype, shape = "float32", (BATCH_AXIS, _LENGTH_AXIS)
    elif name == "input_features":
        mels = int(config.get("num_mel_bins") or config.get("feature_size") or 80)
        # Whisper's encoder takes exactly thirty seconds: two frames for each of its positions.
        frames = config.get("max_source_positions")
        dtype, shape = "float32", (BATCH_AXIS, mels, 2 * frames if isinstance(frames, int) else _LENGTH_AXIS)
    elif name == "inputs_embeds":
        dtype, shape = "float32", (BATCH_AXIS, SEQUENCE_AXIS, int(config.get("hidden_size") or 768))
    elif name == "bbox":
        shape = (BATCH_AXIS, SEQUENCE_AXIS, 4)
    elif not name.endswith(("ids", "mask")):
        raise Unsupported(
            f"The model takes an input {name!r}, whose shape its config does not tell.",
            hint="Declare the inputs in modelium.yaml inside the folder, under 'inputs'.",
        )
    if shape == (BATCH_AXIS, SEQUENCE_AXIS) and str(next(iter(config.get("architectures") or ()), "")).endswith(
        "ForMultipleChoice"
    ):
        shape = (BATCH_AXIS, _CHOICES_AXIS, SEQUENCE_AXIS)
    return TensorSpec(name=name, dtype=dtype, shape=shape, known_by=KnownBy.GUESS)


def _image_size(config: Mapping[str, Any]) -> tuple[int, int]:
    for key in ("image_size", "crop_size", "size"):
        value = config.get(key)
        if isinstance(value, int) and value > 0:
            return value, value
        if isinstance(value, list) and len(value) == 2 and all(isinstance(v, int) for v in value):
            return value[0], value[1]
        if isinstance(value, dict):
            height, width = value.get("height"), value.get("width")
            if isinstance(height, int) and isinstance(width, int):
                return height, width
            edge = value.get("shortest_edge")
            if isinstance(edge, int):
                return edge, edge
    return 224, 224


def _preprocessor(folder: Path) -> dict[str, Any]:
    file = folder / "preprocessor_config.json"
    if not file.is_file() or file.stat().st_size > 1 << 20:
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
