"""Folders of every kind of task, from what is dropped to a proven graph: inputs found, outputs compared by name."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from analyzer import describe
from converters import huggingface_onnx, module_onnx, parity, probe, reference, torch_source
from converters.library_module import build_from_library
from planner.exports import export_step
from schemas.descriptor import Format, ModelDescriptor
from schemas.errors import ModelFailed, Unsupported
from schemas.evidence import ParityReport
from schemas.sidecar import ModuleSource, Sidecar

pytestmark = pytest.mark.torch

CHECKOUT = Path(__file__).parents[3]


def _zoo() -> ModuleType:
    """Return the zoo's tiny folders, which lie beside the benchmarks and are no package."""
    name = "zoo_transformers_models"
    spec = importlib.util.spec_from_file_location(name, CHECKOUT / "bench" / "zoo" / "transformers_models.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


ZOO = _zoo()


@pytest.fixture
def folder_of(tmp_path):
    """Return how to write one of the zoo's models."""

    def write(name: str) -> Path:
        model = next(model for model in ZOO.MODELS if model.name == name)
        folder: Path = ZOO.write(model, tmp_path / name)
        return folder

    return write


@pytest.fixture
def prove(make_context):
    """Return how to take a folder through probe, reference, conversion and parity, as a job does."""

    def run(folder: Path, notes: list[str] | None = None) -> tuple[ModelDescriptor, ParityReport]:
        notes = [] if notes is None else notes
        given = describe(folder)
        assert given.refusal is None, given.refusal
        known = given.descriptor.model_dump(exclude={"artifact_sha256", "format", "size_bytes", "inputs", "outputs"})
        context = make_context("probe", folder, Format.HUGGINGFACE, descriptor=known)
        found = probe.probe(context).report.descriptor
        specs = {"inputs": found.inputs, "outputs": found.outputs}
        facts = found.model_dump(exclude={"artifact_sha256", "format", "size_bytes", *specs})
        context = make_context("reference", folder, Format.HUGGINGFACE, **specs, descriptor=facts)
        reference.reference(context)
        step = export_step(found, fused=True)
        assert step is not None
        context = make_context(
            step.kind, folder, Format.HUGGINGFACE, **specs, descriptor=facts, options=step.options,
            reference=context.out / "reference",
        )  # fmt: skip
        notes.extend(huggingface_onnx.convert(context).report.notes)
        proof = make_context(
            "parity", context.out / "model", Format.HUGGINGFACE, **specs, descriptor=facts,
            options={"precision": "fp32"}, reference=context.input("reference"),
        )  # fmt: skip
        report = parity.parity(proof).report
        assert report.passed, report.reason
        return found, report

    return run


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("bert-qa", {"input_ids", "attention_mask", "token_type_ids"}, {"start_logits", "end_logits"}),
        ("bert-choice", {"input_ids", "attention_mask", "token_type_ids"}, {"logits"}),
        ("layoutlm", {"input_ids", "attention_mask", "token_type_ids", "bbox"}, {"logits"}),
        ("bart-classifier", {"input_ids", "attention_mask"}, {"logits", "encoder_last_hidden_state"}),
        ("dpt", {"pixel_values"}, {"predicted_depth"}),
        ("yolos", {"pixel_values"}, {"logits", "pred_boxes", "last_hidden_state"}),
        ("ast", {"input_values"}, {"logits"}),
        ("wav2vec2-ctc", {"input_values"}, {"logits"}),
        ("speech-to-text", {"input_features", "decoder_input_ids"}, {"logits", "encoder_last_hidden_state"}),
    ],
)
def test_a_task_is_converted_and_proven_at_any_batch(folder_of, prove, name, inputs, outputs):
    descriptor, report = prove(folder_of(name))
    assert {spec.name for spec in descriptor.inputs} == inputs
    assert {spec.name for spec in descriptor.outputs} == outputs
    assert report.batching.holds, report.batching.reason


_SOUND = {
    "spec_size": 64, "hidden_size": 32, "patch_embeds_hidden_size": 16, "depths": [1, 1], "num_attention_heads": [2, 2],
    "window_size": 4, "num_mel_bins": 16, "patch_size": 4, "patch_stride": [4, 4], "projection_dim": 16,
}  # fmt: skip
_CODEC = {"codebook_size": 16, "hidden_size": 16, "sampling_rate": 200, "upsampling_ratios": [2, 2]}


