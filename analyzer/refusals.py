"""What to say for each thing that is recognised and not converted: the fact, and what to do."""

from __future__ import annotations

from analyzer.draft import clean, cut_short
from analyzer.formats import Seen
from schemas.errors import ModelFailed, ModeliumError, Unsupported

_ONNX_HINT = "Export it to ONNX with {how} and drop that file."
_UNPACK = "Unpack it and drop the model file or folder that is inside."

_UNSUPPORTED: dict[str, tuple[str, str]] = {
    "keras-zip": (
        "This is a Keras model (.keras), which is not converted yet.",
        _ONNX_HINT.format(how='Keras 3 itself: `model.export("model.onnx", format="onnx")`'),
    ),
    "keras-h5": (
        "This is an HDF5 file, as Keras saves models and weights, which is not converted yet.",
        _ONNX_HINT.format(how='Keras 3: `keras.models.load_model("model.h5").export("model.onnx", format="onnx")`'),
    ),
    "saved-model": (
        "This folder is a TensorFlow SavedModel, which is not converted yet.",
        _ONNX_HINT.format(how="`python -m tf2onnx.convert --saved-model FOLDER --output model.onnx`"),
    ),
    "saved-model-file": (
        "This is the saved_model.pb of a TensorFlow SavedModel without its folder of variables.",
        _ONNX_HINT.format(how="`python -m tf2onnx.convert --saved-model FOLDER --output model.onnx`"),
    ),
    "tflite": (
        "This is a TensorFlow Lite model, which is not converted yet.",
        _ONNX_HINT.format(how="`python -m tf2onnx.convert --tflite model.tflite --output model.onnx`"),
    ),
    "gguf": (
        "This is a GGUF file, a language model for llama.cpp, which Triton's onnxruntime doesn't serve.",
        "Serve it as it is: `llama-server -m model.gguf`.",
    ),
    "xgboost": (
        "This is an XGBoost model, which is not converted yet.",
        _ONNX_HINT.format(how="`onnxmltools.convert_xgboost` (feature names f0, f1, ...)"),
    ),
    "xgboost-binary": (
        "This is an XGBoost model in its deprecated binary format, which is not converted.",
        "Save it with `booster.save_model('model.json')`, convert that with onnxmltools and drop the ONNX file.",
    ),
    "lightgbm": (
        "This is a LightGBM model, which is not converted yet.",
        _ONNX_HINT.format(how="`onnxmltools.convert_lightgbm`"),
    ),
    "catboost": (
        "This is a CatBoost model, which is not converted yet.",
        _ONNX_HINT.format(how='`model.save_model("model.onnx", format="onnx")` (numeric features only)'),
    ),
    "skops": (
        "This is a scikit-learn model saved by skops, which is not converted yet.",
        "Load it with `skops.io.load` and save it with `joblib.dump(model, 'model.joblib')`.",
    ),
    "aot-inductor": (
        "This is a PyTorch package compiled by AOTInductor: machine code without a graph, which can't be converted.",
        "Save the program it was compiled from: `torch.export.save(exported_program, 'model.pt2')`.",
    ),
    "executorch": (
        "This is an ExecuTorch program for devices, which can't be converted back.",
        "Save the program it was lowered from: `torch.export.save(exported_program, 'model.pt2')`.",
    ),
    "torchserve": ("This is a TorchServe archive (.mar), which is not converted.", _UNPACK),
    "old-joblib": (
        "This file was saved by a joblib older than 0.10, whose format is not read.",
        "Load it with that joblib and save it again with a current one.",
    ),
    "npy": ("This is a NumPy array, not a model.", "Samples belong beside a model, named by its sidecar as an .npz."),
    "npz": ("This is a NumPy archive of arrays, not a model.", "Samples belong beside a model, named by its sidecar."),
    "tar": ("This is a tar archive, and archives are not unpacked here.", _UNPACK),
    "zip": ("This is a zip archive, and archives are not unpacked here.", _UNPACK),
    "7z": ("This is a 7-Zip archive, and archives are not unpacked here.", _UNPACK),
    "rar": ("This is a RAR archive, and archives are not unpacked here.", _UNPACK),
    "zstd": ("This file is Zstandard-compressed and is not unpacked here.", _UNPACK),
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
        if seen.kind == "tar" and seen.detail:
            message = f"This is a {seen.detail}-compressed tar archive, and archives are not unpacked here."
        if seen.kind == "zip" and seen.detail:
            message = f"This is a zip archive ({clean(seen.detail, 120)}), and archives are not unpacked here."
        return Unsupported(message, hint=hint)
    if seen.kind in _FAILED:
        message, hint = _FAILED[seen.kind]
        return ModelFailed(message, hint=hint)
    if seen.kind == "cut-zip":
        return cut_short(seen.detail, "its central directory is missing")
    if seen.kind == "cut-compressed":
        return cut_short(seen.detail, "nothing can be unpacked from what is there")
    if seen.format.value == "archive":
        return Unsupported(f"This file is {seen.kind}-compressed and holds no pickle.", hint=_UNPACK)
    if seen.format.value == "unknown":
        return ModelFailed(
            f"This file is in no model format known here (it starts with the bytes {seen.detail}).",
            hint="Drop an ONNX, TorchScript, ExportedProgram (.pt2), safetensors, state_dict or scikit-learn file or a "
            "Hugging Face folder; if it should be one of these, it may be encrypted or damaged.",
        )
    return None
