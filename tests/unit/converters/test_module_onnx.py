from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from converters import module_onnx
from schemas.descriptor import Format
from schemas.errors import ModelFailed, NeedsInput
from schemas.sidecar import ModuleSource, Sidecar

pytestmark = pytest.mark.torch

CODE = """
import torch
from torch import nn
from sizes import WIDTH

class Net(nn.Module):
    def __init__(self, hidden=8):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(hidden, 2)

    def forward(self, x, scale=None):
        return self.head(self.body(x))
"""


def twin(hidden: int = 8) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.5))
            self.head = nn.Linear(hidden, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x))

    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "model.py").write_text(CODE)
    (folder / "sizes.py").write_text("WIDTH = 4\n")
    return folder


@pytest.fixture
def make_module_context(tmp_path, make_context, make_spec, code):
    def make(saved: object, *, safetensors: bool = False, **source):
        path = tmp_path / "weights"
        if safetensors:
            save_file(saved, path)
        else:
            torch.save(saved, path)
        return make_context(
            "module_onnx",
            path,
            Format.SAFETENSORS if safetensors else Format.TORCH_STATE_DICT,
            inputs=[make_spec("x", ("batch", 4))],
            outputs=[make_spec("y", ("batch", 2))],
            sidecar=Sidecar(module=ModuleSource(**{"file": "model.py", "class_name": "Net", **source})),
            code=code,
        )

    return make


def answers(run_onnx, context, module: nn.Module) -> None:
    x = torch.randn(5, 4)
    np.testing.assert_allclose(run_onnx(context, {"x": x.numpy()})["y"], module(x).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("safetensors", [False, True])
def test_weights_and_their_class_become_onnx(make_module_context, run_onnx, safetensors):
    module = twin(hidden=6)
    context = make_module_context(module.state_dict(), safetensors=safetensors, args={"hidden": 6})
    report = module_onnx.convert(context).report
    assert report.inputs[0].shape == ("batch", 4)
    answers(run_onnx, context, module)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_weights_inside_a_checkpoint_are_found(make_module_context, run_onnx, key):
    module = twin()
    context = make_module_context({"epoch": 3, key: module.state_dict()})
    report = module_onnx.convert(context).report
    assert f"under {key!r}" in report.notes[0]
    answers(run_onnx, context, module)


def test_the_prefix_of_data_parallel_is_taken_off_with_a_note(make_module_context, run_onnx):
    module = twin()
    context = make_module_context({f"module.{key}": value for key, value in module.state_dict().items()})
    report = module_onnx.convert(context).report
    assert "DataParallel" in report.notes[0]
    answers(run_onnx, context, module)


def test_the_dynamo_exporter_gives_the_same(tmp_path, make_context, make_spec, code, run_onnx):
    module = twin()
    torch.save(module.state_dict(), tmp_path / "weights")
    context = make_context(
        "module_onnx",
        tmp_path / "weights",
        Format.TORCH_STATE_DICT,
        inputs=[make_spec("x", ("batch", 4))],
        outputs=[make_spec("y", ("batch", 2))],
        sidecar=Sidecar(module=ModuleSource(file="model.py", class_name="Net")),
        options={"exporter": "dynamo", "opset": 20},
        code=code,
    )
    report = module_onnx.convert(context).report
    assert report.opset == 20
    assert report.inputs[0].shape == ("batch", 4)
    answers(run_onnx, context, module)


def test_keys_that_do_not_fit_are_named(make_module_context):
    state = {
        ("tail" + key.removeprefix("head")) if key.startswith("head") else key: v
        for key, v in twin().state_dict().items()
    }
    with pytest.raises(ModelFailed, match=r"missing: head.bias, head.weight; unexpected: tail.bias, tail.weight"):
        module_onnx.convert(make_module_context(state))


def test_a_shape_that_does_not_fit_is_told_with_both_shapes(make_module_context):
    with pytest.raises(ModelFailed, match=r"body.0.weight is \(6, 4\) in the file and \(8, 4\) in the class"):
        module_onnx.convert(make_module_context(twin(hidden=6).state_dict()))


def test_a_missing_class_is_told_with_those_there_are(make_module_context):
    with pytest.raises(ModelFailed, match="has no class Wrong") as failure:
        module_onnx.convert(make_module_context(twin().state_dict(), class_name="Wrong"))
    assert "Net" in failure.value.hint


def test_code_that_fails_is_told_with_its_line(make_module_context, code):
    (code / "broken.py").write_text("import torch\n\nclass Net(torch.nn.Module):\n    x = undefined_name\n")
    with pytest.raises(ModelFailed, match=r"broken.py line 4: NameError"):
        module_onnx.convert(make_module_context(twin().state_dict(), file="broken.py"))


def test_a_wrong_argument_is_told(make_module_context):
    with pytest.raises(ModelFailed, match="unexpected keyword argument 'depth'"):
        module_onnx.convert(make_module_context(twin().state_dict(), args={"depth": 3}))


def test_weights_without_a_class_ask_for_it(tmp_path, make_context):
    torch.save(twin().state_dict(), tmp_path / "weights")
    with pytest.raises(NeedsInput, match="Which class"):
        module_onnx.convert(make_context("module_onnx", tmp_path / "weights", Format.TORCH_STATE_DICT))
