"""Run a package that torch's ahead-of-time compiler wrote."""

from __future__ import annotations

from pathlib import Path

from converters.model_errors import RAISED_BY_MODELS, first_line
from converters.silence import quiet
from converters.tensor_sheet import read
from converters.torch_candidate import TorchCandidate
from schemas.errors import ModelFailed

MODEL_FILE = "model.pt2"


class AotInductorRunner(TorchCandidate):
    """A compiled package beside the sheet that names its tensors. Loading it runs machine code: sandbox only."""

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        """Load the folder ``path``. Raises ModelFailed when it does not load."""
        import torch

        sheet = read(path)
        # The package reads the number of threads when its first kernel starts.
        torch.set_num_threads(threads)
        try:
            with quiet():
                package = torch._inductor.aoti_load_package(str(path / MODEL_FILE), run_single_threaded=True)
        except RAISED_BY_MODELS as error:
            raise ModelFailed(f"torch cannot load {MODEL_FILE}: {first_line(error)}.") from error
        super().__init__("aotinductor", package, sheet, threads=threads)
