"""The KServe InferenceService that serves an entry in a Kubernetes cluster."""

from __future__ import annotations

import math
from typing import Any

import yaml

from deployer.backends import backend_of
from schemas.deployment import EntrySpec

RUNTIME = "kserve-tritonserver"
RUNTIME_VERSION = "24.12-py3"
"""Tag of NVIDIA's image; its onnxruntime (1.20) reads opset 21 and IR version 10. KServe's default of 23.05 stops at
opset 19."""
DEFAULT_VOLUME = "modelium-models"
_RUNTIME_BYTES = 512 << 20
"""Resident size of Triton with one backend, before any model."""


def default_storage_uri(name: str) -> str:
    """Return where a cluster finds the entry unless a setting says otherwise: a persistent volume claim."""
    return f"pvc://{DEFAULT_VOLUME}/{name}"


def manifest(
    spec: EntrySpec,
    *,
    model_bytes: int,
    memory_bytes: int | None = None,
    storage_uri: str | None = None,
    name: str | None = None,
    namespace: str = "default",
    cpus: int = 1,
) -> dict[str, Any]:
    """Return the InferenceService (v1beta1) of ``spec``.

    ``storage_uri`` names a folder that *holds* the entry's folder: KServe mounts it as the model repository. A path of
    this machine means nothing in a cluster. ``memory_bytes`` is the descriptor's estimate of running one row; a batch
    needs its activations once for every row.
    """
    format_name, format_version = backend_of(spec.format).kserve_format
    gpu = {"nvidia.com/gpu": "1"} if spec.hardware == "gpu" else {}
    rows = max(1, spec.max_batch_size)
    activations = max(0, (memory_bytes or 0) - model_bytes) * rows
    # The file and the session's own packed copy of the weights live side by side while the model loads.
    request = _RUNTIME_BYTES + 2 * model_bytes + activations
    requested = f"{math.ceil(request / (64 << 20)) * 64}Mi"
    limit = f"{math.ceil(1.5 * request / (64 << 20)) * 64}Mi"
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": name or spec.name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": "modelium"},
            "annotations": {
                "modelium/version": str(spec.version),
                "modelium/storage": f"The storage uri must hold the folder {spec.name}/ with its config.pbtxt.",
            },
        },
        "spec": {
            "predictor": {
                "model": {
                    "modelFormat": {"name": format_name, "version": format_version},
                    "runtime": RUNTIME,
                    "runtimeVersion": RUNTIME_VERSION,
                    "protocolVersion": "v2",
                    "storageUri": storage_uri or default_storage_uri(spec.name),
                    "resources": {
                        "requests": {"cpu": str(cpus), "memory": requested, **gpu},
                        "limits": {"cpu": str(cpus), "memory": limit, **gpu},
                    },
                }
            }
        },
    }


def manifest_yaml(manifest: dict[str, Any], *, entry_name: str) -> str:
    """Return ``manifest`` as YAML, with a comment that says what to copy where before it is applied."""
    uri = manifest["spec"]["predictor"]["model"]["storageUri"]
    head = (
        f"# Before: copy the repository entry {entry_name}/ (the folder with config.pbtxt) to {uri}/{entry_name}/,\n"
        "# since a cluster cannot read this machine's files. Then: kubectl apply -f this file.\n"
    )
    return head + yaml.safe_dump(manifest, sort_keys=False, allow_unicode=False)
