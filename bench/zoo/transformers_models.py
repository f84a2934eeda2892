"""Tiny Hugging Face folders of random weights, one an architecture and task that has a way to ONNX.

A folder is what ``save_pretrained`` writes: config.json, model.safetensors, and a tokenizer or an image processor's
settings where the kind of model has one. Weights are seeded; what they compute means nothing, and agreement between
original and export is all that they can show.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VOCABULARY = 128
IMAGE = 32
_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [chr(c) for c in range(ord("!"), ord("z"))]

_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 64,
}  # fmt: skip
_ROBERTA = {**_TEXT, "max_position_embeddings": 66, "type_vocab_size": 1}
_LLAMA = {**_TEXT, "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
_GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 2,
        "eos_token_id": 3}  # fmt: skip
_T5 = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2,
       "decoder_start_token_id": 0}  # fmt: skip
_BART = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
    "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2, "forced_eos_token_id": 3,
}  # fmt: skip
_VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "image_size": IMAGE, "patch_size": 8, "num_labels": 5}  # fmt: skip
_SWIN = {"image_size": IMAGE, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2],
         "window_size": 4, "num_labels": 5}  # fmt: skip
_STAGES = {"hidden_sizes": [16, 32], "depths": [1, 1], "num_labels": 5}
_BACKBONE = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
             "layer_type": "basic", "out_features": ["stage4"]}  # fmt: skip
_DETR = {
    "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "backbone_config": _BACKBONE,
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": 6, "num_labels": 3,
}  # fmt: skip
_WAVE = {
    "vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "conv_dim": [16, 16, 16], "conv_stride": [5, 4, 4], "conv_kernel": [10, 8, 4], "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2, "num_labels": 4, "classifier_proj_size": 16, "pad_token_id": 0,
}  # fmt: skip
_WHISPER = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_mel_bins": 80,
    "max_source_positions": 50, "max_target_positions": 64, "decoder_start_token_id": 2, "pad_token_id": 1,
    "bos_token_id": 2, "eos_token_id": 3, "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip
_TOWERS = {
    "text_config": {**_TEXT, "projection_dim": 16, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0},
    "vision_config": {**_VIT, "projection_dim": 16},
    "projection_dim": 16,
}


@dataclass(frozen=True)
class TinyModel:
    """One architecture: the class's name in transformers, its configuration, and what lies beside its weights."""

    name: str
    architecture: str
    config: dict[str, Any]
    kind: str = "text"
    """text, image, audio, both (text and image)."""
    beside: dict[str, Any] = field(default_factory=dict)
    """Further settings of the preprocessor."""
    noise: float = 0.0
    """Standard deviation of what is added to the weights, where the usual ones give ties that a ranking decides by."""


