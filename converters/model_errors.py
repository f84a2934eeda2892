"""Which exceptions mean that a model, or code that came with it, failed, rather than that Modelium did."""

from __future__ import annotations

import pickle
import re
import zipfile

RAISED_BY_MODELS: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    pickle.PickleError,
    zipfile.BadZipFile,
)
"""What a person's class, an exporter or a framework raises about a model. MemoryError is not among them: it is the
sandbox's limit speaking."""

_TENSORFLOW_PLACE = re.compile(r'Detected at node|<stack traces|File "|\[\[\{\{|\d+ root error')


def first_line(error: BaseException, limit: int = 300) -> str:
    """Return the telling line of ``error`` without its full stop, with its class where the text alone says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = (lines[0] if lines else "").rstrip(".")
    if text.startswith("The following operation failed in the TorchScript"):
        # The interpreter's traceback comes first, the reason last.
        text = lines[-1].rstrip(".")
    elif text == "Graph execution error:":
        # TensorFlow says where first: the nodes, and where each was defined.
        told = [line for line in lines[1:] if not _TENSORFLOW_PLACE.match(line)]
        text = re.sub(r"^\(\d+\) [A-Z_]+: *", "", told[0]).rstrip(".") if told else text.rstrip(":")
    if not text or isinstance(error, LookupError | AttributeError | TypeError | NameError | ImportError | SyntaxError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
