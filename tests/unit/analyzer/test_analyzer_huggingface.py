"""Hugging Face folders: architecture, task, weights, labels, licence; generation is described and refused."""

from __future__ import annotations

import json

import pytest

from analyzer import describe
from schemas.descriptor import Format


def test_a_folder_tells_architecture_task_tokenizer_labels_and_licence(hf_folder, accepted):
    folder = hf_folder(architectures=["BertForSequenceClassification"], id2label={"0": "neg", "1": "pos"})
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n")

    descriptor = accepted(folder)
    assert descriptor.format is Format.HUGGINGFACE
    assert descriptor.architecture == "BertForSequenceClassification"
    assert descriptor.task == "text-classification"
    assert (descriptor.tokenizer, descriptor.license) == ("BertTokenizer", "apache-2.0")
    assert descriptor.labels == ("neg", "pos")
    assert descriptor.parameter_count == 4
    assert "model.safetensors" in descriptor.files


def test_made_up_label_names_are_no_labels(hf_folder, accepted):
    assert accepted(hf_folder(id2label={"0": "LABEL_0", "1": "LABEL_1"})).labels == ()


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "LlamaForCausalLM", "Qwen3ForCausalLM"])
def test_a_causal_language_model_is_described_with_its_context_length(hf_folder, accepted, architecture):
    descriptor = accepted(hf_folder(architectures=[architecture], model_type="llama", max_position_embeddings=512))
    assert (descriptor.task, descriptor.parameter_count) == ("text-generation", 4)
    assert descriptor.context_length == 512


@pytest.mark.parametrize("architecture", ["T5ForConditionalGeneration", "MarianMTModel", "VisionEncoderDecoderModel"])
def test_an_encoder_with_a_decoder_is_described_as_text_to_text(hf_folder, accepted, architecture):
    assert accepted(hf_folder(architectures=[architecture], model_type="t5")).task == "text2text-generation"


def test_a_generating_model_that_sees_is_described_as_such(hf_folder, accepted):
    folder = hf_folder(architectures=["LlavaForConditionalGeneration"], model_type="llava", vision_config={})
    assert accepted(folder).task == "image-text-to-text"


def test_missing_shards_are_named(hf_folder, refused, write_safetensors):
    folder = hf_folder()
    (folder / "model.safetensors").unlink()
    write_safetensors(folder / "model-00001-of-00002.safetensors", {"a": ("F32", [2])})
    table = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))

    assert "model-00002-of-00002.safetensors" in refused(folder, "model_failed").message


def test_an_index_that_names_files_outside_is_refused(hf_folder, refused):
    folder = hf_folder()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../secret"}}))

    assert describe(folder).refusal.code in ("model_failed", "quarantined")


def test_a_folder_without_weights_says_what_was_looked_for(hf_folder, refused):
    folder = hf_folder()
    (folder / "model.safetensors").unlink()

    assert "model.safetensors" in refused(folder, "model_failed").message


def test_weights_that_are_a_git_lfs_pointer_say_so(hf_folder, refused):
    folder = hf_folder()
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")

    assert "git lfs pull" in refused(folder, "model_failed").hint


def test_a_sentence_transformers_folder_is_told_by_its_parts(hf_folder, accepted):
    folder = hf_folder()
    parts = ["Transformer", "Pooling"]
    rows = [{"idx": i, "path": "", "type": f"sentence_transformers.models.{p}"} for i, p in enumerate(parts)]
    (folder / "modules.json").write_text(json.dumps(rows))

    descriptor = accepted(folder)
    assert descriptor.producer == "sentence-transformers"
    assert any("Transformer → Pooling" in note for note in descriptor.notes)


def test_an_adapter_without_its_base_is_asked_for_it_with_how_to_merge(tmp_path, refused, write_safetensors):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    write_safetensors(folder / "adapter_model.safetensors", {"w": ("F32", [1])})

    assert "merge_and_unload" in refused(folder, "needs_input").hint


def test_a_folder_with_an_onnx_copy_beside_its_weights_is_a_hugging_face_model(hf_folder, onnx_file, accepted):
    folder = hf_folder()
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(onnx_file.read_bytes())

    assert accepted(folder).format is Format.HUGGINGFACE


def test_an_exported_folder_tells_the_labels_of_its_config(hf_folder, onnx_file, accepted):
    folder = hf_folder(architectures=["BertForSequenceClassification"], id2label={"0": "neg", "1": "pos"})
    (folder / "model.safetensors").unlink()
    (folder / "model.onnx").write_bytes(onnx_file.read_bytes())

    descriptor = accepted(folder)
    assert (descriptor.format, descriptor.entry) == (Format.ONNX, "model.onnx")
    assert (descriptor.labels, descriptor.task) == (("neg", "pos"), "text-classification")


@pytest.mark.torch
def test_weights_saved_as_a_torch_pickle_are_counted(hf_folder, torch_files, accepted):
    folder = hf_folder()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes((torch_files / "state.pth").read_bytes())

    assert accepted(folder).parameter_count == 139


def test_a_broken_config_is_refused(hf_folder, refused):
    folder = hf_folder()
    (folder / "config.json").write_text('{"model_type": ' + "[" * 100_000)

    assert "config.json" in refused(folder, "model_failed").message
