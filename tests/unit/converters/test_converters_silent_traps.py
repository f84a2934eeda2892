"""What goes wrong without a word elsewhere: each trap taken from the dropped file to the verdict on its candidate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from converters import module_onnx, parity, probe, reference, torchscript_onnx
from schemas.descriptor import Format, ModelDescriptor
from schemas.errors import ModelFailed
from schemas.evidence import ConversionReport, ParityReport, ReferenceReport
from schemas.sidecar import ModuleSource, Sidecar, SidecarInput
from schemas.step_io import StepContext

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
ONE_OPTIONS = {"precision": "fp32"}


@dataclass
class Proven:
    descriptor: ModelDescriptor
    reference: ReferenceReport
    parity: ParityReport
    conversion: ConversionReport
    folder: Path
    """Where the reference and the converted model stand, in ``reference`` and ``model``."""


@pytest.fixture
def journey(make_context, tmp_path):
    """Return how to take a file from probe to parity in this process."""

    def described(model: Path, format: Format, sidecar: Sidecar | None = None, **paths: Path) -> ModelDescriptor:
        context = make_context("probe", model, format, sidecar=sidecar, **paths)
        return probe.probe(context).report.descriptor

    def known(kind: str, descriptor: ModelDescriptor, model: Path, **more: Any) -> StepContext:
        context = make_context(kind, model, descriptor.format, **more)
        context.request = context.request.model_copy(update={"descriptor": descriptor})
        return context

    def run(
        saved: Any, format: Format = Format.TORCHSCRIPT, *, sidecar: Sidecar | None = None, change: Any = None, **paths
    ) -> Proven:
        model = saved if isinstance(saved, Path) else tmp_path / "dropped.pt"
        if not isinstance(saved, Path):
            saved.save(str(model))
        descriptor = described(model, format, sidecar, **paths)
        given = {"sidecar": sidecar, **paths}
        referred = known("reference", descriptor, model, **given)
        told = reference.reference(referred).report
        folder = referred.out / "reference"
        kind, converter = (
            ("torchscript_onnx", torchscript_onnx) if format is Format.TORCHSCRIPT else ("module_onnx", module_onnx)
        )
        converting = known(kind, descriptor, model, reference=folder, **given)
        report = converter.convert(converting).report
        result = converting.out / "model"
        if change is not None:
            change(result / "model.onnx")
        compared = known("parity", descriptor, result, reference=folder, sidecar=sidecar, options=ONE_OPTIONS)
        return Proven(descriptor, told, parity.parity(compared).report, report, converting.out)

    return run


def traced(module: nn.Module, *example: torch.Tensor, train: bool = False) -> Any:
    torch.manual_seed(0)
    return torch.jit.trace(module.train(train), example, check_trace=False)


def renamed(file: Path, mapping: dict[str, str]) -> None:
    """Give tensors of the graph other names, as an exporter that goes by position would."""
    model = onnx.load(file)
    for node in model.graph.node:
        node.input[:] = [mapping.get(name, name) for name in node.input]
        node.output[:] = [mapping.get(name, name) for name in node.output]
    onnx.save(model, file)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.left(query) - self.right(key).tanh(), self.left(query) * 2


def test_inputs_of_one_shape_that_are_swapped_fail_parity(journey):
    pair = traced(Pair(), torch.randn(2, 4), torch.randn(2, 4))

    right = journey(pair)
    swapped = journey(pair, change=lambda file: renamed(file, {"query": "key", "key": "query"}))

    assert right.parity.passed, right.parity.reason
    assert [spec.name for spec in right.parity.inputs] == ["query", "key"]
    assert not swapped.parity.passed and "output_0" in swapped.parity.reason


def test_outputs_of_one_shape_that_are_swapped_fail_parity(journey):
    pair = traced(Pair(), torch.randn(2, 4), torch.randn(2, 4))

    swapped = journey(pair, change=lambda file: renamed(file, {"output_0": "output_1", "output_1": "output_0"}))

    assert not swapped.parity.passed


def test_dropout_that_a_trace_left_on_is_told_as_the_models_own_fault(journey):
    net = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 2))

    with pytest.raises(ModelFailed, match="differently each time") as failure:
        journey(traced(net, torch.randn(2, 4), train=True))

    assert "model.eval()" in failure.value.hint


def test_dropout_and_batch_norm_of_a_script_saved_in_train_mode_are_put_into_eval_mode(journey):
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)).train()

    proven = journey(torch.jit.script(net))

    assert proven.parity.passed, proven.parity.reason
    assert proven.reference.deterministic and proven.parity.batching.holds


def test_batch_norm_that_a_trace_left_in_train_mode_is_not_served_in_batches(journey):
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 2))

    proven = journey(traced(net, torch.randn(4, 4), train=True))

    assert not proven.reference.batching.holds
    assert all(spec.shape[0] != "batch" for spec in proven.parity.inputs)


def test_outputs_that_are_labels_alone_are_compared_by_agreement(journey):
    class Label(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x).argmax(1)

    proven = journey(traced(Label(), torch.randn(2, 4)))

    assert proven.descriptor.outputs[0].shape == ("batch",)
    assert proven.parity.passed and proven.parity.outputs[0].method == "agreement"


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_token_ids_keep_the_dtype_that_the_model_was_declared_with(journey, dtype):
    net = nn.Sequential(nn.Embedding(30, 4), nn.Linear(4, 2))
    ids = torch.zeros(2, 5, dtype=getattr(torch, dtype))
    declared = Sidecar(inputs=(SidecarInput(name="input", dtype=dtype, shape=("batch", "sequence")),))

    proven = journey(traced(net, ids), sidecar=declared)

    assert proven.parity.passed, proven.parity.reason
    assert proven.parity.inputs[0].dtype == dtype


def test_scalar_and_empty_outputs_are_served_as_they_are(journey):
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            y = self.head(x)
            return {"scores": y, "mean": y.mean(), "nothing": y[:, :0]}

    net = torch.jit.trace(Odd().eval(), torch.randn(2, 4), strict=False)
    proven = journey(net)

    shapes = {spec.name: spec.shape for spec in proven.descriptor.outputs}
    assert shapes["mean"] == () and shapes["nothing"][1] == 0
    assert proven.parity.passed, proven.parity.reason
    # A mean over all rows is not a row's own: requests put together would change each other's answers.
    assert not proven.parity.batching.holds


def test_nan_on_both_sides_agrees_and_on_one_side_fails(journey):
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.log(self.head(x))  # of a negative number: not a number

    def heal(file: Path) -> None:
        model = onnx.load(file)
        model.graph.node[-1].output[0] = "raw"
        model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
        model.graph.node.append(helper.make_node("IsNaN", ["raw"], ["bad"]))
        model.graph.node.append(helper.make_node("Where", ["bad", "zero", "raw"], ["output"]))
        onnx.save(model, file)

    net = traced(Sometimes(), torch.randn(2, 4))
    both, healed = journey(net), journey(net, change=heal)

    assert both.parity.passed, both.parity.reason
    assert not healed.parity.passed


def test_weights_that_are_nan_are_told_instead_of_proven(journey):
    net = nn.Sequential(nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight[:] = float("nan")

    with pytest.raises(ModelFailed, match=r"NaN|not a number"):
        journey(traced(net, torch.randn(2, 4)))


class Tied(nn.Module):
    def __init__(self, tokens: int = 4000, width: int = 32) -> None:
        super().__init__()
        self.table = nn.Embedding(tokens, width)
        self.body = nn.Linear(width, width)
        self.head = nn.Linear(width, tokens, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.table(ids)))


TIED_CODE = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self, tokens=4000, width=32):
        super().__init__()
        self.table = nn.Embedding(tokens, width)
        self.body = nn.Linear(width, width)
        self.head = nn.Linear(width, tokens, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(self.body(self.table(ids)))
"""