MODELS: tuple[TinyModel, ...] = (
    # Encoders of text
    TinyModel("bert", "BertModel", _TEXT),
    TinyModel("bert-mlm", "BertForMaskedLM", _TEXT),
    TinyModel("bert-qa", "BertForQuestionAnswering", _TEXT),
    TinyModel("bert-choice", "BertForMultipleChoice", _TEXT),
    TinyModel("bert-nsp", "BertForNextSentencePrediction", _TEXT),
    TinyModel("roberta-classifier", "RobertaForSequenceClassification", _ROBERTA),
    TinyModel("albert", "AlbertForSequenceClassification", {**_TEXT, "embedding_size": 16}),
    TinyModel("distilbert", "DistilBertForTokenClassification",
              {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64,
               "max_position_embeddings": 64}),
    TinyModel("electra", "ElectraForSequenceClassification", {**_TEXT, "embedding_size": 16}),
    TinyModel("electra-discriminator", "ElectraForPreTraining", {**_TEXT, "embedding_size": 16}),
    TinyModel("deberta", "DebertaForSequenceClassification",
              {**_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    TinyModel("deberta-v2", "DebertaV2ForSequenceClassification",
              {**_TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}),
    TinyModel("mpnet", "MPNetModel", _TEXT),
    TinyModel("xlm-roberta", "XLMRobertaForTokenClassification", _ROBERTA),
    TinyModel("xlm-roberta-xl", "XLMRobertaXLForMaskedLM", _ROBERTA),
    TinyModel("camembert", "CamembertForMaskedLM", _ROBERTA),
    TinyModel("flaubert", "FlaubertForSequenceClassification",
              {"vocab_size": VOCABULARY, "n_words": VOCABULARY, "emb_dim": 32, "n_layers": 2, "n_heads": 2,
               "max_position_embeddings": 64}),
    TinyModel("xlm", "XLMForSequenceClassification",
              {"vocab_size": VOCABULARY, "n_words": VOCABULARY, "emb_dim": 32, "n_layers": 2, "n_heads": 2,
               "max_position_embeddings": 64}),
    TinyModel("big-bird", "BigBirdForSequenceClassification", {**_TEXT, "attention_type": "original_full"}),
    TinyModel("longformer", "LongformerForSequenceClassification",
              {**_TEXT, "attention_window": [8, 8], "max_position_embeddings": 130}),
    TinyModel("mobilebert", "MobileBertForQuestionAnswering",
              {**_TEXT, "hidden_size": 32, "embedding_size": 16, "intra_bottleneck_size": 32}),
    TinyModel("squeezebert", "SqueezeBertForSequenceClassification",
              {**_TEXT, "embedding_size": 32, "q_groups": 1, "k_groups": 1, "v_groups": 1,
               "post_attention_groups": 1, "intermediate_groups": 1, "output_groups": 1}),
    TinyModel("roformer", "RoFormerForMaskedLM", {**_TEXT, "embedding_size": 16}),
    TinyModel("convbert", "ConvBertForSequenceClassification", {**_TEXT, "embedding_size": 16, "conv_kernel_size": 3}),
    TinyModel("nystromformer", "NystromformerForMaskedLM",
              {**_TEXT, "num_landmarks": 64, "segment_means_seq_len": 64}),
    TinyModel("modernbert", "ModernBertForSequenceClassification",
              {**_TEXT, "pad_token_id": 0, "global_attn_every_n_layers": 2, "local_attention": 16}),
    TinyModel("ernie", "ErnieForTokenClassification", _TEXT),
    TinyModel("megatron-bert", "MegatronBertForSequenceClassification", _TEXT),
    TinyModel("rembert", "RemBertForTokenClassification",
              {**_TEXT, "input_embedding_size": 16, "output_embedding_size": 16}),
    TinyModel("ibert", "IBertForSequenceClassification", _ROBERTA),
    TinyModel("data2vec-text", "Data2VecTextForSequenceClassification", _ROBERTA),
    TinyModel("esm", "EsmForMaskedLM", {**_TEXT, "pad_token_id": 0, "mask_token_id": 4}),
    TinyModel("fnet", "FNetForSequenceClassification", _TEXT),
    TinyModel("funnel", "FunnelForSequenceClassification",
              {"vocab_size": VOCABULARY, "block_sizes": [1, 1], "d_model": 32, "n_head": 2, "d_head": 16,
               "d_inner": 64}),
    TinyModel("xlnet", "XLNetForSequenceClassification",
              {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}),
    TinyModel("splinter", "SplinterForQuestionAnswering", {**_TEXT, "question_token_id": 4}),
    TinyModel("roc-bert", "RoCBertForSequenceClassification",
              {**_TEXT, "enable_pronunciation": False, "enable_shape": False}),
    TinyModel("dpr", "DPRQuestionEncoder", _TEXT),
    TinyModel("layoutlm", "LayoutLMForTokenClassification", {**_TEXT, "max_2d_position_embeddings": 64}),
    TinyModel("lilt", "LiltForTokenClassification",
              {**_ROBERTA, "hidden_size": 48, "channel_shrink_ratio": 2, "max_2d_position_embeddings": 128}),
    TinyModel("bros", "BrosForTokenClassification", {**_TEXT, "hidden_size": 64}),
    TinyModel("nomic-bert", "NomicBertModel", _TEXT),
    # Causal language models: the forward pass
    TinyModel("gpt2", "GPT2LMHeadModel", _GPT),
    TinyModel("gpt2-classifier", "GPT2ForSequenceClassification", {**_GPT, "pad_token_id": 0}),
    TinyModel("gpt-neo", "GPTNeoForCausalLM",
              {"vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 64,
               "attention_types": [[["global", "local"], 1]], "window_size": 8, "max_position_embeddings": 64,
               "bos_token_id": 2, "eos_token_id": 3}),
    TinyModel("gpt-neox", "GPTNeoXForCausalLM", {**_TEXT, "bos_token_id": 2, "eos_token_id": 3}),
    TinyModel("gptj", "GPTJForCausalLM", {**_GPT, "rotary_dim": 8}),
    TinyModel("codegen", "CodeGenForCausalLM", {**_GPT, "n_head": 4, "rotary_dim": 4}),
    TinyModel("gpt-bigcode", "GPTBigCodeForCausalLM", _GPT),
    TinyModel("opt", "OPTForCausalLM",
              {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
               "ffn_dim": 64, "max_position_embeddings": 64, "word_embed_proj_dim": 32, "bos_token_id": 2,
               "eos_token_id": 3}),
    TinyModel("bloom", "BloomForCausalLM",
              {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 2,
               "eos_token_id": 3}),
    TinyModel("llama", "LlamaForCausalLM", _LLAMA),
    TinyModel("llama-classifier", "LlamaForSequenceClassification", _LLAMA),
    TinyModel("mistral", "MistralForCausalLM", {**_LLAMA, "sliding_window": 16}),
    TinyModel("qwen2", "Qwen2ForCausalLM", _LLAMA),
    TinyModel("qwen3", "Qwen3ForCausalLM", _LLAMA),
    TinyModel("phi", "PhiForCausalLM", {**_TEXT, "bos_token_id": 2, "eos_token_id": 3}),
    TinyModel("phi3", "Phi3ForCausalLM", _LLAMA),
    TinyModel("gemma", "GemmaForCausalLM", _LLAMA),
    TinyModel("gemma2", "Gemma2ForCausalLM", {**_LLAMA, "sliding_window": 16}),
    TinyModel("gemma3", "Gemma3ForCausalLM", {**_LLAMA, "sliding_window": 16}),
    TinyModel("falcon", "FalconForCausalLM", {**_TEXT, "bos_token_id": 2, "eos_token_id": 3}),
    TinyModel("granite", "GraniteForCausalLM", _LLAMA),
    TinyModel("stablelm", "StableLmForCausalLM", _LLAMA),
    TinyModel("olmo", "OlmoForCausalLM", _LLAMA),
    TinyModel("olmo2", "Olmo2ForCausalLM", _LLAMA),
    TinyModel("starcoder2", "Starcoder2ForCausalLM", _LLAMA),
    TinyModel("smollm3", "SmolLM3ForCausalLM", _LLAMA),
    TinyModel("mpt", "MptForCausalLM",
              {"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": 64}),
    TinyModel("xglm", "XGLMForCausalLM",
              {"vocab_size": VOCABULARY, "d_model": 32, "num_layers": 2, "attention_heads": 2, "ffn_dim": 64,
               "max_position_embeddings": 64}),
    # Text to text: one forward pass of encoder and decoder
    TinyModel("t5", "T5ForConditionalGeneration", _T5),
    TinyModel("t5-encoder", "T5EncoderModel", _T5),
    TinyModel("mt5", "MT5ForConditionalGeneration", {**_T5, "tie_word_embeddings": False}),
    TinyModel("umt5", "UMT5ForConditionalGeneration", _T5),
    TinyModel("longt5", "LongT5ForConditionalGeneration", {**_T5, "local_radius": 7}),
    TinyModel("bart", "BartForConditionalGeneration", _BART),
    TinyModel("bart-classifier", "BartForSequenceClassification", _BART),
    TinyModel("mbart", "MBartForConditionalGeneration", _BART),
    TinyModel("pegasus", "PegasusForConditionalGeneration", _BART),
    TinyModel("marian", "MarianMTModel", _BART),
    TinyModel("m2m100", "M2M100ForConditionalGeneration", _BART),
    TinyModel("blenderbot", "BlenderbotForConditionalGeneration", _BART),
    TinyModel("blenderbot-small", "BlenderbotSmallForConditionalGeneration", _BART),
    # Images
    TinyModel("vit", "ViTForImageClassification", _VIT, "image"),
    TinyModel("vit-features", "ViTModel", _VIT, "image"),
    TinyModel("deit", "DeiTForImageClassification", _VIT, "image"),
    TinyModel("beit", "BeitForImageClassification", {**_VIT, "use_relative_position_bias": True}, "image"),
    TinyModel("data2vec-vision", "Data2VecVisionForImageClassification", _VIT, "image"),
    TinyModel("swin", "SwinForImageClassification", _SWIN, "image"),
    TinyModel("swinv2", "Swinv2ForImageClassification", _SWIN, "image"),
    TinyModel("convnext", "ConvNextForImageClassification",
              {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "num_labels": 5}, "image"),
    TinyModel("convnextv2", "ConvNextV2ForImageClassification",
              {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "num_labels": 5}, "image"),
    TinyModel("resnet", "ResNetForImageClassification",
              {**_STAGES, "embedding_size": 8, "layer_type": "basic"}, "image"),
    TinyModel("regnet", "RegNetForImageClassification",
              {**_STAGES, "embedding_size": 8, "groups_width": 8}, "image"),
    TinyModel("mobilenet-v1", "MobileNetV1ForImageClassification",
              {"depth_multiplier": 0.25, "min_depth": 8, "num_labels": 5}, "image"),
    TinyModel("mobilenet-v2", "MobileNetV2ForImageClassification",
              {"depth_multiplier": 0.25, "min_depth": 8, "num_labels": 5}, "image"),
    TinyModel("mobilevit", "MobileViTForImageClassification",
              {"image_size": IMAGE, "hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16],
               "num_attention_heads": 2, "num_labels": 5}, "image"),
    TinyModel("mobilevitv2", "MobileViTV2ForImageClassification",
              {"image_size": 64, "width_multiplier": 0.25, "num_labels": 5}, "image"),
    TinyModel("efficientnet", "EfficientNetForImageClassification",
              {"image_size": IMAGE, "width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320,
               "num_labels": 5}, "image"),
    TinyModel("levit", "LevitForImageClassification",
              {"image_size": 64, "hidden_sizes": [16, 32, 48], "num_attention_heads": [1, 2, 3], "depths": [1, 1, 1],
               "key_dim": [8, 8, 8], "num_labels": 5}, "image"),
    TinyModel("cvt", "CvtForImageClassification",
              {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3], "num_labels": 5}, "image"),
    TinyModel("poolformer", "PoolFormerForImageClassification",
              {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "num_labels": 5}, "image"),
    TinyModel("pvt", "PvtForImageClassification",
              {"image_size": 64, "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1],
               "num_attention_heads": [1, 1, 2, 2], "num_labels": 5}, "image"),
    TinyModel("focalnet", "FocalNetForImageClassification",
              {"image_size": IMAGE, "embed_dim": 16, "depths": [1, 1], "focal_levels": [1, 1],
               "focal_windows": [3, 3], "num_labels": 5}, "image"),
    TinyModel("dinov2", "Dinov2Model", _VIT, "image"),
    TinyModel("dinov2-classifier", "Dinov2ForImageClassification", _VIT, "image"),
    TinyModel("hiera", "HieraForImageClassification",
              {"image_size": [64, 64], "embed_dim": 8, "num_heads": [1, 2, 4, 8], "depths": [1, 1, 1, 1],
               "num_labels": 5}, "image", {"size": {"height": 64, "width": 64}}),
    TinyModel("vit-msn", "ViTMSNForImageClassification", _VIT, "image"),
    TinyModel("segformer", "SegformerForSemanticSegmentation",
              {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2],
               "decoder_hidden_size": 16, "num_labels": 5}, "image", {"size": {"height": 64, "width": 64}}),
    TinyModel("dpt", "DPTForDepthEstimation",
              {**_VIT, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3],
               "neck_hidden_sizes": [8, 8, 16, 16],
               "fusion_hidden_size": 16, "is_hybrid": False}, "image"),
    TinyModel("glpn", "GLPNForDepthEstimation",
              {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2],
               "decoder_hidden_size": 16}, "image", {"size": {"height": 64, "width": 64}}),
    TinyModel("yolos", "YolosForObjectDetection",
              {**_VIT, "image_size": [IMAGE, IMAGE], "num_detection_tokens": 6}, "image"),
    TinyModel("detr", "DetrForObjectDetection", _DETR, "image", {"size": {"height": 64, "width": 64}}),
    TinyModel("conditional-detr", "ConditionalDetrForObjectDetection", _DETR, "image",
              {"size": {"height": 64, "width": 64}}),
    TinyModel("rt-detr", "RTDetrForObjectDetection",
              {"backbone_config": {"model_type": "rt_detr_resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 16, 32],
                                   "depths": [1, 1, 1, 1], "layer_type": "basic",
                                   "out_features": ["stage2", "stage3", "stage4"]},
               "encoder_hidden_dim": 32, "encoder_in_channels": [16, 16, 32], "encoder_ffn_dim": 64,
               "encoder_attention_heads": 2, "d_model": 32, "num_queries": 6, "decoder_in_channels": [32, 32, 32],
               "decoder_ffn_dim": 64, "decoder_layers": 1, "decoder_attention_heads": 2, "num_labels": 3,
               "num_denoising": 0},
              "image", {"size": {"height": 64, "width": 64}}, 0.2),
    # Sound
    TinyModel("wav2vec2-ctc", "Wav2Vec2ForCTC", _WAVE, "audio"),
    TinyModel("wav2vec2-classifier", "Wav2Vec2ForSequenceClassification", _WAVE, "audio"),
    TinyModel("hubert", "HubertForCTC", _WAVE, "audio"),
    TinyModel("wavlm", "WavLMForSequenceClassification", {**_WAVE, "num_buckets": 16}, "audio"),
    TinyModel("unispeech", "UniSpeechForCTC", _WAVE, "audio"),
    TinyModel("unispeech-sat", "UniSpeechSatForSequenceClassification", _WAVE, "audio"),
    TinyModel("data2vec-audio", "Data2VecAudioForCTC", _WAVE, "audio"),
    TinyModel("sew", "SEWForCTC", {**_WAVE, "squeeze_factor": 2}, "audio"),
    TinyModel("whisper", "WhisperForConditionalGeneration", _WHISPER, "audio", {"feature_size": 80}),
    TinyModel("whisper-classifier", "WhisperForAudioClassification", {**_WHISPER, "num_labels": 4}, "audio",
              {"feature_size": 80}),
    TinyModel("speech-to-text", "Speech2TextForConditionalGeneration",
              {"vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
               "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64,
               "decoder_ffn_dim": 64, "input_feat_per_channel": 20, "input_channels": 1, "conv_channels": 32,
               "max_source_positions": 400, "max_target_positions": 64, "pad_token_id": 1, "bos_token_id": 2,
               "eos_token_id": 3}, "audio", {"feature_size": 20, "num_mel_bins": 20}),
    TinyModel("ast", "ASTForAudioClassification",
              {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
               "max_length": 64, "num_mel_bins": 32, "patch_size": 16, "num_labels": 4}, "audio"),
    # Text with images
    TinyModel("clip", "CLIPModel", _TOWERS, "both"),
    TinyModel("clip-text", "CLIPTextModelWithProjection", _TOWERS["text_config"]),
    TinyModel("clip-vision", "CLIPVisionModelWithProjection", _TOWERS["vision_config"], "image"),
    TinyModel("siglip", "SiglipModel", {k: v for k, v in _TOWERS.items() if k != "projection_dim"}, "both"),
    TinyModel("chinese-clip", "ChineseCLIPModel", _TOWERS, "both"),
    # Time series
    TinyModel("patchtst", "PatchTSTForPrediction",
              {"num_input_channels": 2, "context_length": 32, "patch_length": 8, "patch_stride": 8,
               "prediction_length": 8, "d_model": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64,
               "loss": "mse"}, "series"),
    TinyModel("patchtsmixer", "PatchTSMixerForPrediction",
              {"num_input_channels": 2, "context_length": 32, "patch_length": 8, "patch_stride": 8,
               "prediction_length": 8, "d_model": 16, "num_layers": 2, "loss": "mse"}, "series"),
)  # fmt: skip


