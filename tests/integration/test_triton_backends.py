"""OpenVINO IR and TorchScript as the deployer publishes them, in the real Triton, with stand-ins for its two backends.

The stand-ins (tests/tools/triton/openvino_model.py and pytorch_model.py) follow the C++ backends' rules for names,
types and batches; the libraries in them are newer than a release's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deployer import publish, rollback
from deployer.config_checks import check_entry
from deployer.next_steps import curl_line, python_client
from schemas.deployment import EntrySpec
from schemas.descriptor import Dim, DType, Format, KnownBy, TensorSpec
from schemas.evidence import BatchProof

pytestmark = pytest.mark.triton
TOOLS = Path(__file__).parents[1] / "tools" / "triton"
PROVEN = BatchProof(holds=True, reason="Rows together gave what rows one by one gave.", sizes=(1, 2, 8))
LEFT = np.arange(12, dtype=np.float32).reshape(3, 4)
RIGHT = np.ones((3, 4), dtype=np.float32)


def tensor(name: str, dtype: DType, *shape: Dim) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape, known_by=KnownBy.PROBE)


def spec(format: Format, version: int, inputs: tuple[str, str], outputs: tuple[str, str] = ("sum", "first")) -> Any:
    return EntrySpec(
        name="sides",
        version=version,
        format=format,
        inputs=tuple(tensor(name, "float32", "batch", 4) for name in inputs),
        outputs=(tensor(outputs[0], "float32", "batch", 4), tensor(outputs[1], "float32", "batch")),
        batching=PROVEN,
        # What deployer.entry decides: OpenVINO's backend would run batches of the largest size only.
        max_batch_size=0 if format is Format.OPENVINO else 8,
        parameters={"NUM_STREAMS": "1", "PERFORMANCE_HINT": "LATENCY"} if format is Format.OPENVINO else {},
    )


@pytest.fixture(scope="session")
def backends(triton_folder: Path) -> Path:
    """The server's folder, its stand-ins fresh and their libraries there."""
    python = triton_folder / "venv" / "bin" / "python"
    done = subprocess.run([python, "-c", "import openvino, torch"], capture_output=True, text=True, timeout=120)
    if done.returncode:
        reason = f"no stand-ins for openvino and pytorch: run tests/tools/triton/setup.sh {triton_folder} backends"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    for name in ("openvino", "pytorch"):
        folder = triton_folder / "tsrv" / "pytriton" / "tritonserver" / "backends" / name
        folder.mkdir(exist_ok=True)
        shutil.copyfile(TOOLS / f"{name}_model.py", folder / "model.py")
    return triton_folder


def graph(path: Path) -> Path:
    """Write ``left + 2 right`` and the first column of ``left``."""
    nodes = [
        helper.make_node("Mul", ["right", "two"], ["twice"]),
        helper.make_node("Add", ["left", "twice"], ["sum"]),
        helper.make_node("Gather", ["left", "zero"], ["first"], axis=1),
    ]
    made = helper.make_graph(
        nodes,
        "sides",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("left", "right")],
        [
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch", 4]),
            helper.make_tensor_value_info("first", TensorProto.FLOAT, ["batch"]),
        ],
        [numpy_helper.from_array(np.array(2, np.float32), "two"), numpy_helper.from_array(np.array(0), "zero")],
    )
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def intermediate(folder: Path, python: Path, source: Path) -> Path:
    """Convert the graph with the OpenVINO that the server's environment has."""
    folder.mkdir(parents=True)
    code = "import sys, openvino as ov; ov.save_model(ov.convert_model(sys.argv[1]), sys.argv[2])"
    subprocess.run([python, "-c", code, source, folder / "model.xml"], check=True, timeout=120, capture_output=True)
    return folder


