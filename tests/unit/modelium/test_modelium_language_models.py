"""A language model's job: it goes to a server of its own, with a way back and a way out, and says what was not done."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from modelium import deployments, tasks, trial
from modelium.account import build
from modelium.context import Context
from modelium.submit import submit_path
from schemas.account import JobAccount
from schemas.descriptor import Format
from schemas.errors import Conflict, NotFound, Unsupported
from schemas.job import JobState
from schemas.runtime import Runtime
from schemas.target import TargetProfile


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(path: Path, name: str = "Tiny") -> Path:
    """Write a GGUF file of one tensor."""
    keys = {"general.architecture": "llama", "general.name": name}
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys))
    for key, value in keys.items():
        head += text(key) + struct.pack("<I", 8) + text(value)
    head += text("w") + struct.pack("<IQIQ", 1, 32, 0, 0)
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(128))
    return path


def folder(path: Path) -> Path:
    """Write a causal language model's folder of one tensor."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    return path


def convert(context: Context, path: Path, target: TargetProfile | None = None) -> JobAccount:
    """Take the model at ``path`` through every stage until its job has ended."""
    (job_id,) = submit_path(context, path, target)
    for stage in ("analyze", "plan", "execute", "measure", "deploy"):
        tasks.run_stage(context, job_id, stage)
    return build(context, job_id)


def test_a_gguf_file_ends_unchanged_with_files_manifest_and_a_reason(context: Context, tmp_path: Path) -> None:
    account = convert(context, gguf(tmp_path / "tiny.gguf"))
    assert account.state is JobState.UNCHANGED and account.reason is not None
    assert account.reason.startswith("Served as it is by llama.cpp; it was neither converted nor measured here")
    assert account.plan is not None and account.plan.target.runtime is Runtime.LLAMA_CPP
    assert [(c.id, c.state, c.measurements) for c in account.candidates] == [("original", "skipped", ())]
    assert account.deployment is not None and account.deployment.manifest is not None
    assert Path(account.deployment.entry, "model.gguf").read_bytes() == (tmp_path / "tiny.gguf").read_bytes()
    assert "llama.cpp" in Path(account.deployment.manifest).read_text()
    assert "llama-server" in account.deployment.next_steps["llama.cpp"]
    assert not any(context.home.repository.iterdir())
    assert [step.kind for step in account.steps] == ["analyze"]


def test_a_causal_folder_goes_to_vllm(context: Context, tmp_path: Path) -> None:
    account = convert(context, folder(tmp_path / "llm"))
    assert account.state is JobState.UNCHANGED, account.reason
    assert account.deployment is not None and account.deployment.manifest is not None
    assert "--backend=vllm" in Path(account.deployment.manifest).read_text()
    assert sorted(p.name for p in Path(account.deployment.entry).iterdir()) == ["config.json", "model.safetensors"]


def test_a_target_of_triton_refuses_a_gguf_file_with_what_to_do(context: Context, tmp_path: Path) -> None:
    account = convert(context, gguf(tmp_path / "tiny.gguf"), TargetProfile(runtime=Runtime.TRITON))
    assert account.state is JobState.FAILED
    assert account.hint is not None and "llama-cpp" in account.hint


def test_the_settings_runtime_is_for_models_that_are_converted(context: Context, tmp_path: Path) -> None:
    general = context.settings.model_copy(update={"target": TargetProfile(runtime=Runtime.TRITON)})
    account = convert(Context(general), gguf(tmp_path / "tiny.gguf"))
    assert account.state is JobState.UNCHANGED, account.reason


def test_a_new_version_can_be_rolled_back_and_the_name_undeployed(context: Context, tmp_path: Path) -> None:
    first = convert(context, gguf(tmp_path / "tiny.gguf"))
    second = convert(context, gguf(tmp_path / "tiny.gguf", name="Other"))
    assert first.deployment is not None and second.deployment is not None
    assert (first.deployment.version, second.deployment.version) == (1, 2)
    assert deployments.rollback(context, "tiny").version == 1
    assert deployments.active_version(context, "tiny") == 1
    manifest = context.home.manifests / "tiny.yaml"
    assert "tiny/1" in manifest.read_text()
    assert deployments.undeploy(context, "tiny") == 2
    assert not manifest.exists() and not (context.home.model_files / "tiny").exists()
    with pytest.raises(NotFound):
        deployments.active(context, "tiny")


def test_there_is_nothing_to_try_and_it_says_why(context: Context, tmp_path: Path) -> None:
    convert(context, gguf(tmp_path / "tiny.gguf"))
    with pytest.raises(Unsupported, match="does not run here"):
        trial.run(context, "tiny", rows=1)


def test_one_name_is_not_served_by_two_kinds_of_server(context: Context, tmp_path: Path) -> None:
    convert(context, gguf(tmp_path / "tiny.gguf"))
    with pytest.raises(Conflict, match="server of its own"):
        deployments._check_kind(context, "tiny", Format.ONNX)
    deployments._check_kind(context, "tiny", Format.GGUF)
