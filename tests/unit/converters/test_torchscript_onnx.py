from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from converters import torchscript_onnx
from schemas.descriptor import Format
from schemas.errors import ConversionFailed

pytestmark = pytest.mark.torch


class Sides(nn.Module):
    """Takes two inputs of one shape that do different things, so that swapping them shows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.dropout(self.linear(left)) - right[:, :3], left + 2 * right


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = torch.zeros(x.size(0), 4)
        for step in range(x.size(1)):
            state = torch.tanh(self.cell(state + x[:, step]))
        return state


def scripted(module: nn.Module, path: Path) -> Path:
    # Deprecated, and what people's files were made with.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module.eval()), path)
    return path


def sides(tmp_path, make_context, make_spec, order=("left", "right"), options=None):
    torch.manual_seed(0)
    module = Sides().eval()
    context = make_context(
        "torchscript_onnx",
        scripted(module, tmp_path / "sides.pt"),
        Format.TORCHSCRIPT,
        inputs=[make_spec(name, ("batch", 4)) for name in order],
        outputs=[make_spec("first", ("batch", 3)), make_spec("second", ("batch", 4))],
        options=options or {},
    )
    return module, context


@pytest.mark.parametrize("order", [("left", "right"), ("right", "left")])
def test_inputs_keep_their_names_whatever_their_order(tmp_path, make_context, make_spec, run_onnx, order):
    module, context = sides(tmp_path, make_context, make_spec, order)
    report = torchscript_onnx.convert(context).report

    left, right = torch.randn(5, 4), torch.randn(5, 4)
    wanted = module(left, right)
    got = run_onnx(context, {"left": left.numpy(), "right": right.numpy()})

    assert [item.name for item in report.inputs] == list(order)
    assert [item.name for item in report.outputs] == ["first", "second"]
    np.testing.assert_allclose(got["first"], wanted[0].detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(got["second"], wanted[1].numpy(), atol=1e-6)


def test_the_report_says_opset_operators_axes_and_size(tmp_path, make_context, make_spec):
    _, context = sides(tmp_path, make_context, make_spec)
    seen = []
    context.progress = lambda fraction, message: seen.append(fraction)
    outcome = torchscript_onnx.convert(context)

    assert outcome.outputs == {"model": "model"}
    assert outcome.report.opset == 17
    assert "Gemm" in outcome.report.operators
    assert outcome.report.inputs[0].shape == ("batch", 4)
    assert outcome.report.outputs[0].shape == ("batch", 3)
    assert outcome.report.size_bytes == (context.out / "model" / "model.onnx").stat().st_size
    assert sorted(path.name for path in context.out.iterdir()) == ["model"]
    assert seen == sorted(seen) and seen[-1] == 1.0


def test_a_loop_over_the_sequence_stays_a_loop(tmp_path, make_context, make_spec, run_onnx):
    module = Loop().eval()
    context = make_context(
        "torchscript_onnx",
        scripted(module, tmp_path / "loop.pt"),
        Format.TORCHSCRIPT,
        inputs=[make_spec("x", ("batch", "sequence", 4))],
        outputs=[make_spec("state", ("batch", 4))],
    )
    torchscript_onnx.convert(context)

    x = torch.randn(3, 21, 4)
    np.testing.assert_allclose(run_onnx(context, {"x": x.numpy()})["state"], module(x).detach().numpy(), atol=1e-5)


def test_an_input_that_nothing_uses_is_served_all_the_same(tmp_path, make_context, make_spec, run_onnx):
    class Ignores(nn.Module):
        def forward(self, ignored: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    context = make_context(
        "torchscript_onnx",
        scripted(Ignores(), tmp_path / "ignores.pt"),
        Format.TORCHSCRIPT,
        inputs=[make_spec("ignored", ("batch", 2)), make_spec("x", ("batch", 2))],
        outputs=[make_spec("y", ("batch", 2))],
    )
    report = torchscript_onnx.convert(context).report

    x = np.ones((3, 2), np.float32)
    assert [item.name for item in report.inputs] == ["ignored", "x"]
    np.testing.assert_array_equal(run_onnx(context, {"ignored": x * 9, "x": x})["y"], x * 2)


def test_a_dict_of_outputs_keeps_its_names(tmp_path, make_context, make_spec, run_onnx):
    class Heads(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"double": x * 2, "half": x / 2}

    context = make_context(
        "torchscript_onnx",
        scripted(Heads(), tmp_path / "heads.pt"),
        Format.TORCHSCRIPT,
        inputs=[make_spec("x", ("batch", 2))],
        outputs=[make_spec("half", ("batch", 2)), make_spec("double", ("batch", 2))],
    )
    report = torchscript_onnx.convert(context).report

    assert [item.name for item in report.outputs] == ["half", "double"]
    assert run_onnx(context, {"x": np.full((1, 2), 4, np.float32)})["half"].tolist() == [[2, 2]]


def test_an_operator_without_a_translation_is_named(tmp_path, make_context, make_spec):
    class Special(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    context = make_context(
        "torchscript_onnx",
        scripted(Special(), tmp_path / "special.pt"),
        Format.TORCHSCRIPT,
        inputs=[make_spec("x", ("batch", 4))],
        outputs=[make_spec("y", ("batch", 4))],
    )
    with pytest.raises(ConversionFailed, match=r"special_bessel_j0 is not supported") as failure:
        torchscript_onnx.convert(context)
    assert failure.value.facts["operator"] == "aten::special_bessel_j0"


def test_the_dynamo_exporter_is_refused_for_torchscript(tmp_path, make_context, make_spec):
    _, context = sides(tmp_path, make_context, make_spec, options={"exporter": "dynamo", "opset": 20})
    with pytest.raises(ConversionFailed, match="does not read TorchScript"):
        torchscript_onnx.convert(context)
