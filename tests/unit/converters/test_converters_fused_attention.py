from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from converters import huggingface_onnx, onnx_int8, onnx_optimize, torch_source
from schemas.descriptor import Format

pytestmark = pytest.mark.torch

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
FUSED = "com.microsoft::MultiHeadAttention"
SIZES = [(1, 7), (3, 5), (4, 12)]


def folder_of(name: str, folder: Path) -> Path:
    import transformers

    torch.manual_seed(0)
    config, cls = {
        "bert": (lambda: transformers.BertConfig(vocab_size=100, **SMALL), "BertModel"),
        "roberta": (lambda: transformers.RobertaConfig(vocab_size=100, pad_token_id=1, **SMALL), "RobertaModel"),
        "distilbert": (
            lambda: transformers.DistilBertConfig(vocab_size=100, dim=32, n_layers=2, n_heads=4, hidden_dim=64),
            "DistilBertModel",
        ),
        "vit": (lambda: transformers.ViTConfig(image_size=32, patch_size=8, **SMALL), "ViTModel"),
        "llama": (
            lambda: transformers.LlamaConfig(vocab_size=100, num_key_value_heads=2, bos_token_id=1, **SMALL),
            "LlamaModel",
        ),
        "t5": (
            lambda: transformers.T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
            "T5EncoderModel",
        ),
    }[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(transformers, cls)(config()).eval().save_pretrained(folder)
    return folder


def feeds_of(names, batch: int, sequence: int) -> dict[str, np.ndarray]:
    """Rows of several lengths, padded on the right to the longest."""
    rng = np.random.default_rng(batch)
    mask = np.ones((batch, sequence), np.int64)
    for row in range(1, batch):
        mask[row, sequence - row :] = 0
    every = {
        "input_ids": rng.integers(5, 100, (batch, sequence)),
        "attention_mask": mask,
        "pixel_values": rng.standard_normal((batch, 3, 32, 32)).astype(np.float32),
    }
    return {name: every[name] for name in names}


@pytest.fixture
def exported(tmp_path, make_context, make_spec):
    def make(name: str, **options):
        specs = (
            [make_spec("pixel_values", ("batch", 3, 32, 32))]
            if name == "vit"
            else [make_spec(spec, ("batch", "sequence"), "int64") for spec in ("input_ids", "attention_mask")]
        )
        context = make_context(
            "huggingface_onnx",
            folder_of(name, tmp_path / name),
            Format.HUGGINGFACE,
            inputs=specs,
            outputs=[make_spec("last_hidden_state", ("batch", "tokens" if name == "vit" else "sequence", 32))],
            options={"attention": "fused", **options},
        )
        return context, huggingface_onnx.convert(context).report

    return make


def agree(context, run_onnx, result, atol: float = 1e-4) -> None:
    source = torch_source.load(context)
    for batch, sequence in SIZES:
        feeds = feeds_of(source.input_names, batch, sequence)
        wanted = source.run({name: torch.from_numpy(array) for name, array in feeds.items()})["last_hidden_state"]
        got = run_onnx(result, feeds)["last_hidden_state"]
        # What a padded token itself becomes is nobody's concern.
        kept = feeds["attention_mask"].astype(bool) if "attention_mask" in feeds else ...
        np.testing.assert_allclose(got[kept], wanted.numpy()[kept], atol=atol)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "vit", "llama"])
def test_each_attention_is_one_operator_and_padded_rows_stay_right(exported, run_onnx, name):
    context, report = exported(name)
    assert report.operators[FUSED] == 2
    assert "Softmax" not in report.operators
    agree(context, run_onnx, context)


def test_torch_export_writes_the_same_operator(exported, run_onnx):
    context, report = exported("bert", exporter="dynamo", opset=20)
    assert report.operators[FUSED] == 2
    agree(context, run_onnx, context)


def test_attention_with_a_bias_of_positions_stays_plain_and_right(exported, run_onnx):
    context, report = exported("t5")
    assert FUSED not in report.operators
    agree(context, run_onnx, context)


def test_the_operator_outlives_optimising_and_quantising(exported, make_context, run_onnx):
    context, _ = exported("bert")
    second = make_context("onnx_optimize", context.out / "model", Format.ONNX)
    assert onnx_optimize.convert(second).report.operators[FUSED] == 2
    agree(context, run_onnx, second)
    third = make_context("onnx_int8", second.out / "model", Format.ONNX)
    report = onnx_int8.convert(third).report
    assert report.operators[FUSED] == 2
    assert report.operators["MatMulInteger"] >= 12
    agree(context, run_onnx, third, atol=0.3)


def test_the_operator_is_imported_by_its_own_domain(exported):
    context, _ = exported("bert")
    saved = onnx.load(context.out / "model" / "model.onnx")
    assert {entry.domain: entry.version for entry in saved.opset_import}["com.microsoft"] == 1