def models(folder: Path) -> Iterator[tuple[str, Path]]:
    """Write every model below ``folder`` and yield its name with its folder, one at a time."""
    for model in MODELS:
        yield model.name, write(model, folder / model.name)


def write(model: TinyModel, folder: Path) -> Path:
    """Write ``model`` into ``folder`` and return that. Raises whatever transformers raises for its configuration."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    cls = getattr(transformers, model.architecture)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = cls(cls.config_class(**model.config)).eval()
        if model.noise:
            with torch.no_grad():
                for weight in network.parameters():
                    weight.add_(torch.randn_like(weight), alpha=model.noise)
        network.save_pretrained(folder)
    _processor(model, folder)
    return folder


def _processor(model: TinyModel, folder: Path) -> None:
    settings = dict(model.beside)
    if model.kind in ("text", "both"):
        _tokenizer(folder)
    if model.kind in ("image", "both"):
        settings.setdefault("size", {"height": _edge(model), "width": _edge(model)})
    if settings:
        (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")


def _edge(model: TinyModel) -> int:
    size = model.config.get("image_size", IMAGE)
    return int(size[0] if isinstance(size, list) else size)


def _tokenizer(folder: Path) -> None:
    """Write a tokenizer of single characters, so that real sentences reach the model."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    ids = {word: place for place, word in enumerate(_WORDS)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
