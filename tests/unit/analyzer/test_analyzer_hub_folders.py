"""Folders as hubs keep them: what a person has to do is told word by word."""

from __future__ import annotations

import json

import pytest
import yaml

from schemas.sidecar import Sidecar

TIMM = {
    "architecture": "resnet10t",
    "num_classes": 5,
    "pretrained_cfg": {"input_size": [3, 176, 176], "mean": [0.485, 0.456, 0.406]},
}


@pytest.fixture
def timm_folder(hf_folder):
    def make(config, weights="model.safetensors"):
        folder = hf_folder()
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


def test_a_folder_of_timm_asks_with_the_sidecar_to_write(timm_folder, refused):
    question = refused(timm_folder(TIMM), "needs_input")
    assert question.message == "Are these the weights of timm's resnet10t? The folder's config.json says so."
    lines = [line for line in question.hint.splitlines() if line.startswith(("module:", "inputs:"))]
    sidecar = Sidecar.model_validate(yaml.safe_load("\n".join(lines)))
    assert sidecar.module is not None
    assert (sidecar.module.library, sidecar.module.class_name) == ("timm", "resnet10t")
    assert sidecar.module.args == {"num_classes": 5}
    assert sidecar.inputs[0].shape == ("batch", 3, 176, 176)


@pytest.mark.parametrize(
    "config",
    [
        {},
        [],
        {"architecture": "resnet10t"},
        {**TIMM, "architecture": "a; rm -rf /"},
        {**TIMM, "architecture": 3},
        {**TIMM, "pretrained_cfg": []},
        {**TIMM, "pretrained_cfg": {"input_size": [3, -1, 2]}},
        {**TIMM, "pretrained_cfg": {"input_size": "abc"}},
    ],
)
def test_what_is_no_folder_of_timm_asks_for_the_class(timm_folder, refused, config):
    assert refused(timm_folder(config), "needs_input").message.startswith("Which class do these weights belong to?")


@pytest.mark.parametrize(
    "name", ["model.fp16.safetensors", "pytorch_model.fp16.bin", "model.fp16-00001-of-00002.safetensors"]
)
def test_weights_of_a_variant_are_named_with_what_to_do(hf_folder, refused, name):
    folder = hf_folder()
    (folder / "model.safetensors").rename(folder / name)
    refusal = refused(folder, "model_failed")
    assert name in refusal.message and "variant=" in refusal.hint and "save_pretrained" in refusal.hint