@pytest.mark.parametrize(
    ("architecture", "config", "kind", "inputs"),
    [
        ("ClapAudioModelWithProjection", _SOUND, "audio", {"input_features": 4}),
        ("ClapModel", {"audio_config": _SOUND, "text_config": ZOO._ROBERTA, "projection_dim": 16}, "text",
         {"input_ids": 2, "attention_mask": 2, "input_features": 4}),
        ("EncodecModel", {**_CODEC, "num_filters": 4, "codebook_dim": 16, "num_lstm_layers": 1,
                          "target_bandwidths": [1.5]}, "audio", {"input_values": 3}),
    ],
)  # fmt: skip
def test_sounds_are_taken_as_an_image_of_frequencies_or_by_channels(
    tmp_path, prove, architecture, config, kind, inputs
):
    beside = {"feature_size": 16} if kind == "text" else {}
    folder = ZOO.write(ZOO.TinyModel("sound", architecture, config, kind, beside), tmp_path / "sound")
    descriptor, _ = prove(folder)
    assert {spec.name: len(spec.shape) for spec in descriptor.inputs} == inputs


def test_what_belongs_to_training_is_no_output(tmp_path, make_context):
    config = {**_CODEC, "encoder_hidden_size": 4, "downsampling_ratios": [2, 2], "decoder_hidden_size": 16,
              "codebook_dim": 4, "n_codebooks": 2}  # fmt: skip
    folder = ZOO.write(ZOO.TinyModel("dac", "DacModel", config, "audio"), tmp_path / "dac")
    known = describe(folder).descriptor.model_dump(
        exclude={"artifact_sha256", "format", "size_bytes", "inputs", "outputs"}
    )
    found = probe.probe(make_context("probe", folder, Format.HUGGINGFACE, descriptor=known)).report.descriptor
    assert {spec.name for spec in found.outputs} >= {"audio_values"}
    assert "loss" not in {spec.name for spec in found.outputs}


@pytest.mark.parametrize("name", ["t5"])
def test_an_encoder_and_its_decoder_become_one_graph_with_lengths_of_their_own(folder_of, prove, name):
    descriptor, report = prove(folder_of(name))
    shapes = {spec.name: spec.shape for spec in descriptor.inputs}
    assert shapes["input_ids"] == ("batch", "sequence")
    assert shapes["decoder_input_ids"] == ("batch", "decoder_sequence")
    logits = next(output for output in report.outputs if output.name == "logits")
    assert logits.agreement == 1.0 and logits.kl is not None and logits.kl < 1e-6
    assert report.real_samples


def test_a_language_models_forward_pass_is_judged_by_tokens(folder_of, prove):
    descriptor, report = prove(folder_of("llama"))
    assert descriptor.task == "text-generation"
    (logits,) = report.outputs
    assert logits.agreement == 1.0 and logits.kl is not None and logits.kl < 1e-6


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_a_window_that_fused_attention_has_no_mask_for_is_exported_plainly(folder_of, prove, name):
    notes: list[str] = []
    prove(folder_of(name), notes)
    assert any("with sdpa attention, because with fused: Its answers differ" in note for note in notes)


def test_texts_and_images_may_differ_in_number_where_each_is_compared_with_each(folder_of, prove):
    descriptor, report = prove(folder_of("clip"))
    leading = {spec.name: spec.shape[0] for spec in descriptor.inputs}
    assert leading == {"input_ids": "texts", "attention_mask": "texts", "pixel_values": "images"}
    assert not report.batching.holds


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_stored_and_floats_are_run(folder_of, make_context, dtype):
    from transformers import BertModel

    folder = folder_of("bert")
    BertModel.from_pretrained(folder).to(dtype).save_pretrained(folder)
    source = torch_source.load(make_context("probe", folder, Format.HUGGINGFACE))
    assert {parameter.dtype for parameter in source.inner.parameters()} == {torch.float32}
    assert "run as float32" in " ".join(source.notes)


def test_shards_and_tied_weights_are_put_together(folder_of, prove):
    from transformers import GPT2LMHeadModel

    folder = folder_of("gpt2")
    model = GPT2LMHeadModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    prove(folder)