def traced(path: Path, arguments: tuple[str, str]) -> Path:
    import torch

    from converters.torch_source import TorchSource, flat_module
    from converters.torch_torchscript import _traced

    class Sides(torch.nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return left + 2 * right, left[:, 0]

    flat = flat_module(Sides(), lambda inner, given: inner(*given), ("sum", "first"), arguments)
    path.parent.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = _traced(TorchSource(flat, arguments), (torch.randn(2, 4), torch.randn(2, 4)))
        torch.jit.save(module, path)
    return path


def infer(server: Any, entry: EntrySpec, feeds: dict[str, Any]) -> dict[str, Any]:
    import tritonclient.grpc as triton

    inputs = []
    for name, value in feeds.items():
        request = triton.InferInput(name, list(value.shape), "FP32")
        request.set_data_from_numpy(value)
        inputs.append(request)
    client = triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
    try:
        result = client.infer(entry.name, inputs, model_version=str(entry.version), client_timeout=20)
        return {item.name: result.as_numpy(item.name) for item in entry.outputs}
    finally:
        client.close()


def assert_sides(server: Any, entry: EntrySpec, left: str, right: str, rows: int) -> None:
    # Sent in the other order: a backend that went by position would swap them.
    got = infer(server, entry, {right: RIGHT[:rows], left: LEFT[:rows]})
    np.testing.assert_allclose(got[entry.outputs[0].name], (LEFT + 2 * RIGHT)[:rows])
    np.testing.assert_allclose(got[entry.outputs[1].name].ravel(), LEFT[:rows, 0])


def test_a_name_goes_from_onnx_to_openvino_to_torchscript_and_back_while_it_is_served(
    start_triton: Callable[..., Any], backends: Path, tmp_path: Path
) -> None:
    repository, archive = tmp_path / "model_repository", tmp_path / "archive"
    source = graph(tmp_path / "store" / "1" / "model.onnx")
    models = {
        Format.ONNX: source,
        Format.OPENVINO: intermediate(tmp_path / "store" / "2", backends / "venv" / "bin" / "python", source),
        Format.TORCHSCRIPT: traced(tmp_path / "store" / "3" / "model.pt", ("left", "right")),
    }
    entries = [spec(format, version, ("left", "right")) for version, format in enumerate(models, 1)]
    publish(entries[0], models[Format.ONNX], repository, archive)
    server = start_triton(repository, "--model-control-mode=poll", "--repository-poll-secs=1")
    for number, entry in enumerate(entries):
        published = publish(entry, models[entry.format], repository, archive)
        assert check_entry(published.entry) == ()
        server.wait_until(lambda number=number: server.is_ready("sides", number + 1))
        server.wait_until(lambda number=number: not number or not server.is_ready("sides", number))
        for rows in (1, 3):
            assert_sides(server, entry, "left", "right", rows)
    rollback("sides", 2, repository, archive)
    server.wait_until(lambda: server.is_ready("sides", 2) and not server.is_ready("sides", 3))
    assert_sides(server, entries[1], "left", "right", 3)


@pytest.mark.parametrize("arguments", [("right", "left"), ("in.left", "in.right")])
def test_torchscript_is_served_under_the_originals_names_whatever_they_are(
    start_triton: Callable[..., Any], backends: Path, tmp_path: Path, arguments: tuple[str, str]
) -> None:
    repository = tmp_path / "model_repository"
    entry = spec(Format.TORCHSCRIPT, 1, arguments, ("sum.all", "first__column"))
    publish(entry, traced(tmp_path / "store" / "model.pt", arguments), repository, tmp_path / "archive")
    server = start_triton(repository)
    assert server.is_ready("sides", 1), server.log.read_text()[-4000:]
    assert_sides(server, entry, *arguments, 3)


def test_the_snippets_of_both_backends_run_as_they_are(
    start_triton: Callable[..., Any], backends: Path, tmp_path: Path
) -> None:
    repository, archive = tmp_path / "model_repository", tmp_path / "archive"
    source = graph(tmp_path / "store" / "onnx" / "model.onnx")
    folder = intermediate(tmp_path / "store" / "ir", backends / "venv" / "bin" / "python", source)
    first = spec(Format.OPENVINO, 1, ("left", "right")).model_copy(update={"name": "ir"})
    second = spec(Format.TORCHSCRIPT, 1, ("left", "right")).model_copy(update={"name": "script"})
    publish(first, folder, repository, archive)
    publish(second, traced(tmp_path / "store" / "pt" / "model.pt", ("left", "right")), repository, archive)
    server = start_triton(repository)
    for entry in (first, second):
        script = tmp_path / f"{entry.name}.py"
        script.write_text(python_client(entry, url=server.url))
        done = subprocess.run([server.client_python, script], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and "first" in done.stdout, done.stderr
        line = curl_line(entry, url=server.url)
        assert line is not None
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
        assert '"outputs"' in done.stdout, done.stdout + done.stderr
