"""Run TorchScript that the step ``torch_torchscript`` wrote, as Triton's PyTorch backend would."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from converters.model_errors import RAISED_BY_MODELS, first_line
from converters.tensor_sheet import SHEET_FILE, parse
from converters.torch_candidate import TorchCandidate
from schemas.errors import ModelFailed

MODEL_FILE = "model.pt"


class TorchScriptRunner(TorchCandidate):
    """A TorchScript file that carries the names of its tensors."""

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        """Load ``path``, the file or the folder that holds it. Raises ModelFailed when it does not load."""
        import torch

        file = path / MODEL_FILE if path.is_dir() else path
        extra: dict[str, Any] = {SHEET_FILE: ""}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = torch.jit.load(file, map_location="cpu", _extra_files=extra)  # type: ignore[no-untyped-call]
                module.eval()
        except RAISED_BY_MODELS as error:
            raise ModelFailed(f"torch cannot load {file.name}: {first_line(error)}.") from error
        super().__init__("torchscript", module, parse(extra[SHEET_FILE], file.name), threads=threads)
