"""Language models for a server of their own: their files, their manifest, the way back."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml

from deployer import llm_server
from schemas.deployment import EntrySpec
from schemas.descriptor import Format, ModelDescriptor
from schemas.errors import ModeliumError, NotFound

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "data" / "kserve" / "inferenceservice-v1beta1.schema.json").read_text()
)


def closed(schema: object) -> object:
    """Return the schema with unknown fields refused."""
    if isinstance(schema, dict):
        inner = {key: closed(value) for key, value in schema.items()}
        if "properties" in schema and "additionalProperties" not in schema:
            inner["additionalProperties"] = False
        return inner
    return [closed(item) for item in schema] if isinstance(schema, list) else schema


VALIDATOR = jsonschema.Draft202012Validator(
    closed({**SCHEMA, "properties": {**SCHEMA["properties"], "metadata": True}})  # type: ignore[arg-type]
)


def spec(format_: Format, *, task: str = "text-generation", version: int = 1, hardware: str = "cpu") -> EntrySpec:
    descriptor = ModelDescriptor(artifact_sha256="0" * 64, format=format_, size_bytes=1, task=task)
    return llm_server.entry_spec("tiny", version, descriptor, hardware=hardware)


@pytest.mark.parametrize("format_", [Format.GGUF, Format.HUGGINGFACE])
@pytest.mark.parametrize("hardware", ["cpu", "gpu"])
@pytest.mark.parametrize("task", ["text-generation", "feature-extraction"])
@pytest.mark.parametrize("model_bytes", [0, 10**6, 10**12])
def test_every_manifest_satisfies_kserves_schema_without_an_unknown_field(
    format_: Format, hardware: str, task: str, model_bytes: int
) -> None:
    made = llm_server.manifest(spec(format_, task=task, hardware=hardware), model_bytes=model_bytes)
    VALIDATOR.validate(made)
    assert yaml.safe_load(llm_server.manifest_yaml(made, files=Path("/models/tiny/1"))) == made
    text = json.dumps(made)
    assert "pvc://modelium-models/tiny/1" in text
    assert ("nvidia.com/gpu" in text) == (hardware == "gpu")


def test_a_folder_goes_to_vllm_and_a_gguf_file_to_llama_cpp() -> None:
    folder = llm_server.manifest(spec(Format.HUGGINGFACE), model_bytes=1)["spec"]["predictor"]["model"]
    assert folder["runtime"] == "kserve-huggingfaceserver" and "--backend=vllm" in folder["args"]
    container = llm_server.manifest(spec(Format.GGUF), model_bytes=1, context_length=512)["spec"]["predictor"][
        "containers"
    ][0]
    assert "/mnt/models/model.gguf" in container["args"]
    assert container["args"][container["args"].index("--ctx-size") + 1] == "512"
    assert container["readinessProbe"]["httpGet"]["path"] == "/health"


def test_a_long_context_is_not_taken_whole() -> None:
    made = llm_server.manifest(spec(Format.GGUF), model_bytes=1, context_length=1 << 20)
    arguments = made["spec"]["predictor"]["containers"][0]["args"]
    assert int(arguments[arguments.index("--ctx-size") + 1]) <= 8192


def test_the_files_appear_whole_without_code_links_or_hidden_files(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "modeling_own.py", ".hidden.json", "x.bin"):
        (model / name).write_text(name)
    (model / "secret.json").symlink_to("/etc/hostname")
    place = llm_server.publish(model, tmp_path / "served" / "tiny", 1)
    assert sorted(p.name for p in place.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert [p.name for p in place.parent.iterdir()] == ["1"]
    assert llm_server.publish(model, place.parent, 1) == place


def test_pickled_weights_travel_where_there_are_no_others(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        (model / name).write_text(name)
    place = llm_server.publish(model, tmp_path / "served", 1)
    assert sorted(p.name for p in place.iterdir()) == ["config.json", "pytorch_model.bin"]


def test_a_gguf_file_is_found_in_its_folder_and_not_outside(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "big.gguf").write_bytes(b"GGUF")
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    place = llm_server.publish(model, tmp_path / "served", 1, entry="big.gguf")
    assert [p.name for p in place.iterdir()] == ["model.gguf"]
    with pytest.raises(ModeliumError, match="outside"):
        llm_server.publish(model, tmp_path / "served", 2, entry="../other.gguf")


def test_old_versions_are_pruned_and_the_served_one_is_not(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    for version in (1, 2, 3, 4):
        llm_server.publish(file, tmp_path / "tiny", version)
    assert llm_server.prune(tmp_path / "tiny", active=1, keep=1) == (2, 3)
    assert llm_server.versions(tmp_path / "tiny") == (1, 4)
    assert llm_server.require(tmp_path / "tiny", "tiny", 4).is_dir()
    with pytest.raises(NotFound, match="Version 3"):
        llm_server.require(tmp_path / "tiny", "tiny", 3)


@pytest.mark.parametrize("format_", [Format.GGUF, Format.HUGGINGFACE])
@pytest.mark.parametrize("task", ["text-generation", "feature-extraction"])
def test_the_next_steps_can_be_pasted(tmp_path: Path, format_: Format, task: str) -> None:
    steps = llm_server.next_steps(
        spec(format_, task=task), files=tmp_path / "a folder", manifest=tmp_path / "tiny.yaml"
    )
    assert {"curl", "kubectl apply"} < set(steps)
    for command in steps.values():
        words = shlex.split(command)
        assert words[0] in ("llama-server", "vllm", "curl", "kubectl")
    body = json.loads(shlex.split(steps["curl"])[-1])
    assert body["model"] == "tiny" and ("input" in body) == (task == "feature-extraction")
