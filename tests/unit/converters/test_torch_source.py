from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from converters import torch_source
from schemas.descriptor import Format
from schemas.errors import ModelFailed, NeedsInput, Unsupported

pytestmark = pytest.mark.torch


class Dropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.9)

    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.linear(x)) + shift


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


def scripted(module: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), path)
    return path


def exported(module: nn.Module, path: Path) -> Path:
    torch.export.save(torch.export.export(module, (torch.randn(2, 4), torch.randn(2, 4))), path)
    return path


@pytest.mark.parametrize(
    ("save", "format"), [(scripted, Format.TORCHSCRIPT), (exported, Format.EXPORTED_PROGRAM)], ids=["script", "export"]
)
def test_a_source_runs_in_eval_mode_whatever_train_says(tmp_path, make_context, save, format):
    module = Dropped().eval()
    source = torch_source.load(make_context("probe", save(module, tmp_path / "model"), format))
    x, shift = torch.randn(2, 4), torch.randn(2, 4)
    source.module.train()
    (got,) = source.module(x, shift)
    assert source.input_names == ("x", "shift")
    assert source.output_names == ()
    assert not source.module.training
    torch.testing.assert_close(got, module(x, shift))
    assert not got.requires_grad


def test_a_module_scripted_in_train_mode_runs_in_eval_mode(tmp_path, make_context):
    module = Dropped().train()
    source = torch_source.load(make_context("probe", scripted(module, tmp_path / "model"), Format.TORCHSCRIPT))
    x, shift = torch.randn(2, 4), torch.randn(2, 4)
    torch.testing.assert_close(source.run({"x": x, "shift": shift})["output"], module.eval()(x, shift))


def test_a_frozen_module_loads(tmp_path, make_context):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.freeze(torch.jit.script(Dropped().eval())), tmp_path / "model")
    source = torch_source.load(make_context("probe", tmp_path / "model", Format.TORCHSCRIPT))
    assert source.input_names == ("x", "shift")


@pytest.mark.parametrize(
    ("save", "format"), [(scripted, Format.TORCHSCRIPT), (exported, Format.EXPORTED_PROGRAM)], ids=["script", "export"]
)
def test_the_descriptors_order_of_inputs_does_not_swap_them(tmp_path, make_context, make_spec, save, format):
    module = Dropped().eval()
    specs = [make_spec("shift", (2, 4)), make_spec("x", (2, 4))]
    context = make_context("probe", save(module, tmp_path / "model"), format, inputs=specs)
    source = torch_source.load(context)
    x, shift = torch.randn(2, 4), torch.randn(2, 4)
    assert source.input_names == ("shift", "x")
    torch.testing.assert_close(source.module(shift, x)[0], module(x, shift))


@pytest.mark.parametrize(
    ("save", "format"), [(scripted, Format.TORCHSCRIPT), (exported, Format.EXPORTED_PROGRAM)], ids=["script", "export"]
)
def test_a_persons_own_names_stand_for_the_arguments_in_order(tmp_path, make_context, make_spec, save, format):
    module = Dropped().eval()
    specs = [make_spec("pixels", (2, 4)), make_spec("bias", (2, 4))]
    context = make_context(
        "probe", save(module, tmp_path / "model"), format, inputs=specs, outputs=[make_spec("scores", (2, 4))]
    )
    x, shift = torch.randn(2, 4), torch.randn(2, 4)
    got = torch_source.load(context).run({"bias": shift, "pixels": x})
    assert list(got) == ["scores"]
    torch.testing.assert_close(got["scores"], module(x, shift))


def test_an_argument_with_a_default_is_left_out_unless_named(tmp_path, make_context, make_spec):
    class Optional(nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, flag: bool = False) -> torch.Tensor:
            return x if mask is None else x * mask

    path = scripted(Optional(), tmp_path / "model")
    assert torch_source.load(make_context("probe", path, Format.TORCHSCRIPT)).input_names == ("x",)
    specs = [make_spec("x", (2,)), make_spec("mask", (2,))]
    source = torch_source.load(make_context("probe", path, Format.TORCHSCRIPT, inputs=specs))
    assert source.run({"x": torch.ones(2), "mask": torch.zeros(2)})["output"].tolist() == [0, 0]