def test_a_folder_without_a_tokenizer_is_proven_on_random_tokens(folder_of, prove):
    folder = folder_of("bert")
    (folder / "tokenizer.json").unlink()
    _, report = prove(folder)
    assert not report.real_samples


def test_a_folder_without_weights_is_told_in_a_sentence(folder_of):
    folder = folder_of("bert")
    (folder / "model.safetensors").unlink()
    refusal = describe(folder).refusal
    assert refusal is not None and "no weights" in refusal.message


def test_pooling_and_normalising_are_in_the_graph_and_agree_with_the_same_maths(folder_of, tmp_path, prove):
    """The same sentences through transformers and numpy, as sentence-transformers' documentation writes it out."""
    import onnxruntime
    from tokenizers import Tokenizer
    from transformers import BertModel

    inner = folder_of("bert")
    folder = tmp_path / "sentences"
    shutil.copytree(inner, folder)
    (folder / "1_Pooling").mkdir()
    (folder / "2_Normalize").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    parts = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    (folder / "modules.json").write_text(
        json.dumps(
            [{"idx": n, "type": f"sentence_transformers.models.{k}", "path": p} for n, (k, p) in enumerate(parts)]
        )
    )
    descriptor, report = prove(folder)
    assert [spec.name for spec in descriptor.outputs] == ["sentence_embedding"]
    assert report.real_samples

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    rows = tokenizer.encode_batch(["Rain again.", "A film this long needs a story."])
    feeds = {
        "input_ids": np.array([row.ids for row in rows]),
        "attention_mask": np.array([row.attention_mask for row in rows]),
    }
    feeds["token_type_ids"] = np.zeros_like(feeds["input_ids"])
    with torch.no_grad():
        tokens = BertModel.from_pretrained(inner)(**{k: torch.from_numpy(v) for k, v in feeds.items()})[0].numpy()
    mask = feeds["attention_mask"][..., None]
    mean = (tokens * mask).sum(1) / mask.sum(1)
    wanted = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    (file,) = (path for path in tmp_path.glob("step-*/out/model/model.onnx"))
    (got,) = onnxruntime.InferenceSession(str(file)).run(["sentence_embedding"], feeds)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_weights_alone_are_loaded_into_a_class_that_transformers_has(tmp_path, make_context):
    from safetensors.torch import save_model
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = {"vocab_size": 200, "n_layers": 1, "n_heads": 2, "dim": 16, "hidden_dim": 32, "num_labels": 3}
    file = tmp_path / "model.safetensors"
    save_model(DistilBertForSequenceClassification(DistilBertConfig(**config)), str(file))
    source = ModuleSource(library="transformers", class_name="DistilBertForSequenceClassification", args=config)
    (tmp_path / "code").mkdir()
    context = make_context("probe", file, Format.SAFETENSORS, sidecar=Sidecar(module=source), code=tmp_path / "code")
    found = probe.probe(context).report.descriptor
    assert [spec.name for spec in found.inputs] == ["input_ids", "attention_mask"]
    assert [spec.shape for spec in found.outputs] == [("batch", 3)]
    context = make_context(
        "module_onnx", file, Format.SAFETENSORS, inputs=found.inputs, outputs=found.outputs,
        sidecar=Sidecar(module=source), code=tmp_path / "code",
    )  # fmt: skip
    assert module_onnx.convert(context).report.outputs[0].name == "logits"


def test_a_class_that_no_library_has_is_told_with_an_example():
    with pytest.raises(Unsupported, match="has no model 'BertForEverything'"):
        build_from_library(ModuleSource(library="transformers", class_name="BertForEverything"))


def test_arguments_that_would_fetch_other_weights_are_refused():
    with pytest.raises(ModelFailed, match="fetches weights"):
        build_from_library(ModuleSource(library="torchvision", class_name="resnet18", args={"weights": "DEFAULT"}))


def test_a_sidecar_names_a_file_or_a_library_and_not_both():
    with pytest.raises(ValueError, match="either 'file'"):
        ModuleSource(class_name="Net")
    with pytest.raises(ValueError, match="either 'file'"):
        ModuleSource(file="model.py", library="timm", class_name="Net")
