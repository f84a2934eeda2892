"""Numbers and models as a person says them."""

from __future__ import annotations

from schemas.descriptor import Format, ModelDescriptor

_COUNTS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
_FORMATS = {
    Format.TORCHSCRIPT: "TorchScript model",
    Format.EXPORTED_PROGRAM: "ExportedProgram",
    Format.TORCH_STATE_DICT: "PyTorch state_dict",
    Format.SAFETENSORS: "safetensors file",
    Format.HUGGINGFACE: "Hugging Face folder",
    Format.ONNX: "ONNX graph",
    Format.SKLEARN: "scikit-learn estimator",
}


def bytes_in_words(size_bytes: int) -> str:
    """Return a size in the decimal units that file managers show: ``90.4 MB``."""
    size = float(size_bytes)
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size_bytes} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError("unreachable")


def number_in_words(number: int) -> str:
    """Return a count as people write it: ``22.7 million``, ``4,096``."""
    for least, word in ((10**9, "billion"), (10**6, "million")):
        if number >= least:
            return f"{number / least:.3g} {word}"
    return f"{number:,}"


def count_in_words(number: int) -> str:
    """Return a small count as a capitalised word."""
    return _COUNTS[number] if 0 <= number < len(_COUNTS) else str(number)


def operators_in_words(number: int) -> str:
    """Return ``1 operator`` or ``57 operators``."""
    return f"{number:,} operator{'' if number == 1 else 's'}"


def model_in_words(descriptor: ModelDescriptor) -> str:
    """Return the subject of a sentence: ``This Hugging Face folder (BertModel, 22.7 million parameters, 90.9 MB)``."""
    facts = []
    if descriptor.architecture:
        facts.append(" ".join(descriptor.architecture.split())[:80])
    if descriptor.parameter_count:
        facts.append(f"{number_in_words(descriptor.parameter_count)} parameters")
    facts.append(bytes_in_words(descriptor.size_bytes))
    return f"This {_FORMATS.get(descriptor.format, descriptor.format.value)} ({', '.join(facts)})"
