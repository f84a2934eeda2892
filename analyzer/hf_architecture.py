"""What a Hugging Face architecture name says about its task."""

from __future__ import annotations

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
