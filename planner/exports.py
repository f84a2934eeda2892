"""The first step of every chain that does not start from ONNX: the export, with its fallbacks in order."""

from __future__ import annotations

from typing import Any

from planner.words import number_in_words
from schemas.catalog import CATALOG, toolchain_of
from schemas.descriptor import Format, ModelDescriptor
from schemas.plan import Step
from schemas.step_options import DYNAMO_OPSET, TRACED_OPSET

_TRACED: dict[str, Any] = {"exporter": "torchscript", "opset": TRACED_OPSET}
_DYNAMO: dict[str, Any] = {"exporter": "dynamo", "opset": DYNAMO_OPSET}


def export_step(descriptor: ModelDescriptor, *, fused: bool = False) -> Step | None:
    """Return the step that turns the descriptor's format into ONNX; None when nothing in the catalogue does.

    ``fused`` writes attention as onnxruntime's own operator, which OpenVINO reads too and other runtimes do not know.
    """
    match descriptor.format:
        case Format.TORCHSCRIPT:
            return _step(
                "torchscript_onnx",
                _TRACED,
                f"TorchScript is a recorded graph{_size(descriptor)}; only the TorchScript exporter reads it.",
            )
        case Format.EXPORTED_PROGRAM:
            return _step(
                "exported_program_onnx",
                _TRACED,
                f"Traces the program's module{_size(descriptor)}: about twice as quick as the torch.export-based "
                "exporter, and the graph is run at other sizes before it counts.",
                _step(
                    "exported_program_onnx",
                    _DYNAMO,
                    "If tracing freezes an axis or meets an operator it cannot write: translate the program itself.",
                ),
            )
        case Format.HUGGINGFACE:
            return _step(
                "huggingface_onnx",
                {**_TRACED, "attention": "fused" if fused else "sdpa"},
                f"Traces {_name(descriptor, 'the model')}{_size(descriptor)}, "
                f"{'each attention as one operator of onnxruntime; ' if fused else ''}tracing is about three times as "
                "quick as torch.export.",
                _step(
                    "huggingface_onnx",
                    {**_TRACED, "attention": "eager"},
                    "If attention cannot be traced so: written out as matrix products.",
                ),
                _step(
                    "huggingface_onnx",
                    {**_DYNAMO, "attention": "eager"},
                    "If tracing fails altogether: torch.export, slower but it follows Python that tracing cannot.",
                ),
            )
        case Format.TORCH_STATE_DICT | Format.SAFETENSORS:
            return _step(
                "module_onnx",
                _TRACED,
                f"Builds the class that the sidecar names, loads the weights{_size(descriptor)} and traces it.",
                _step("module_onnx", _DYNAMO, "If tracing fails: torch.export, which follows Python control flow."),
            )
        case Format.TORCH_MODULE:
            return _step(
                "module_onnx",
                _TRACED,
                f"Unpickles the module with the allowed classes only{_size(descriptor)} and traces it.",
                _step("module_onnx", _DYNAMO, "If tracing fails: torch.export, which follows Python control flow."),
            )
        case Format.SKLEARN | Format.SKOPS:
            step = _step(
                "sklearn_onnx",
                {"opset": TRACED_OPSET},
                f"skl2onnx writes {_name(descriptor, 'the estimator')} operator by operator; its file is read "
                "in the sandbox only, and never needed again to serve.",
            )
            return step.model_copy(update={"toolchain": toolchain_of(descriptor)})
        case Format.XGBOOST | Format.LIGHTGBM | Format.CATBOOST:
            return _step(
                "boosting_onnx",
                {"opset": TRACED_OPSET},
                f"Writes the trees of {_name(descriptor, 'the model')} into one operator; thresholds and "
                "missing values go the way they go in the original.",
            )
        case Format.SAVED_MODEL:
            return _step(
                "savedmodel_onnx", {"opset": TRACED_OPSET}, "tf2onnx translates the graph of the served signature."
            )
        case Format.KERAS:
            return _step(
                "keras_onnx",
                {"opset": TRACED_OPSET},
                f"TensorFlow traces {_name(descriptor, 'the model')}{_size(descriptor)}, tf2onnx translates the graph.",
                _step(
                    "keras_onnx",
                    {"opset": TRACED_OPSET, "through": "saved_model"},
                    "If the traced graph cannot be translated: through a SavedModel, which freezes more of it.",
                ),
            )
        case Format.TFLITE:
            return _step(
                "tflite_onnx", {"opset": TRACED_OPSET}, "tf2onnx translates the flatbuffer operator by operator."
            )
        case _:
            return None


def _step(kind: str, options: dict[str, Any], reason: str, *fallbacks: Step) -> Step:
    return Step(
        kind=kind, toolchain=CATALOG[kind].toolchains[0], options=options, reason=reason[:500], fallbacks=fallbacks
    )


def _size(descriptor: ModelDescriptor) -> str:
    return f" ({number_in_words(descriptor.parameter_count)} parameters)" if descriptor.parameter_count else ""


def _name(descriptor: ModelDescriptor, otherwise: str) -> str:
    # A model file may carry any text as its name; one line of it is enough for a sentence.
    return " ".join((descriptor.architecture or otherwise).split())[:80] or otherwise
