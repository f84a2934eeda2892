from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from converters import torch_aotinductor
from converters.runners import load_candidate
from schemas.descriptor import Format
from schemas.errors import ModelFailed, ToolchainMissing

pytestmark = pytest.mark.torch


class Sides(nn.Module):
    """Takes two inputs of one shape that do different things, so that swapping them shows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.softmax(self.linear(left), -1) - right[:, :3], left + 2 * right


def saved(module: nn.Module, path: Path) -> Path:
    batch = torch.export.Dim("batch", min=1, max=1024)
    shapes = {"left": {0: batch}, "right": {0: batch}}
    torch.export.save(
        torch.export.export(module.eval(), (torch.randn(3, 4), torch.randn(3, 4)), dynamic_shapes=shapes), path
    )
    return path


@pytest.fixture
def compiler() -> str:
    found = next((name for name in torch_aotinductor.COMPILERS if shutil.which(name)), None)
    if found is None:
        pytest.skip("no C++ compiler: apt-get install g++")
    return found


def test_the_package_answers_what_the_original_answers_at_sizes_that_were_not_traced(
    tmp_path, make_context, make_spec, compiler
):
    torch.manual_seed(0)
    module = Sides().eval()
    context = make_context(
        "torch_aotinductor",
        saved(module, tmp_path / "m.pt2"),
        Format.EXPORTED_PROGRAM,
        inputs=[make_spec("right", ("batch", 4)), make_spec("left", ("batch", 4))],
        outputs=[make_spec("first", ("batch", 3)), make_spec("second", ("batch", 4))],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = torch_aotinductor.convert(context).report
        runner = load_candidate(context.out / "model", Format.AOTINDUCTOR, threads=1)

    assert runner.runtime == "aotinductor" and [item.name for item in runner.inputs] == ["right", "left"]
    assert any("it is not for another CPU" in note for note in report.notes)
    assert sorted(path.name for path in (context.out / "model").iterdir()) == ["model.pt2", "tensors.json"]
    for rows in (1, 5, 17):
        left, right = torch.randn(rows, 4), torch.randn(rows, 4)
        wanted = module(left, right)
        got = runner.run({"left": left.numpy(), "right": right.numpy()})
        np.testing.assert_allclose(got["first"], wanted[0].detach().numpy(), atol=1e-6)
        np.testing.assert_allclose(got["second"], wanted[1].numpy(), atol=1e-6)


def test_without_a_compiler_the_sentence_says_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainMissing, match=r"C\+\+ compiler.*apt-get install g\+\+"):
        torch_aotinductor.require_compiler()


def test_a_folder_without_the_names_of_its_tensors_is_not_a_candidate(tmp_path):
    with pytest.raises(ModelFailed, match=r"tensors\.json"):
        load_candidate(tmp_path, Format.AOTINDUCTOR, threads=1)
