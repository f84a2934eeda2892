"""Adapters: merged into the base inside their folder, asked for where it is missing, refused without peft."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path

import pytest
import torch

from analyzer import describe
from converters import torch_source
from converters.peft_adapter import Adapter
from schemas.descriptor import Format
from schemas.errors import ModelFailed, Unsupported

pytestmark = pytest.mark.torch

RANK, SCALE = 2, 3.0
MISSING = importlib.util.find_spec("peft") is None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A LoRA adapter for the query projections of a tiny BERT, written by hand, with its base inside."""
    from safetensors.torch import save_file
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    adapter = tmp_path / "adapter"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        BertForSequenceClassification(config).save_pretrained(adapter / "base")
    place = "base_model.model.bert.encoder.layer.0.attention.self.query"
    save_file(
        {f"{place}.lora_A.weight": torch.randn(RANK, 16), f"{place}.lora_B.weight": torch.randn(16, RANK)},
        adapter / "adapter_model.safetensors",
    )
    settings = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": SCALE * RANK, "lora_dropout": 0.1,
        "target_modules": ["query"], "bias": "none", "base_model_name_or_path": "./base", "inference_mode": True,
        "auto_mapping": {"base_model_class": "BertForSequenceClassification"},
    }  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    return adapter


def test_an_adapter_is_described_as_its_base_with_a_note(folder):
    report = describe(folder)
    assert report.refusal is None
    assert report.descriptor.architecture == "BertForSequenceClassification"
    assert "rank 2" in " ".join(report.descriptor.notes)
    assert "adapter_config.json" in report.descriptor.files


def test_an_adapter_without_its_base_asks_for_it_and_says_where(folder):
    (folder / "base").rename(folder.parent / "elsewhere")
    refusal = describe(folder).refusal
    assert refusal is not None and refusal.code == "needs_input"
    assert "base/" in refusal.hint
    with pytest.raises(ModelFailed, match="not inside"):
        Adapter.of(folder)


@pytest.mark.parametrize("named", ["../elsewhere", "/etc", "own/../../elsewhere"])
def test_a_base_outside_the_folder_is_never_read(folder, named):
    (folder / "base").rename(folder.parent / "elsewhere")
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": named}))
    refusal = describe(folder).refusal
    assert refusal is not None and refusal.code == "needs_input"
    with pytest.raises(ModelFailed, match="not inside"):
        Adapter.of(folder)


def test_an_adapter_without_weights_is_asked_for_them(folder):
    (folder / "adapter_model.safetensors").unlink()
    refusal = describe(folder).refusal
    assert refusal is not None and "adapter_model.safetensors" in refusal.message


@pytest.mark.skipif(not MISSING, reason="peft is installed")
def test_without_peft_the_adapter_is_refused_with_what_to_do(folder, make_context):
    with pytest.raises(Unsupported, match="peft is not installed") as refused:
        torch_source.load(make_context("probe", folder, Format.HUGGINGFACE))
    assert "merge_and_unload" in refused.value.hint


@pytest.mark.skipif(MISSING, reason="peft is not installed")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_the_merged_weights_are_the_base_and_the_scaled_product(folder, make_context):
    from safetensors.torch import load_file
    from transformers import BertForSequenceClassification

    source = torch_source.load(make_context("probe", folder, Format.HUGGINGFACE))
    base = BertForSequenceClassification.from_pretrained(folder / "base")
    change = load_file(folder / "adapter_model.safetensors")
    down, up = (next(w for key, w in change.items() if f"lora_{side}" in key) for side in "AB")
    name = "bert.encoder.layer.0.attention.self.query.weight"
    wanted = base.get_parameter(name) + SCALE * up @ down
    torch.testing.assert_close(source.inner.get_parameter(name), wanted)


@pytest.mark.skipif(MISSING, reason="peft is not installed")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_an_adapter_of_virtual_tokens_is_refused_with_the_reason(folder, make_context):
    from peft import PromptTuningConfig, get_peft_model
    from transformers import BertForSequenceClassification

    (folder / "adapter_config.json").unlink()
    (folder / "adapter_model.safetensors").unlink()
    base = BertForSequenceClassification.from_pretrained(folder / "base")
    get_peft_model(base, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)).save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "org/base"}))
    with pytest.raises(Unsupported, match=r"\(PROMPT_TUNING\) puts virtual tokens before the text"):
        torch_source.load(make_context("probe", folder, Format.HUGGINGFACE))
