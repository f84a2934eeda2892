"""The inputs of one forward pass of a Hugging Face model: their names from the model, their shapes from its config."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.folder_json import read_object
from converters.sampling import SEQUENCE_AXIS
from schemas.descriptor import BATCH_AXIS, Dim, DType, KnownBy, TensorSpec
from schemas.errors import Unsupported

DECODER_AXIS = "decoder_sequence"
LENGTH_AXIS = "length"
FRAMES_AXIS = "frames"
CHOICES_AXIS = "choices"
DECODER_IDS = "decoder_input_ids"
_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_ONE_ANSWER = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
"""Heads that feed the decoder from the encoder's own input."""


def input_names(model: Any, folder: Path) -> tuple[str, ...]:
    """Return the inputs of one forward pass: what the tokenizer makes of a text, or the model's main input."""
    takes = inspect.signature(model.forward).parameters
    main = str(getattr(model, "main_input_name", "input_ids"))
    names = [main] if main != "input_ids" else _text_names(model.config, folder)
    if main == "input_ids" and (takes_pairs(model.config) or _reads_images(model.config)):
        names.append("pixel_values")
    if main == "input_ids" and _hears(model.config):
        names.append("input_features")
    names.append("bbox")
    if getattr(model.config, "is_encoder_decoder", False) and not type(model).__name__.endswith(_ONE_ANSWER):
        names.append(DECODER_IDS)
    return tuple(name for name in names if name in takes)


def takes_pairs(config: Any) -> bool:
    """Whether a model compares texts with images, such as CLIP: it has a tower for each and needs both."""
    return getattr(config, "text_config", None) is not None and getattr(config, "vision_config", None) is not None


def _hears(config: Any) -> bool:
    """Whether a model compares texts with sounds, such as CLAP."""
    return getattr(config, "text_config", None) is not None and getattr(config, "audio_config", None) is not None


def _reads_images(config: Any) -> bool:
    """Whether one tower reads the text and the image together, such as ViLT's."""
    return hasattr(config, "vocab_size") and hasattr(config, "image_size") and hasattr(config, "patch_size")


def _text_names(config: Any, folder: Path) -> list[str]:
    tokenizer = folder / "tokenizer_config.json"
    declared = read_object(tokenizer).get("model_input_names") if tokenizer.is_file() else None
    names = [str(name) for name in declared] if isinstance(declared, list) and declared else list(_TEXT_INPUTS)
    if (getattr(config, "type_vocab_size", 0) or 0) < 2:
        names = [name for name in names if name != "token_type_ids"]
    return names


def input_spec(name: str, config: Mapping[str, Any]) -> TensorSpec:
    """Return dtype and shape of an input by its name; ``config`` is config.json over the preprocessor's settings.

    Raises Unsupported for an input whose shape no config tells.
    """
    dtype, shape = _floats(name, config) or _integers(name, config)
    return TensorSpec(name=name, dtype=dtype, shape=shape, known_by=KnownBy.GUESS)


def _integers(name: str, config: Mapping[str, Any]) -> tuple[DType, tuple[Dim, ...]]:
    if name == "bbox":
        return "int64", (BATCH_AXIS, SEQUENCE_AXIS, 4)
    if name.startswith("decoder_") and name.endswith(("ids", "mask")):
        return "int64", (BATCH_AXIS, DECODER_AXIS)
    if not name.endswith(("ids", "mask")):
        raise Unsupported(
            f"The model takes an input {name!r}, whose shape its config does not tell.",
            hint="Declare the inputs in modelium.yaml inside the folder, under 'inputs'.",
        )
    if _architecture(config).endswith("ForMultipleChoice"):
        return "int64", (BATCH_AXIS, CHOICES_AXIS, SEQUENCE_AXIS)
    return "int64", (BATCH_AXIS, SEQUENCE_AXIS)


def _floats(name: str, config: Mapping[str, Any]) -> tuple[DType, tuple[Dim, ...]] | None:
    shape: tuple[Dim, ...]
    match name:
        case "pixel_values" | "images":
            height, width = image_size(config)
            shape = (int(config.get("num_channels") or 3), height, width)
            if config.get("num_frames") and "Video" in _architecture(config):
                shape = (int(config["num_frames"]), *shape)
        case "input_values" if isinstance(config.get("max_length"), int) and "num_mel_bins" in config:
            # A spectrogram, as the Audio Spectrogram Transformer takes it, and not the sound itself.
            shape = (int(config["max_length"]), int(config["num_mel_bins"]))
        case "input_values" if "codebook_size" in config:
            shape = (int(config.get("audio_channels") or 1), LENGTH_AXIS)  # a codec keeps channels apart
        case "input_values":
            shape = (LENGTH_AXIS,)
        case "input_features":
            shape = _features(config)
        case "past_values":
            shape = (int(config.get("context_length") or 32), int(config.get("num_input_channels") or 1))
        case "inputs_embeds":
            shape = (SEQUENCE_AXIS, int(config.get("hidden_size") or 768))
        case "bbox" if "dim_bbox" in config:
            shape = (SEQUENCE_AXIS, int(config["dim_bbox"]))
        case _:
            return None
    return "float32", (BATCH_AXIS, *shape)


def _features(config: Mapping[str, Any]) -> tuple[Dim, ...]:
    """Return the shape of a spectrogram: rows of mels for Whisper, columns for the others; an image for CLAP."""
    across = config.get("input_feat_per_channel") or config.get("feature_projection_input_dim")
    if isinstance(across, int):
        return (FRAMES_AXIS, across)
    if "spec_size" in (image := {**config, **(config.get("audio_config") or {})}):
        return (1, FRAMES_AXIS, int(image.get("num_mel_bins") or 64))
    mels = int(config.get("num_mel_bins") or config.get("feature_size") or 80)
    # Whisper's encoder takes exactly thirty seconds: two frames for each of its positions.
    frames = config.get("max_source_positions")
    return (mels, 2 * frames if isinstance(frames, int) else LENGTH_AXIS)


def image_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width of the images that the settings name, 224 by 224 where they name none."""
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


def _architecture(config: Mapping[str, Any]) -> str:
    return str(next(iter(config.get("architectures") or ()), ""))
