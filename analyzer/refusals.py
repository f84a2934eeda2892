"""What to say for each thing that is recognised and not converted: the fact, and what to do."""

from __future__ import annotations

from analyzer.draft import cut_short
from analyzer.formats import Seen
from analyzer.zstd_stream import can_unzstd
from schemas.errors import ModelFailed, ModeliumError, Unsupported

_ONNX_HINT = "Export it to ONNX with {how} and drop that file."
_UNPACK = "Unpack it and drop the model file or folder that is inside, or pack that as .zip or .tar.gz."

_UNSUPPORTED: dict[str, tuple[str, str]] = {
    "saved-model-file": (
        "This is the saved_model.pb of a TensorFlow SavedModel without its folder of variables.",
        "Drop the whole folder, with saved_model.pb, variables/ and assets/ in it.",
    ),
    "graph-def": (
        "This is a frozen TensorFlow graph (GraphDef), which does not say what its inputs and outputs are.",
        "Save it as a SavedModel with a signature and drop that folder: `tf.compat.v1.saved_model.simple_save(session, "
        "'folder', inputs={...}, outputs={...})`, or `model.export('folder')` where the Keras model is at hand.",
    ),
    "coreml": (
        "This is a Core ML model for Apple's devices, which can't be converted back.",
        "Drop the model that it was converted from.",
    ),
    "tensorrt-engine": (
        "This is a TensorRT engine: machine code for one kind of GPU, which can't be converted.",
        "Drop the ONNX file that it was built from.",
    ),
    "xgboost-binary": (
        "This is an XGBoost model in its deprecated binary format, which is not converted.",
        "Save it with `booster.save_model('model.json')`, convert that with onnxmltools and drop the ONNX file.",
    ),
    "aot-inductor": (
        "This is a PyTorch package compiled by AOTInductor: machine code without a graph, which can't be converted.",
        "Save the program it was compiled from: `torch.export.save(exported_program, 'model.pt2')`.",
    ),
    "executorch": (
        "This is an ExecuTorch program for devices, which can't be converted back.",
        "Save the program it was lowered from: `torch.export.save(exported_program, 'model.pt2')`.",
    ),
    "old-joblib": (
        "This file was saved by a joblib older than 0.10, whose format is not read.",
        "Load it with that joblib and save it again with a current one.",
    ),
    "npy": ("This is a NumPy array, not a model.", "Samples belong beside a model, named by its sidecar as an .npz."),
    "npz": ("This is a NumPy archive of arrays, not a model.", "Samples belong beside a model, named by its sidecar."),
    "7z": ("This is a 7-Zip archive, which is not unpacked here.", _UNPACK),
    "rar": ("This is a RAR archive, which is not unpacked here.", _UNPACK),
    "lz4": (
        "This file is LZ4-compressed, which is not read here.",
        "Unpack it, or save it again with `joblib.dump(model, path, compress=('gzip', 3))`.",
    ),
}  # fmt: skip

_FAILED: dict[str, tuple[str, str]] = {
    "empty": ("This file is empty (0 bytes).", "The copy or the save failed; copy it again from where it was made."),
    "lfs-pointer": (
        "This is a Git LFS pointer: a few lines of text that stand for the model, not the model.",
        "Run `git lfs pull` in the repository and drop the real file.",
    ),
    "html": (
        "This is an HTML page saved under a model's name, probably a login or error page instead of the download.",
        "Open it in a browser to see what it says, then download the model again.",
    ),
    "pmml": (
        "This is a PMML document, which is not converted.",
        "Drop the estimator that it was made from, saved by joblib or skops, or an ONNX file of it.",
    ),
    "xml": ("This is an XML file, not a model.", "Drop the model itself, for example an .onnx, .pt2 or .joblib file."),
    "json": (
        "This is a JSON file, not a model.",
        "If it is the config.json of a Hugging Face model, drop the whole folder.",
    ),
    "python": (
        "This is Python source code, not a model.",
        "Drop the trained weights and name this file in their sidecar (`module: {file: ..., class_name: ...}`).",
    ),
    "text": (
        "This is a text file, not a model.",
        "Check that the model was saved here and not, say, its log or its path.",
    ),
}


def refusal_of(seen: Seen) -> ModeliumError | None:
    """Return what to say when ``seen`` goes no further, None when there is a reader for it."""
    if seen.kind in _UNSUPPORTED:
        message, hint = _UNSUPPORTED[seen.kind]
        return Unsupported(message, hint=hint)
    if seen.kind in _FAILED:
        message, hint = _FAILED[seen.kind]
        return ModelFailed(message, hint=hint)
    if seen.kind == "cut-zip":
        return cut_short(seen.detail, "its central directory is missing")
    if seen.kind == "cut-compressed":
        return cut_short(seen.detail, "nothing can be unpacked from what is there")
    if seen.kind == "zstd" and not can_unzstd():
        return Unsupported("This file is Zstandard-compressed, which this Python does not read.", hint=_UNPACK)
    if seen.format.value == "unknown":
        return ModelFailed(
            f"This file is in no model format known here (it starts with the bytes {seen.detail}).",
            hint="Drop an ONNX, TorchScript, ExportedProgram (.pt2), safetensors, state_dict or scikit-learn file or a "
            "Hugging Face folder; if it should be one of these, it may be encrypted or damaged.",
        )
    return None
