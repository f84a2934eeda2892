"""What runners of compiled torch models share: arrays in by name, tensors by position, arrays out by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.arrays import Array, Arrays, cast
from converters.domain import Domain
from converters.model_errors import RAISED_BY_MODELS, first_line
from converters.tensor_sheet import TensorSheet
from schemas.errors import ModelFailed

if TYPE_CHECKING:
    import torch

Call = Callable[..., Any]
"""Takes tensors in the sheet's order; returns a tensor, or a tuple or list of them, in the sheet's order."""


class TorchCandidate:
    """A compiled torch model on the CPU, without gradients; takes as many threads as the process was given."""

    def __init__(self, runtime: str, call: Call, sheet: TensorSheet, *, threads: int) -> None:
        """Wrap ``call``, whose tensors ``sheet`` names."""
        import torch

        torch.set_num_threads(threads)
        self.runtime = runtime
        self.inputs, self.outputs = sheet.inputs, sheet.outputs
        self._model = call

    @property
    def domains(self) -> Mapping[str, Domain]:
        """Nothing: what is compiled no longer tells which table an input indexes."""
        return {}

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Return the outputs by name. Raises ModelFailed when the model refuses these inputs."""
        given = self._call(feeds)()
        if len(given) != len(self.outputs):
            raise ModelFailed(f"The model gave {len(given)} tensors where {len(self.outputs)} were named.")
        return {spec.name: _kept(tensor) for spec, tensor in zip(self.outputs, given, strict=True)}

    def bind(self, feeds: Mapping[str, Array]) -> Callable[[], object]:
        """Return a call that runs ``feeds`` once, with tensors already made."""
        return self._call(feeds)

    def _call(self, feeds: Mapping[str, Array]) -> Callable[[], Sequence[torch.Tensor]]:
        import torch

        tensors, model = self._tensors(feeds), self._model

        def call() -> Sequence[torch.Tensor]:
            try:
                with torch.inference_mode():
                    result = model(*tensors)
            except RAISED_BY_MODELS as error:
                raise ModelFailed(f"The compiled model could not run: {first_line(error)}.") from error
            return (result,) if isinstance(result, torch.Tensor) else result

        return call

    def _tensors(self, feeds: Mapping[str, Array]) -> tuple[torch.Tensor, ...]:
        import torch

        tensors = []
        for spec in self.inputs:
            if spec.name not in feeds:
                raise ModelFailed(f"The model takes an input {spec.name!r} that was not given.")
            # A copy, because a model may write into its inputs and the arrays are used again.
            tensor = torch.from_numpy(np.array(cast(feeds[spec.name], spec)))
            tensors.append(tensor.to(torch.bfloat16) if spec.dtype == "bfloat16" else tensor)
        return tuple(tensors)


def _kept(tensor: torch.Tensor) -> Array:
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return np.array(tensor.contiguous().numpy())
