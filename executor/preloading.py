"""Runs inside the sandbox: what a warm parent imports before it is asked, and what while nobody asks."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator

from executor.child import PRELOADED
from executor.toolchain import versions_here
from schemas.catalog import CATALOG

_NEXT = {
    "onnx": (
        "analyzer",
        "analyzer.content_scan",
        "onnx.checker",
        "onnx.inliner",
        "onnx.shape_inference",
        "onnxruntime.quantization",
    ),
    "torch": (
        "onnx.inliner",
        "onnxruntime",
        "torch.onnx",
        "converters.module_source",
        "converters.pickled_source",
        "sympy",
        "onnxscript",
        "torch._dynamo",
        "torch.export.pt2_archive._package",
        "torch._functorch.aot_autograd",
        "torch.onnx._internal.torchscript_exporter.utils",
        "transformers",
        "torch.distributed.tensor",
        "torch.distributed.checkpoint",
        "scipy.optimize",
        "transformers.loss.loss_utils",
        "transformers.generation.continuous_batching",
        "transformers.modeling_utils",
    ),
    "sklearn": ("skl2onnx", "onnxruntime", "sklearn.pipeline", "sklearn.feature_selection", "sklearn.impute"),
    "boosting": ("skl2onnx", "onnxruntime", "xgboost", "lightgbm", "catboost"),
    "openvino": ("onnx", "onnxruntime", "nncf"),
    "tensorflow": ("onnx", "onnxruntime", "tensorflow", "tf2onnx"),
    "tensorrt_rtx": ("onnx", "onnxruntime"),
}
"""What most steps of a toolchain import later themselves; what many need comes first.

A step that comes in the middle of an import waits for its end, so what a large one imports stands before it.
"""


def first(toolchain: str) -> list[str]:
    """Return the modules without which no step of ``toolchain`` starts."""
    return ["executor.child", *PRELOADED.get(toolchain, ())]


def later(toolchain: str) -> Iterator[Callable[[], object]]:
    """Return what to do while the parent waits: nothing of it takes more than a few seconds or leaves a thread."""
    ours = (kind.function.partition(":")[0] for kind in CATALOG.values() if toolchain in kind.toolchains)
    for name in dict.fromkeys((*_NEXT.get(toolchain, ()), *ours)):
        yield lambda name=name: preload(name)  # type: ignore[misc]
    yield lambda: versions_here(toolchain)


def preload(name: str) -> None:
    """Import a module that may be absent: the step that needs it says so better than a parent can."""
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
