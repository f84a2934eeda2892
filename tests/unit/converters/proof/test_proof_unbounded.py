"""Programs whose axes have no upper bound are probed at usual sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.export import Dim

from schemas.descriptor import Format


class _Halves(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], 2, -1).sum(-1)


@pytest.mark.parametrize("axis", [2 * Dim("half"), Dim.AUTO])
def test_an_axis_without_an_upper_bound_is_probed(tell, tmp_path: Path, axis: object) -> None:  # type: ignore[no-untyped-def]
    torch.set_num_threads(1)
    program = torch.export.export(_Halves(), (torch.randn(3, 8),), dynamic_shapes={"x": {1: axis}})
    torch.export.save(program, tmp_path / "halves.pt2")
    story = tell(tmp_path / "halves.pt2", Format.EXPORTED_PROGRAM)
    story.probe()
    (x,) = story.descriptor.inputs
    assert x.shape[0] == 3 and isinstance(x.shape[1], str)
