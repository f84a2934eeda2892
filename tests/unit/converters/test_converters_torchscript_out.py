from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from converters import torch_export, torch_source, torch_torchscript
from converters.runners import load_candidate
from converters.torch_torchscript import argument_names
from converters.trace_inputs import TraceCase
from schemas.descriptor import Format
from schemas.errors import ConversionFailed, ModelFailed

pytestmark = pytest.mark.torch


class Sides(nn.Module):
    """Takes two inputs of one shape that do different things, so that swapping them shows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.dropout(self.norm(self.linear(left))) - right[:, :3], left + 2 * right


class Frozen(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0] * 4) * 2


class Loop(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = torch.zeros(x.size(0))
        for step in range(x.size(1)):
            state = torch.tanh(state + x[:, step])
        return state


def exported(module: nn.Module, args: tuple[Any, ...], path: Path, **shapes: Any) -> Path:
    torch.export.save(torch.export.export(module.eval(), args, **shapes), path)
    return path


def scripted(module: nn.Module, path: Path) -> Path:
    # Deprecated, and what people's files were made with.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module.eval()), path)
    return path


def sides(tmp_path, make_context, make_spec, names=("left", "right"), options=None):
    torch.manual_seed(0)
    module = Sides().eval()
    return module, make_context(
        "torch_torchscript",
        scripted(module, tmp_path / "sides.pt"),
        Format.TORCHSCRIPT,
        inputs=[make_spec(name, ("batch", 4)) for name in names],
        outputs=[make_spec("first", ("batch", 3)), make_spec("second", ("batch", 4))],
        options=options or {},
    )


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("names", [("left", "right"), ("right", "left")])
def test_the_file_answers_what_the_original_answers_under_its_names(tmp_path, make_context, make_spec, names, freeze):
    module, context = sides(tmp_path, make_context, make_spec, names, {"freeze": freeze})
    report = torch_torchscript.convert(context).report
    runner = load_candidate(context.out / "model", Format.TORCHSCRIPT, threads=1)

    left, right = torch.randn(5, 4), torch.randn(5, 4)
    wanted = module(left, right)
    got = runner.run({"left": left.numpy(), "right": right.numpy()})

    assert runner.runtime == "torchscript"
    assert [item.name for item in runner.inputs] == list(names) and list(got) == ["first", "second"]
    np.testing.assert_allclose(got["first"], wanted[0].detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(got["second"], wanted[1].numpy(), atol=1e-6)
    assert report.size_bytes > 0 and any("2.6" in note for note in report.notes)


def test_arguments_of_forward_are_the_inputs_so_that_triton_finds_them_by_name(tmp_path, make_context, make_spec):
    _, context = sides(tmp_path, make_context, make_spec, ("right", "left"))
    torch_torchscript.convert(context)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.load(context.out / "model" / "model.pt")
    arguments = [argument.name for argument in module.forward.schema.arguments[1:]]
    assert [name.split(".")[0] for name in arguments] == ["right", "left"]


def test_names_that_no_argument_can_have_become_ones_it_can():
    assert argument_names(("x", "input.1", "class", "1st", "self")) == ("x", "input_1", "_class", "_1st", "_self")
    assert argument_names(("a b", "a.b")) == ("a_b", "a_b_")


def test_names_with_dots_stay_visible(tmp_path, make_context, make_spec):
    _, context = sides(tmp_path, make_context, make_spec, ("in.left", "in.right"))
    torch_torchscript.convert(context)
    runner = load_candidate(context.out / "model" / "model.pt", Format.TORCHSCRIPT, threads=1)
    zeros = np.zeros((2, 4), np.float32)
    assert runner.run({"in.left": zeros, "in.right": zeros + 1})["second"].tolist() == (zeros + 2).tolist()


def test_an_exported_program_becomes_torchscript_with_its_dynamic_batch(tmp_path, make_context, make_spec):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    path = exported(module, (torch.randn(3, 4),), tmp_path / "m.pt2", dynamic_shapes={"input": {0: batch}})
    context = make_context(
        "torch_torchscript",
        path,
        Format.EXPORTED_PROGRAM,
        inputs=[make_spec("input", ("batch", 4))],
        outputs=[make_spec("output", ("batch", 2))],
    )
    torch_torchscript.convert(context)
    runner = load_candidate(context.out / "model", Format.TORCHSCRIPT, threads=1)
    x = torch.randn(7, 4)
    np.testing.assert_allclose(runner.run({"input": x.numpy()})["output"], module(x).detach().numpy(), atol=1e-6)


def test_scripted_control_flow_survives(tmp_path, make_context, make_spec):
    context = make_context(
        "torch_torchscript",
        scripted(Loop(), tmp_path / "loop.pt"),
        Format.TORCHSCRIPT,
        inputs=[make_spec("x", ("batch", "time"))],
        outputs=[make_spec("output", ("batch",))],
    )
    torch_torchscript.convert(context)
    runner = load_candidate(context.out / "model", Format.TORCHSCRIPT, threads=1)
    x = torch.randn(3, 11)
    np.testing.assert_allclose(runner.run({"x": x.numpy()})["output"], Loop()(x).numpy(), atol=1e-6)


def test_sizes_that_a_trace_would_freeze_stay_computations(tmp_path, make_context, make_spec):
    batch = torch.export.Dim("batch", min=1, max=64)
    path = exported(Frozen(), (torch.randn(3, 4),), tmp_path / "m.pt2", dynamic_shapes={"x": {0: batch}})
    context = make_context(
        "torch_torchscript",
        path,
        Format.EXPORTED_PROGRAM,
        inputs=[make_spec("x", ("batch", 4))],
        outputs=[make_spec("output", ("values",))],
    )
    report = torch_torchscript.convert(context).report
    assert any("Compiled from the exported graph" in note for note in report.notes)
    runner = load_candidate(context.out / "model", Format.TORCHSCRIPT, threads=1)
    x = np.arange(20, dtype=np.float32).reshape(5, 4)
    assert runner.run({"x": x})["output"].tolist() == (x * 2).reshape(-1).tolist()


def test_a_decision_that_was_frozen_is_found(tmp_path, make_context, make_spec):
    class Fresh(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if bool(x.sum() > 0) else x - 3

    module = Fresh()
    flat = torch_source.flat_module(module, lambda inner, given: inner(*given), ("output",), ("x",))
    source = torch_source.TorchSource(flat, ("x",))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch_torchscript._traced(source, (torch.ones(2, 4),))
    cases = [TraceCase({"x": np.full((rows, 4), sign, np.float32)}) for rows, sign in ((2, 1), (3, -1))]
    with pytest.raises(ConversionFailed, match="sizes it was not traced at"):
        torch_export.prove_run(
            source, cases, lambda feeds: {"output": traced(torch.from_numpy(feeds["x"]))[0].numpy()}, "traced module"
        )


def test_a_file_that_names_no_tensors_is_not_a_candidate(tmp_path):
    path = scripted(Loop(), tmp_path / "bare.pt")
    with pytest.raises(ModelFailed, match="does not name its tensors"):
        load_candidate(path, Format.TORCHSCRIPT, threads=1)
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ModelFailed, match="cannot load"):
        load_candidate(tmp_path / "broken.pt", Format.TORCHSCRIPT, threads=1)