@pytest.mark.parametrize("safetensors", [True, False])
def test_tied_weights_are_exported_once(journey, tmp_path, safetensors):
    from safetensors.torch import save_file

    module = Tied().eval()
    weights = tmp_path / "tied"
    if safetensors:
        save_file({key: value for key, value in module.state_dict().items() if key != "head.weight"}, weights)
    else:
        torch.save(module.state_dict(), weights)
    code = tmp_path / "code"
    code.mkdir()
    (code / "model.py").write_text(TIED_CODE)

    proven = journey(
        weights,
        Format.SAFETENSORS if safetensors else Format.TORCH_STATE_DICT,
        sidecar=Sidecar(module=ModuleSource(file="model.py", class_name="Tied")),
        code=code,
    )

    assert proven.parity.passed, proven.parity.reason
    once = 4 * 4000 * 32
    assert once < proven.conversion.size_bytes < 1.2 * once


def test_external_data_is_found_beside_a_renamed_file_and_named_when_it_is_missing(make_context, tmp_path):
    folder = tmp_path / "drop"
    folder.mkdir()
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, ["batch", 64])],
        [value("y", TensorProto.FLOAT, ["batch", 64])],
        [numpy_helper.from_array(np.eye(64, dtype=np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, folder / "net.onnx", save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    (folder / "net.onnx").rename(folder / "classifier-v2.onnx")

    described = probe.probe(make_context("probe", folder, Format.ONNX)).report.descriptor

    assert described.inputs[0].shape == ("batch", 64)
    (folder / "net.onnx.data").unlink()
    with pytest.raises(ModelFailed, match=r"net\.onnx\.data"):
        probe.probe(make_context("probe", folder, Format.ONNX))


def test_an_axis_that_fails_at_another_size_is_fixed_in_the_descriptor_and_in_what_is_served(journey):
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(16 * 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.reshape(x.shape[0], 16 * 4))

    declared = Sidecar(inputs=(SidecarInput(name="x", dtype="float32", shape=("batch", "sequence", 4)),))
    proven = journey(torch.jit.script(Folded().eval()), sidecar=declared)

    assert proven.descriptor.inputs[0].shape == ("batch", 16, 4)
    assert proven.parity.inputs[0].shape == ("batch", 16, 4)


def test_a_trace_that_froze_its_batch_is_served_one_row_at_a_time(journey):
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.reshape(int(x.shape[0]), 8))

    declared = Sidecar(inputs=(SidecarInput(name="x", dtype="float32", shape=("batch", 2, 4)),))
    proven = journey(traced(Frozen(), torch.randn(1, 2, 4)), sidecar=declared)

    assert proven.descriptor.inputs[0].shape[0] == 1
    assert proven.parity.passed and not proven.parity.batching.holds


def test_a_float64_model_stays_float64(journey):
    proven = journey(
        traced(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double(), torch.randn(2, 4).double())
    )

    assert proven.parity.passed, proven.parity.reason
    assert proven.parity.inputs[0].dtype == proven.parity.served_outputs[0].dtype == "float64"


def test_an_input_that_nothing_uses_stays_an_input(journey):
    class Ignoring(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.head(x)

    declared = Sidecar(
        inputs=(
            SidecarInput(name="x", dtype="float32", shape=("batch", 4)),
            SidecarInput(name="mask", dtype="float32", shape=("batch", 4)),
        )
    )
    proven = journey(traced(Ignoring(), torch.randn(2, 4), torch.randn(2, 4)), sidecar=declared)

    assert proven.parity.passed, proven.parity.reason
    assert [spec.name for spec in proven.parity.inputs] == ["x", "mask"]
    assert any("accepted and ignored" in note for note in proven.conversion.notes)


def test_outputs_that_are_one_tensor_or_called_as_an_input_have_names_of_their_own(journey):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            y = self.head(x)
            return {"x": x, "first": y, "second": y}

    proven = journey(torch.jit.trace(Twice().eval(), torch.randn(2, 4), strict=False))

    assert proven.parity.passed, proven.parity.reason
    assert {spec.name for spec in proven.parity.served_outputs} == {"x_output", "first", "second"}


def test_an_output_whose_length_depends_on_values_has_a_dynamic_axis_and_no_batch(journey):
    class Above(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nonzero(self.head(x) > 0)

    proven = journey(torch.jit.script(Above().eval()))

    shape = proven.descriptor.outputs[0].shape
    assert isinstance(shape[0], str) and shape[0] != "batch" and shape[1] == 2
    assert proven.parity.passed, proven.parity.reason
    assert not proven.parity.batching.holds