def test_an_argument_that_is_no_tensor_is_named(tmp_path, make_context):
    class Counts(nn.Module):
        def forward(self, x: torch.Tensor, times: int) -> torch.Tensor:
            return x * times

    path = scripted(Counts(), tmp_path / "model")
    with pytest.raises(Unsupported, match="takes 'times' of type int"):
        torch_source.load(make_context("probe", path, Format.TORCHSCRIPT))


def test_more_names_than_arguments_are_refused(tmp_path, make_context, make_spec):
    specs = [make_spec(name, (2, 4)) for name in "abc"]
    for save, format in ((scripted, Format.TORCHSCRIPT), (exported, Format.EXPORTED_PROGRAM)):
        path = save(Dropped().eval(), tmp_path / "model")
        with pytest.raises(ModelFailed, match=r"3 inputs are named \(a, b, c\)"):
            torch_source.load(make_context("probe", path, format, inputs=specs))


@pytest.mark.parametrize("format", [Format.TORCHSCRIPT, Format.EXPORTED_PROGRAM])
@pytest.mark.parametrize("keep", [0, 200])
def test_a_truncated_file_is_told_as_the_models_fault(tmp_path, make_context, format, keep):
    save = scripted if format is Format.TORCHSCRIPT else exported
    path = save(Dropped().eval(), tmp_path / "model")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelFailed, match="torch cannot load"):
        torch_source.load(make_context("probe", path, format))


def test_weights_alone_ask_for_their_class(tmp_path, make_context):
    torch.save(Dropped().state_dict(), tmp_path / "model")
    with pytest.raises(NeedsInput) as question:
        torch_source.load(make_context("probe", tmp_path / "model", Format.TORCH_STATE_DICT))
    assert "class_name" in question.value.hint


def test_a_format_of_another_runtime_is_refused(tmp_path, make_context):
    (tmp_path / "model").write_bytes(b"x")
    with pytest.raises(Unsupported):
        torch_source.load(make_context("probe", tmp_path / "model", Format.SKLEARN))


def test_outputs_are_flattened_with_names():
    a, b, c = torch.zeros(1), torch.ones(1), torch.ones(2)
    assert list(torch_source.flatten(a)) == ["output"]
    assert list(torch_source.flatten((a,))) == ["output"]
    assert list(torch_source.flatten([a, None, b])) == ["output_0", "output_1"]
    assert list(torch_source.flatten({"logits": a, "states": (b, c), "loss": None, "n": 3})) == [
        "logits",
        "states_0",
        "states_1",
    ]
    assert list(torch_source.flatten(Pair(a, b))) == ["first", "second"]


trees = st.recursive(
    st.just("leaf"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(trees)
def test_no_tensor_of_an_output_is_lost(tree):
    count = 0

    def grow(node):
        nonlocal count
        if node == "leaf":
            count += 1
            return torch.tensor(count)
        return [grow(item) for item in node] if isinstance(node, list) else {k: grow(v) for k, v in node.items()}

    flat = torch_source.flatten(grow(tree))
    values = [int(tensor) for tensor in flat.values()]
    assert len(values) == count
    assert sorted(values) == list(range(1, count + 1))


def test_outputs_are_picked_by_name_or_else_by_position():
    flat = {"a": torch.zeros(1), "b": torch.ones(1)}
    assert list(torch_source.name_outputs(flat, ("b", "a"))) == ["b", "a"]
    assert int(torch_source.name_outputs(flat, ("x", "y"))["y"]) == 1
    with pytest.raises(ModelFailed, match="returns 2 tensors"):
        torch_source.name_outputs(flat, ("x", "y", "z"))
