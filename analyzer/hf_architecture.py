"""What a Hugging Face architecture name says about its task, and which ones can't be served as one forward pass."""

from __future__ import annotations

from analyzer.draft import clean
from schemas.errors import Unsupported

_TASKS: tuple[tuple[str, str], ...] = (
    ("ForSequenceClassification", "text-classification"),
    ("ForTokenClassification", "token-classification"),
    ("ForQuestionAnswering", "question-answering"),
    ("ForMaskedLM", "fill-mask"),
    ("ForMultipleChoice", "multiple-choice"),
    ("ForNextSentencePrediction", "next-sentence-prediction"),
    ("ForImageClassificationWithTeacher", "image-classification"),
    ("ForImageClassification", "image-classification"),
    ("ForVideoClassification", "video-classification"),
    ("ForZeroShotObjectDetection", "zero-shot-object-detection"),
    ("ForObjectDetection", "object-detection"),
    ("ForZeroShotImageClassification", "zero-shot-image-classification"),
    ("ForSemanticSegmentation", "image-segmentation"),
    ("ForImageSegmentation", "image-segmentation"),
    ("ForInstanceSegmentation", "image-segmentation"),
    ("ForUniversalSegmentation", "image-segmentation"),
    ("ForMaskedImageModeling", "masked-image-modeling"),
    ("ForDepthEstimation", "depth-estimation"),
    ("ForAudioFrameClassification", "audio-frame-classification"),
    ("ForAudioClassification", "audio-classification"),
    ("ForSpeechClassification", "audio-classification"),
    ("ForXVector", "audio-xvector"),
    ("ForCTC", "automatic-speech-recognition"),
    ("ForTimeSeriesPrediction", "time-series-forecasting"),
)
_VISION = ("vit", "deit", "beit", "swin", "swinv2", "resnet", "convnext", "convnextv2", "dinov2", "mobilenet_v1",
           "mobilenet_v2", "mobilevit", "levit", "regnet", "segformer", "cvt", "poolformer", "pvt", "bit")  # fmt: skip
_AUDIO = ("wav2vec2", "hubert", "wavlm", "unispeech", "audio-spectrogram-transformer")

_CAUSAL = ("ForCausalLM", "LMHeadModel", "DoubleHeadsModel")
_GENERATES = ("ForConditionalGeneration", "ForSpeechSeq2Seq", "ForVision2Seq", "ForImageTextToText", "MTModel",
              "EncoderDecoderModel", "ForGeneration", "ForTextToWaveform", "ForTextToSpeech", "ForSpeechToText",
              "ForTextToSpectrogram", "SeamlessM4TModel", "ForPrediction")  # fmt: skip


def task_of(architecture: str, model_type: str) -> str | None:
    """Return the Hugging Face task of an architecture name, None when the name does not tell."""
    for suffix, task in _TASKS:
        if architecture.endswith(suffix):
            return task
    if is_causal(architecture):
        return "text-generation"
    if architecture.endswith(_GENERATES):
        return "automatic-speech-recognition" if model_type in ("whisper", "speech_to_text") else "text2text-generation"
    if architecture.endswith("Model"):
        if model_type in _VISION:
            return "image-feature-extraction"
        return "zero-shot-image-classification" if model_type in ("clip", "siglip", "siglip2") else "feature-extraction"
    return None


def is_causal(architecture: str) -> bool:
    """Whether the architecture writes text token by token."""
    return architecture.endswith(_CAUSAL)


def refusal_of(architecture: str) -> Unsupported | None:
    """Return what to say about an architecture whose use is a loop of forward passes, None for all others."""
    name = clean(architecture, 100)
    if is_causal(architecture):
        return Unsupported(
            f"This is a causal language model ({name}); it is described here, and there is no target yet that converts "
            "and serves generation with a key-value cache.",
            hint="Until there is, serve the folder as it is: `vllm serve FOLDER`, "
            "`text-generation-launcher --model-id FOLDER`, or llama.cpp after `convert_hf_to_gguf.py FOLDER`.",
        )
    if architecture.endswith(_GENERATES):
        return Unsupported(
            f"This model generates its output step by step ({name}); it is described here, and there is no target yet "
            "that converts an encoder, a decoder and the loop around them.",
            hint="Until there is, serve the folder with vLLM or transformers' pipeline, or drop its encoder alone "
            "(saved with save_pretrained).",
        )
    return None
