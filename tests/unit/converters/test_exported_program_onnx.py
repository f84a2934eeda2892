from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

from converters import exported_program_onnx
from schemas.descriptor import Format
from schemas.errors import ConversionFailed

pytestmark = pytest.mark.torch

DYNAMO = {"exporter": "dynamo", "opset": 18}
BOTH = pytest.mark.parametrize("options", [{}, DYNAMO], ids=["torchscript", "dynamo"])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(image)).relu().mean((2, 3)))


class Masked(nn.Module):
    def forward(self, x: torch.Tensor, *, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"kept": x * mask, "sum": (x - mask).sum(1)}


def save(program: torch.export.ExportedProgram, path: Path) -> Path:
    torch.export.save(program, path)
    return path


def net(tmp_path, make_context, make_spec, options, batch: Dim | None = None):
    torch.manual_seed(0)
    module = Net().eval()
    shapes = {"image": {0: batch}} if batch else None
    program = torch.export.export(module, (torch.randn(2, 3, 8, 8),), dynamic_shapes=shapes)
    context = make_context(
        "exported_program_onnx",
        save(program, tmp_path / "net.pt2"),
        Format.EXPORTED_PROGRAM,
        inputs=[make_spec("image", ("batch" if batch else 2, 3, 8, 8))],
        outputs=[make_spec("scores", ("batch" if batch else 2, 5))],
        options=options,
    )
    return module, context


@BOTH
def test_a_program_with_a_dynamic_batch_answers_at_any_batch(tmp_path, make_context, make_spec, run_onnx, options):
    module, context = net(tmp_path, make_context, make_spec, options, Dim("batch"))
    report = exported_program_onnx.convert(context).report

    assert report.inputs[0].shape == ("batch", 3, 8, 8)
    assert report.outputs[0].shape == ("batch", 5)
    assert report.opset == options.get("opset", 17)
    for batch in (1, 7):
        image = torch.randn(batch, 3, 8, 8)
        np.testing.assert_allclose(
            run_onnx(context, {"image": image.numpy()})["scores"], module(image).detach().numpy(), atol=1e-5
        )


@BOTH
def test_a_program_with_a_fixed_batch_keeps_it(tmp_path, make_context, make_spec, options):
    _, context = net(tmp_path, make_context, make_spec, options)
    report = exported_program_onnx.convert(context).report
    assert report.inputs[0].shape == (2, 3, 8, 8)
    assert report.outputs[0].shape == (2, 5)


@BOTH
def test_keyword_inputs_and_a_dict_of_outputs_keep_their_names(tmp_path, make_context, make_spec, run_onnx, options):
    batch = Dim("batch")
    program = torch.export.export(
        Masked(),
        (torch.randn(2, 4),),
        {"mask": torch.ones(2, 4)},
        dynamic_shapes={"x": {0: batch}, "mask": {0: batch}},
    )
    context = make_context(
        "exported_program_onnx",
        save(program, tmp_path / "masked.pt2"),
        Format.EXPORTED_PROGRAM,
        inputs=[make_spec("mask", ("batch", 4)), make_spec("x", ("batch", 4))],
        outputs=[make_spec("sum", ("batch",)), make_spec("kept", ("batch", 4))],
        options=options,
    )
    report = exported_program_onnx.convert(context).report

    x, mask = torch.randn(3, 4), torch.rand(3, 4)
    got = run_onnx(context, {"x": x.numpy(), "mask": mask.numpy()})
    assert [item.name for item in report.inputs] == ["mask", "x"]
    assert [item.name for item in report.outputs] == ["sum", "kept"]
    np.testing.assert_allclose(got["kept"], (x * mask).numpy(), atol=1e-6)
    np.testing.assert_allclose(got["sum"], (x - mask).sum(1).numpy(), atol=1e-5)


def test_an_axis_that_the_program_fixed_is_refused_when_it_should_be_dynamic(tmp_path, make_context, make_spec):
    program = torch.export.export(Net().eval(), (torch.randn(2, 3, 8, 8),))
    context = make_context(
        "exported_program_onnx",
        save(program, tmp_path / "net.pt2"),
        Format.EXPORTED_PROGRAM,
        inputs=[make_spec("image", ("batch", 3, 8, 8))],
        outputs=[make_spec("scores", ("batch", 5))],
        options=DYNAMO,
    )
    with pytest.raises(ConversionFailed, match="fixed axis 'batch' of input 'image' at 2"):
        exported_program_onnx.convert(context)


def test_an_operator_without_a_translation_is_named(tmp_path, make_context, make_spec):
    class Special(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(Special(), (torch.randn(2, 4),))
    context = make_context(
        "exported_program_onnx",
        save(program, tmp_path / "special.pt2"),
        Format.EXPORTED_PROGRAM,
        inputs=[make_spec("x", (2, 4))],
        outputs=[make_spec("y", (2, 4))],
        options=DYNAMO,
    )
    with pytest.raises(ConversionFailed, match="operator prims::bessel_j0 is not supported"):
        exported_program_onnx.convert(context)
