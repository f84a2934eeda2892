"""Small real models of every served format, made once a run, and the two ways to ask about a file."""

from __future__ import annotations

import json
import math
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from analyzer import describe
from schemas.descriptor import AnalysisReport, ModelDescriptor
from schemas.errors import ErrorDocument

_ITEM_BYTES = {"F32": 4, "F16": 2, "I64": 8, "U8": 1}


@pytest.fixture
def refused() -> Callable[..., ErrorDocument]:
    """Return the refusal of a path, which must have the given code, a sentence and a hint."""

    def check(path: Path, code: str, **more: Any) -> ErrorDocument:
        refusal = describe(path, **more).refusal
        assert refusal is not None
        assert refusal.code == code, refusal
        assert refusal.message.endswith((".", "?")) and refusal.hint, refusal
        return refusal

    return check


@pytest.fixture
def accepted() -> Callable[..., ModelDescriptor]:
    """Return the descriptor of a path, which must not be refused."""

    def check(path: Path, **more: Any) -> ModelDescriptor:
        report: AnalysisReport = describe(path, **more)
        assert report.refusal is None, report.refusal
        return report.descriptor

    return check


@pytest.fixture(scope="session")
def torch_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small CNN in every way torch saves it."""
    import torch
    from safetensors.torch import save_file
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.bn = nn.BatchNorm2d(4)
            self.fc = nn.Linear(4, 2)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.fc(torch.relu(self.bn(self.conv(image))).mean((2, 3)))

    folder = tmp_path_factory.mktemp("torch")
    net = Net().eval()
    example = torch.zeros(2, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(net, example).save(str(folder / "traced.pt"))
        torch.jit.script(net).save(str(folder / "scripted.pt"))
        program = torch.export.export(net, (example,), dynamic_shapes={"image": {0: torch.export.Dim("batch")}})
        torch.export.save(program, folder / "program.pt2")
        torch.save(net.state_dict(), folder / "state.pth")
        torch.save({"epoch": 3, "model": net.state_dict()}, folder / "checkpoint.pth")
        torch.save(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), folder / "module.pt")
        torch.save(torch.zeros(3), folder / "tensor.pt")
        torch.save(net.state_dict(), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(net.state_dict(), folder / "weights.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def sklearn_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a fitted pipeline pickled at every protocol and dumped by joblib in every compression."""
    import joblib
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folder = tmp_path_factory.mktemp("sklearn")
    iris = load_iris()
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(iris.data, iris.target_names[iris.target])
    for protocol in range(6):
        (folder / f"protocol{protocol}.pkl").write_bytes(pickle.dumps(pipeline, protocol=protocol))
    joblib.dump(pipeline, folder / "plain.joblib")
    for codec in ("zlib", "gzip", "bz2", "lzma", "xz"):
        joblib.dump(pipeline, folder / f"{codec}.joblib", compress=(codec, 3))
    return folder


def _graph_model(
    shape: list[int | str | None] | None = None, nodes: list[Any] | None = None, dtype: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    shape = ["batch", 3] if shape is None else shape
    layers = [helper.make_node("Gemm", ["x", "weight"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    graph = helper.make_graph(
        layers if nodes is None else nodes,
        "main_graph",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0] if shape else None, 2])],
        [numpy_helper.from_array(np.ones((3, 2), np.float32), "weight")],
    )
    return helper.make_model(
        graph, producer_name="pytest", producer_version="1", opset_imports=[helper.make_opsetid("", 17)], ir_version=10
    )


@pytest.fixture
def graph_model() -> Callable[..., onnx.ModelProto]:
    """Return a maker of small valid models: Gemm then Relu on inputs (batch, 3) float32."""
    return _graph_model


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    """A valid ONNX file."""
    path = tmp_path / "model.onnx"
    onnx.save(_graph_model(), str(path))
    return path


@pytest.fixture
def onnx_folder(tmp_path: Path) -> Path:
    """A folder of model.onnx with its weights in model.data."""
    folder = tmp_path / "with_data"
    folder.mkdir()
    onnx.save_model(
        _graph_model(), str(folder / "model.onnx"), save_as_external_data=True, location="model.data", size_threshold=0
    )
    return folder


@pytest.fixture
def write_safetensors() -> Callable[[Path, dict[str, tuple[str, list[int]]]], None]:
    """Return a writer of safetensors files of zeros."""

    def write(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
        header: dict[str, object] = {}
        offset = 0
        for name, (dtype, shape) in tensors.items():
            end = offset + math.prod(shape) * _ITEM_BYTES[dtype]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(offset))

    return write


@pytest.fixture
def hf_folder(tmp_path: Path, write_safetensors: Callable[..., None]) -> Callable[..., Path]:
    """Return a maker of a Hugging Face folder with the given config and one tiny weight."""

    def make(**config: object) -> Path:
        folder = tmp_path / "hf"
        folder.mkdir()
        settings = {"architectures": ["BertModel"], "model_type": "bert", "transformers_version": "5.0.0", **config}
        (folder / "config.json").write_text(json.dumps(settings))
        write_safetensors(folder / "model.safetensors", {"w": ("F32", [2, 2])})
        return folder

    return make
