"""onnxruntime on a GPU: asked for by name and then looked at, since it falls back to the CPU without a word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from schemas.errors import Unsupported

if TYPE_CHECKING:
    import onnxruntime

CUDA = "CUDAExecutionProvider"
_HINT = "Install onnxruntime-gpu with the CUDA libraries it wants, on a machine with an NVIDIA GPU."


def cuda_providers() -> list[str]:
    """Return the providers to open a session with. Raises Unsupported where onnxruntime was built without CUDA."""
    import onnxruntime

    if CUDA not in onnxruntime.get_available_providers():
        raise Unsupported("This onnxruntime was built without CUDA.", hint=_HINT)
    return [CUDA, "CPUExecutionProvider"]


def require_cuda(session: onnxruntime.InferenceSession) -> None:
    """Raise Unsupported when ``session`` fell back to the CPU.

    The list of available providers says what onnxruntime was compiled with; only the session's own says what it uses.
    """
    if CUDA not in session.get_providers():
        raise Unsupported("onnxruntime found no GPU that it can use, and would run on the CPU instead.", hint=_HINT)
