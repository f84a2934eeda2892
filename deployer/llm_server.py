"""Language models that a server of their own serves as they are: their files in a folder, their KServe manifest."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import uuid
from pathlib import Path
from typing import Any

import yaml

from deployer.model_files import copy_files, sync_folder
from schemas.deployment import EntrySpec
from schemas.descriptor import BATCH_AXIS, Format, KnownBy, ModelDescriptor, TensorSpec
from schemas.errors import ModeliumError, NotFound
from schemas.evidence import BatchProof

GGUF_FILE = "model.gguf"
HUGGINGFACE_RUNTIME = "kserve-huggingfaceserver"
LLAMA_IMAGE = "llama.cpp:server"
"""Image of llama.cpp's server where no setting names the one that a cluster's registry has."""
DEFAULT_VOLUME = "modelium-models"
_MOUNT = "/mnt/models"
"""Where KServe's storage initializer puts what the storage uri names."""
_LLAMA_CONTEXT = 8192
"""Tokens of context a server is started with at most: a long context's cache can be larger than the model."""
_RUNTIME_BYTES = {Format.HUGGINGFACE: 4 << 30, Format.GGUF: 512 << 20}
"""Resident size of the server before any model."""
_KEPT = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken", ".vocab", ".md", ".gguf"})
"""What the servers read; code is never copied."""
_PICKLED = frozenset({".bin", ".pt", ".pth"})


def is_served_whole(format_: Format) -> bool:
    """Whether a deployment of that format is a language model's folder and no entry of a Triton repository."""
    return format_ in _RUNTIME_BYTES


def entry_spec(name: str, version: int, descriptor: ModelDescriptor, *, hardware: str) -> EntrySpec:
    """Return what is served: a text in, a text or an embedding out, over the server's OpenAI-like HTTP API."""
    embeds = descriptor.task == "feature-extraction"
    answer = TensorSpec(
        name="embedding" if embeds else "text",
        dtype="float32" if embeds else "string",
        shape=(BATCH_AXIS, "width") if embeds else (BATCH_AXIS,),
        known_by=KnownBy.GUESS,
    )
    return EntrySpec(
        name=name,
        version=version,
        format=descriptor.format,
        hardware="gpu" if hardware == "gpu" else "cpu",
        inputs=(TensorSpec(name="prompt", dtype="string", shape=(BATCH_AXIS,), known_by=KnownBy.GUESS),),
        outputs=(answer,),
        batching=BatchProof(holds=False, reason="The server batches requests itself; nothing was measured here."),
        max_batch_size=0,
    )


def publish(model: Path, folder: Path, version: int, *, entry: str | None = None) -> Path:
    """Copy the model's files to ``<folder>/<version>`` and return that; at once when they are there already.

    ``model`` is a stored file or folder, ``entry`` the GGUF file inside it. The copy appears whole, by one rename.
    """
    place = folder / str(version)
    if place.is_dir():
        return place
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / f".staged-{uuid.uuid4().hex}"
    try:
        copy_files(_files(model, entry), staged)
        staged.rename(place)
        sync_folder(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return place


def _files(model: Path, entry: str | None) -> dict[str, Path]:
    """Return name in the new folder to file."""
    if not model.is_dir():
        return {GGUF_FILE: model}
    if entry:
        file = model / entry
        if not file.resolve().is_relative_to(model.resolve()):
            raise ModeliumError(f"The model file {entry!r} lies outside its folder.")
        if file.suffix == ".gguf":
            return {GGUF_FILE: file}
    plain = [p for p in sorted(model.iterdir()) if p.is_file() and not p.is_symlink() and not p.name.startswith(".")]
    suffixes = _KEPT if any(p.suffix == ".safetensors" for p in plain) else _KEPT | _PICKLED
    return {p.name: p for p in plain if p.suffix.lower() in suffixes}


def versions(folder: Path) -> tuple[int, ...]:
    """Return the versions whose files are kept, in order."""
    if not folder.is_dir():
        return ()
    return tuple(sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal() and p.is_dir()))


def require(folder: Path, name: str, version: int) -> Path:
    """Return the folder of a kept version. Raises NotFound."""
    if version not in versions(folder):
        have = ", ".join(str(number) for number in versions(folder)) or "none"
        raise NotFound(f"Version {version} of {name} is not kept.", hint=f"Kept: {have}.")
    return folder / str(version)


def prune(folder: Path, active: int, keep: int) -> tuple[int, ...]:
    """Remove all but ``active`` and the ``keep`` newest others; return those removed."""
    others = [version for version in versions(folder) if version != active]
    removed = others[: max(0, len(others) - max(0, keep))]
    for version in removed:
        shutil.rmtree(folder / str(version))
    return tuple(removed)


def undeploy(folder: Path) -> None:
    """Remove all versions' files."""
    shutil.rmtree(folder, ignore_errors=True)


