"""Silence for exporters and quantisers, which talk to their developers and not to ours or a person."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

_LOGGERS = ("", "torch.onnx", "torch.export", "torch._export", "torch.fx", "onnxscript", "onnx_ir", "skl2onnx", "nncf")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what exporters print, log and warn; what matters is found by running the result."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
