"""What the deployer publishes loads in the real Triton and answers what onnxruntime answers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from deployer import publish, rollback, undeploy
from deployer.config_checks import check_entry
from deployer.health import check
from deployer.next_steps import curl_line, python_client
from schemas.deployment import EntrySpec
from schemas.descriptor import Dim, DType, KnownBy, TensorSpec
from schemas.evidence import BatchProof

pytestmark = pytest.mark.triton
PROVEN = BatchProof(holds=True, reason="Rows together gave what rows one by one gave.", sizes=(1, 2, 8))
UNPROVEN = BatchProof(holds=False, reason="The first axis is fixed.")
ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "string": TensorProto.STRING,
    "bool": TensorProto.BOOL,
}


def tensor(name: str, dtype: DType, *shape: Dim) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape, known_by=KnownBy.PROBE)


class Example:
    """A model made of nodes, its entry, and inputs to try it with."""

    def __init__(
        self,
        name: str,
        inputs: list[TensorSpec],
        outputs: list[TensorSpec],
        nodes: list[onnx.NodeProto],
        feeds: dict[str, np.ndarray[Any, Any]],
        weights: dict[str, np.ndarray[Any, Any]] | None = None,
        labels: tuple[str, ...] = (),
        labels_output: str | None = None,
        max_batch_size: int = 8,
        axes: dict[str, int] | None = None,
    ) -> None:
        self.feeds = feeds
        self.spec = EntrySpec(
            name=name,
            version=1,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            batching=PROVEN if max_batch_size else UNPROVEN,
            max_batch_size=max_batch_size,
            labels=labels,
            labels_output=labels_output,
            example_axes=axes or {},
        )
        graph = helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info(t.name, ONNX_TYPES[t.dtype], list(t.shape)) for t in inputs],
            [helper.make_tensor_value_info(t.name, ONNX_TYPES[t.dtype], list(t.shape)) for t in outputs],
            [numpy_helper.from_array(value, key) for key, value in (weights or {}).items()],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
        self.model = helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        path = folder / f"{self.spec.name}.onnx"
        onnx.save(self.model, path)
        return path


def mlp(scale: float = 1.0) -> Example:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3)).astype(np.float32) * scale
    return Example(
        "batched-mlp",
        [tensor("x", "float32", "batch", 4)],
        [tensor("scores", "float32", "batch", 3)],
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Softmax", ["h"], ["scores"], axis=-1)],
        {"x": rng.standard_normal((3, 4)).astype(np.float32)},
        {"w": weight},
        labels=("setosa", "versi\ncolor", "<script>"),
        labels_output="scores",
    )


def fixed_batch() -> Example:
    return Example(
        "fixed-batch",
        [tensor("x", "float32", 4, 2)],
        [tensor("y", "float32", 4, 2)],
        [helper.make_node("Relu", ["x"], ["y"])],
        {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2)},
        max_batch_size=0,
    )


def string_labels() -> Example:
    return Example(
        "classifier",
        [tensor("x", "float32", "batch", 2)],
        [tensor("label", "string", "batch"), tensor("probabilities", "float32", "batch", 2)],
        [
            helper.make_node(
                "LinearClassifier",
                ["x"],
                ["label", "raw"],
                domain="ai.onnx.ml",
                classlabels_strings=["no", "yes"],
                coefficients=[1.0, -1.0, -1.0, 1.0],
                intercepts=[0.0, 0.0],
                multi_class=0,
                post_transform="NONE",
            ),
            helper.make_node("Softmax", ["raw"], ["probabilities"]),
        ],
        {"x": np.array([[1, 0], [0, 1], [2, 1]], dtype=np.float32)},
    )


def string_inputs() -> Example:
    return Example(
        "string-input",
        [tensor("color", "string", "batch", 1)],
        [tensor("code", "int64", "batch", 1)],
        [
            helper.make_node(
                "LabelEncoder",
                ["color"],
                ["code"],
                domain="ai.onnx.ml",
                keys_strings=["red", "blue"],
                values_int64s=[1, 2],
                default_int64=-1,
            )
        ],
        {"color": np.array([["red"], ["blue"], ["a"]], dtype=object)},
    )


def two_sequences() -> Example:
    rng = np.random.default_rng(1)
    table = rng.standard_normal((16, 4)).astype(np.float32)
    return Example(
        "token-ids",
        [tensor("ids", "int64", "batch", "sequence"), tensor("mask", "int64", "batch", "sequence")],
        [tensor("states", "float32", "batch", "sequence", 4)],
        [
            helper.make_node("Gather", ["table", "ids"], ["found"]),
            helper.make_node("Cast", ["mask"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["floats", "last"], ["wide"]),
            helper.make_node("Mul", ["found", "wide"], ["states"]),
        ],
        {
            "ids": np.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], dtype=np.int64),
            "mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=np.int64),
        },
        {"table": table, "last": np.array([-1], dtype=np.int64)},
        axes={"batch": 2, "sequence": 7},
    )


def scalar_per_row_input() -> Example:
    return Example(
        "ages",
        [tensor("age", "int64", "batch"), tensor("member", "bool", "batch")],
        [tensor("price", "float32", "batch")],
        [
            helper.make_node("Cast", ["age"], ["years"], to=TensorProto.FLOAT),
            helper.make_node("Where", ["member", "free", "years"], ["price"]),
        ],
        {"age": np.array([3, 40], dtype=np.int64), "member": np.array([True, False])},
        {"free": np.array([0.0], dtype=np.float32)},
    )


def one_axis_without_batching() -> Example:
    return Example(
        "signal",
        [tensor("wave", "float32", "time")],
        [tensor("energy", "float32", 1)],
        [helper.make_node("ReduceSumSquare", ["wave"], ["energy"], axes=[0], keepdims=1)],
        {"wave": np.arange(5, dtype=np.float32)},
        max_batch_size=0,
        axes={"time": 16},
    )


def nothing_at_all() -> Example:
    """Tensors that hold nothing: such an axis is declared dynamic, and then the server carries them."""
    return Example(
        "nothing",
        [tensor("x", "float32", 2, "x_1")],
        [tensor("y", "float32", 2, "y_1")],
        [helper.make_node("Concat", ["x", "x"], ["y"], axis=1)],
        {"x": np.zeros((2, 0), np.float32)},
        max_batch_size=0,
        axes={"x_1": 0},
    )


def a_sequence() -> Example:
    """What a graph with a sequence is served as: one tensor with the number of its tensors in front."""
    return Example(
        "sequence",
        [tensor("parts", "float32", "parts_count", 3)],
        [tensor("more", "float32", "more_count", 3)],
        [
            helper.make_node("SplitToSequence", ["parts"], ["inside"], axis=0, keepdims=0),
            helper.make_node("SequenceAt", ["inside", "first"], ["part"]),
            helper.make_node("SequenceInsert", ["inside", "part"], ["longer"]),
            helper.make_node("ConcatFromSequence", ["longer"], ["more"], axis=0, new_axis=1),
        ],
        {"parts": np.arange(6, dtype=np.float32).reshape(2, 3)},
        {"first": np.array(0)},
        max_batch_size=0,
        axes={"parts_count": 2},
    )


EXAMPLES = [
    mlp,
    fixed_batch,
    string_labels,
    string_inputs,
    two_sequences,
    scalar_per_row_input,
    one_axis_without_batching,
    nothing_at_all,
    a_sequence,
]


def answers(model: onnx.ModelProto, feeds: dict[str, Any], names: list[str]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, feeds), strict=True))


def infer(server: Any, spec: EntrySpec, feeds: dict[str, Any], version: int) -> dict[str, Any]:
    import tritonclient.grpc as triton

    types = {"float32": "FP32", "int64": "INT64", "string": "BYTES", "bool": "BOOL"}
    inputs = []
    for item in spec.inputs:
        value = feeds[item.name]
        # A scalar per row travels as one column: Triton has no empty dims.
        value = value.reshape(-1, 1) if len(item.shape) == 1 and spec.max_batch_size else value
        request = triton.InferInput(item.name, list(value.shape), types[item.dtype])
        request.set_data_from_numpy(value)
        inputs.append(request)
    client = triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
    try:
        result = client.infer(spec.name, inputs, model_version=str(version), client_timeout=20)
        return {item.name: result.as_numpy(item.name) for item in spec.outputs}
    finally:
        client.close()


def assert_same(got: Any, expected: Any) -> None:
    if expected.dtype.kind in "OU":
        assert [v.decode() for v in got.ravel()] == [str(v) for v in expected.ravel()]
    else:
        assert got.size == expected.size
        np.testing.assert_allclose(got.reshape(expected.shape), expected, rtol=1e-5, atol=1e-6)


def test_every_kind_of_entry_loads_and_answers_what_onnxruntime_answers(
    start_triton: Callable[..., Any], tmp_path: Path
) -> None:
    repository, archive = tmp_path / "model_repository", tmp_path / "archive"
    examples = [make() for make in EXAMPLES]
    for example in examples:
        published = publish(example.spec, example.save(tmp_path / "store" / example.spec.name), repository, archive)
        assert check_entry(published.entry) == ()
    server = start_triton(repository)
    for example in examples:
        spec = example.spec
        assert server.is_ready(spec.name, 1), server.log.read_text()[-4000:]
        assert check(server.url, spec.name, 1).state == "ready"
        expected = answers(example.model, example.feeds, [t.name for t in spec.outputs])
        for name, value in infer(server, spec, example.feeds, 1).items():
            assert_same(value, expected[name])


def test_the_snippets_that_are_printed_run_as_they_are(start_triton: Callable[..., Any], tmp_path: Path) -> None:
    repository, archive = tmp_path / "model_repository", tmp_path / "archive"
    examples = [make() for make in EXAMPLES]
    for example in examples:
        publish(example.spec, example.save(tmp_path / "store" / example.spec.name), repository, archive)
    server = start_triton(repository)
    for example in examples:
        script = tmp_path / f"client_of_{example.spec.name}.py"
        script.write_text(python_client(example.spec, url=server.url))
        done = subprocess.run([server.client_python, script], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert all(output.name in done.stdout for output in example.spec.outputs)
        line = curl_line(example.spec, url=server.url)
        assert line is not None
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
        assert '"outputs"' in done.stdout, done.stdout + done.stderr


def test_a_watching_server_follows_a_new_version_a_rollback_and_an_undeploy(
    start_triton: Callable[..., Any], tmp_path: Path
) -> None:
    repository, archive = tmp_path / "model_repository", tmp_path / "archive"
    first, second = mlp(1.0), mlp(3.0)
    publish(first.spec, first.save(tmp_path / "store" / "1"), repository, archive)
    server = start_triton(repository, "--model-control-mode=poll", "--repository-poll-secs=1")
    assert server.is_ready("batched-mlp", 1)

    version_2 = second.spec.model_copy(update={"version": 2})
    publish(version_2, second.save(tmp_path / "store" / "2"), repository, archive)
    server.wait_until(lambda: server.is_ready("batched-mlp", 2) and not server.is_ready("batched-mlp", 1))
    expected = answers(second.model, second.feeds, ["scores"])["scores"]
    assert_same(infer(server, second.spec, second.feeds, 2)["scores"], expected)

    rollback("batched-mlp", 1, repository, archive)
    server.wait_until(lambda: server.is_ready("batched-mlp", 1) and not server.is_ready("batched-mlp", 2))
    expected = answers(first.model, first.feeds, ["scores"])["scores"]
    assert_same(infer(server, first.spec, first.feeds, 1)["scores"], expected)

    undeploy("batched-mlp", repository, archive)
    server.wait_until(lambda: not server.is_ready("batched-mlp", 1))
    assert check(server.url, "batched-mlp", 1).state == "failed"


def test_labels_come_back_with_the_classification_that_triton_does(
    start_triton: Callable[..., Any], tmp_path: Path
) -> None:
    import tritonclient.grpc as triton

    repository = tmp_path / "model_repository"
    example = mlp()
    publish(example.spec, example.save(tmp_path / "store"), repository, tmp_path / "archive")
    server = start_triton(repository)
    request = triton.InferInput("x", [1, 4], "FP32")
    request.set_data_from_numpy(example.feeds["x"][:1])
    client = triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
    try:
        result = client.infer(
            "batched-mlp", [request], outputs=[triton.InferRequestedOutput("scores", class_count=3)]
        ).as_numpy("scores")
    finally:
        client.close()
    labels = {value.decode().split(":", 2)[1]: value.decode().split(":", 2)[2] for value in result.ravel()}
    assert labels == {"0": "setosa", "1": "versi color", "2": "<script>"}