def default_storage_uri(name: str) -> str:
    """Return where a cluster finds the name's versions unless a setting says otherwise."""
    return f"pvc://{DEFAULT_VOLUME}/{name}"


def manifest(
    spec: EntrySpec,
    *,
    model_bytes: int,
    context_length: int | None = None,
    storage_uri: str | None = None,
    namespace: str = "default",
    cpus: int = 1,
    llama_image: str = LLAMA_IMAGE,
) -> dict[str, Any]:
    """Return the InferenceService (v1beta1): KServe's vLLM runtime for folders, llama.cpp's image for GGUF.

    ``storage_uri`` names the folder that holds the version's folder.
    """
    uri = f"{(storage_uri or default_storage_uri(spec.name)).rstrip('/')}/{spec.version}"
    # A quarter more than the weights: the cache of a few conversations and the activations.
    request = _RUNTIME_BYTES[spec.format] + model_bytes + model_bytes // 4
    gpu = {"nvidia.com/gpu": "1"} if spec.hardware == "gpu" else {}
    resources = {
        "requests": {"cpu": str(cpus), "memory": _mebibytes(request), **gpu},
        "limits": {"cpu": str(cpus), "memory": _mebibytes(request + request // 2), **gpu},
    }
    predictor = (
        {"containers": [_llama_container(spec, uri, resources, context_length, llama_image)]}
        if spec.format is Format.GGUF
        else {
            "model": {
                "modelFormat": {"name": "huggingface"},
                "runtime": HUGGINGFACE_RUNTIME,
                "args": [f"--model_name={spec.name}", "--backend=vllm"],
                "storageUri": uri,
                "resources": resources,
            }
        }
    )
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": spec.name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": "modelium"},
            "annotations": {
                "modelium/version": str(spec.version),
                "modelium/storage": "The storage uri must hold the model's files themselves.",
            },
        },
        "spec": {"predictor": predictor},
    }


def _llama_container(
    spec: EntrySpec, uri: str, resources: dict[str, Any], context_length: int | None, image: str
) -> dict[str, Any]:
    context = min(context_length or _LLAMA_CONTEXT, _LLAMA_CONTEXT)
    embeds = ["--embeddings"] if spec.outputs[0].name == "embedding" else []
    layers = ["--n-gpu-layers", "999"] if spec.hardware == "gpu" else []
    return {
        "name": "kserve-container",
        "image": image,
        "args": [
            "--model", f"{_MOUNT}/{GGUF_FILE}", "--alias", spec.name, "--host", "0.0.0.0", "--port", "8080",
            "--ctx-size", str(context), *layers, *embeds,
        ],
        # KServe's webhook reads it, mounts the files and points the container at them.
        "env": [{"name": "STORAGE_URI", "value": uri}],
        "ports": [{"containerPort": 8080, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": 8080}, "periodSeconds": 5, "failureThreshold": 60},
        "resources": resources,
    }  # fmt: skip


def manifest_yaml(document: dict[str, Any], *, files: Path) -> str:
    """Return the manifest as YAML, with a comment that says what to copy where before it is applied."""
    predictor = document["spec"]["predictor"]
    uri = predictor["model"]["storageUri"] if "model" in predictor else predictor["containers"][0]["env"][0]["value"]
    head = (
        f"# Before: copy the files of {files.parent.name}/{files.name}/ to {uri}/, since a cluster cannot read this\n"
        "# machine's files. Then: kubectl apply -f this file.\n"
    )
    return head + yaml.safe_dump(document, sort_keys=False, allow_unicode=False)


def next_steps(spec: EntrySpec, *, files: Path, manifest: Path | None = None) -> dict[str, str]:
    """Return label to command: serve the files on a machine that has the server, ask it, apply the manifest."""
    where = shlex.quote(str(files.absolute()))
    if spec.format is Format.GGUF:
        flag = " --embeddings" if spec.outputs[0].name == "embedding" else ""
        steps = {"llama.cpp": f"llama-server --model {where}/{GGUF_FILE} --alias {spec.name} --port 8000{flag}"}
    else:
        steps = {"vLLM": f"vllm serve {where} --served-model-name {spec.name} --port 8000"}
    path = "embeddings" if spec.outputs[0].name == "embedding" else "completions"
    asked: dict[str, Any] = {"input": "Hello"} if path == "embeddings" else {"prompt": "Hello", "max_tokens": 16}
    body = {"model": spec.name, **asked}
    steps["curl"] = (
        f"curl -s http://localhost:8000/v1/{path} -H 'Content-Type: application/json' "
        f"-d {shlex.quote(json.dumps(body))}"
    )
    if manifest is not None:
        steps["kubectl apply"] = f"kubectl apply -f {shlex.quote(str(manifest.absolute()))}"
    return steps


def _mebibytes(size: int) -> str:
    return f"{math.ceil(size / (64 << 20)) * 64}Mi"
