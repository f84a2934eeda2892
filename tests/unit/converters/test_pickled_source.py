"""Whole pickled modules: built from the globals the scan named, and from nothing else."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from converters import module_onnx, torch_source
from schemas.descriptor import Format
from schemas.errors import ModelFailed
from schemas.sidecar import ModuleSource, Sidecar

pytestmark = pytest.mark.torch

LAYERS = (
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.dropout.Dropout",
    "torch.nn.modules.batchnorm.BatchNorm1d",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2",
    "collections.OrderedDict",
    "builtins.set",
)
CODE = """
from torch import nn
from blocks import Block

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()

    def forward(self, x):
        return self.block(x)
"""
BLOCKS = """
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 2)

    def forward(self, x):
        return self.inner(x).tanh()
"""


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))


@pytest.fixture
def make_pickled(tmp_path, make_context, make_spec):
    def make(saved, names=LAYERS, *, zipped=True, **more):
        path = tmp_path / "module.pt"
        torch.save(saved, path, _use_new_zipfile_serialization=zipped)
        return make_context(
            "module_onnx",
            path,
            Format.TORCH_MODULE,
            inputs=[make_spec("input", ("batch", 4))],
            outputs=[make_spec("output", ("batch", 2))],
            descriptor={"pickle_globals": tuple(names)},
            **more,
        )

    return make


def test_a_pickled_module_in_train_mode_becomes_onnx_in_eval_mode(make_pickled, run_onnx):
    module = layers().train()
    context = make_pickled(module)

    report = module_onnx.convert(context).report

    x = torch.randn(5, 4)
    expected = module.eval()(x).detach().numpy()
    np.testing.assert_allclose(run_onnx(context, {"input": x.numpy()})["output"], expected, atol=1e-5)
    assert any("unpickled in the sandbox" in note for note in report.notes)


def test_a_module_inside_a_checkpoint_is_found(make_pickled):
    source = torch_source.load(make_pickled({"epoch": 3, "model": layers()}))

    assert any("under 'model'" in note for note in source.notes)


def test_the_format_before_1_6_is_told(make_pickled):
    with pytest.raises(ModelFailed, match=r"before 1\.6"):
        torch_source.load(make_pickled(layers(), zipped=False))


def test_what_the_scan_did_not_name_is_not_built(make_pickled):
    context = make_pickled(layers(), [name for name in LAYERS if "Dropout" not in name])

    with pytest.raises(ModelFailed, match=r"asks for torch.nn.modules.dropout.Dropout") as failure:
        torch_source.load(context)

    assert "torch.export.save" in failure.value.hint


@pytest.fixture
def own_classes(monkeypatch, tmp_path):
    """Net and Block of model.py and blocks.py, as a training script had them: Net in __main__."""
    blocks, main = types.ModuleType("blocks"), types.ModuleType("training")
    exec(BLOCKS, vars(blocks))
    monkeypatch.setitem(sys.modules, "blocks", blocks)
    exec(CODE, vars(main))
    monkeypatch.setitem(sys.modules, "training", main)
    for module, name in ((blocks, "Block"), (main, "Net")):
        cls = vars(module)[name]
        cls.__module__ = module.__name__
    code = tmp_path / "code"
    code.mkdir()
    (code / "model.py").write_text(CODE)
    (code / "blocks.py").write_text(BLOCKS)
    return main.Net, code


def test_ones_own_classes_come_from_the_sidecars_file_and_its_neighbours(
    make_pickled, make_spec, run_onnx, own_classes, monkeypatch
):
    cls, code = own_classes
    module = cls().eval()
    context = make_pickled(
        module,
        [*LAYERS, "training.Net", "blocks.Block"],
        sidecar=Sidecar(module=ModuleSource(file="model.py", class_name="Net")),
        code=code,
    )
    x = torch.randn(3, 4)
    expected = module(x).detach().numpy()
    for name in ("training", "blocks"):
        monkeypatch.delitem(sys.modules, name)

    descriptor = context.request.descriptor.model_copy(update={"inputs": (make_spec("x", ("batch", 4)),)})
    context.request = context.request.model_copy(update={"descriptor": descriptor})
    module_onnx.convert(context)

    np.testing.assert_allclose(run_onnx(context, {"x": x.numpy()})["output"], expected, atol=1e-5)


def test_a_class_that_no_package_has_is_told_with_what_to_do(make_pickled, own_classes, monkeypatch):
    cls, _ = own_classes
    context = make_pickled(cls(), [*LAYERS, "training.Net", "blocks.Block"])
    for name in ("training", "blocks"):
        monkeypatch.delitem(sys.modules, name)

    with pytest.raises(ModelFailed, match=r"made of training.Net, which is not there") as failure:
        torch_source.load(context)

    assert "class_name: Net" in failure.value.hint


def test_a_pickle_that_is_no_module_is_told(make_pickled):
    with pytest.raises(ModelFailed, match="holds a dict"):
        torch_source.load(make_pickled({"a": 1}))


def test_a_folder_of_code_is_only_importable_while_it_loads(make_pickled, own_classes):
    cls, code = own_classes
    before = list(sys.path)

    torch_source.load(
        make_pickled(
            cls(),
            [*LAYERS, "training.Net", "blocks.Block"],
            sidecar=Sidecar(module=ModuleSource(file="model.py", class_name="Net")),
            code=code,
        )
    )

    assert sys.path == before
    assert not Path(code / "__pycache__").exists()
