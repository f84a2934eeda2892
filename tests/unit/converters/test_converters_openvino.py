"""OpenVINO as a target: every step runs in its own toolchain, in the sandbox, and parity says what came out."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters import reference as reference_step
from executor import StepSpec, run
from executor.sandbox import Sandbox
from executor.toolchain import Toolchain
from schemas.descriptor import BATCH_AXIS, Format, KnownBy, ModelDescriptor, ProbeReport, TensorSpec
from schemas.errors import ErrorDocument
from schemas.evidence import ConversionReport, ParityReport
from schemas.precision import Precision
from schemas.sidecar import Sidecar
from schemas.step_io import StepRequest
from schemas.target import TargetProfile, Tolerance

pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(300)]


class Bench:
    """Runs steps of the openvino toolchain in the sandbox, one after another, on what the step before gave."""

    def __init__(self, tools: Toolchain, sandbox: Sandbox, folder: Path, make_context: Callable[..., Any]) -> None:
        self.tools, self.sandbox, self.folder, self.make_context = tools, sandbox, folder, make_context
        self.count = 0

    def reference(self, model: Path, descriptor: ModelDescriptor, samples: Mapping[str, np.ndarray] | None) -> Path:
        code, sidecar = None, None
        if samples is not None:
            code = self.folder / "code"
            code.mkdir(exist_ok=True)
            np.savez(code / "samples.npz", **samples)
            sidecar = Sidecar(samples="samples.npz")
        context = self.make_context(
            "reference",
            model,
            Format.ONNX,
            inputs=descriptor.inputs,
            outputs=descriptor.outputs,
            sidecar=sidecar,
            **({"code": code} if code else {}),
        )
        reference_step.reference(context)
        return context.out / "reference"

    def step(self, kind: str, descriptor: ModelDescriptor | None = None, target: TargetProfile | None = None,
             options: Mapping[str, Any] | None = None, **inputs: Path) -> tuple[Any, Path]:  # fmt: skip
        """Return the step's report, or its error, and the folder of its outputs."""
        request = StepRequest(kind=kind, options=dict(options or {}), descriptor=descriptor, target=target)
        self.count += 1
        kept = self.folder / f"kept-{self.count}"
        with run(StepSpec(request, self.tools, inputs), workspaces=self.folder / "ws", sandbox=self.sandbox) as output:
            if not output.result.ok:
                assert output.result.error is not None
                assert output.result.error.code != "internal", output.log
                return output.result.error, kept
            for name, path in output.outputs.items():
                shutil.copytree(path, kept / name)
        report = output.result.report
        if kind == "parity":
            return ParityReport.model_validate(report), kept
        return (ProbeReport if kind == "probe" else ConversionReport).model_validate(report), kept

    def parity(self, model: Path, descriptor: ModelDescriptor, reference: Path, precision: Precision) -> ParityReport:
        options = {"precision": precision, "format": Format.OPENVINO}
        report, _ = self.step("parity", descriptor, options=options, model=model, reference=reference)
        assert isinstance(report, ParityReport), report
        return report


@pytest.fixture
def bench(
    toolchain: Callable[[str], Toolchain], warm_sandbox: Sandbox, tmp_path: Path, make_context: Callable[..., Any]
) -> Bench:
    return Bench(toolchain("openvino"), warm_sandbox, tmp_path, make_context)


def described(model: onnx.ModelProto, **facts: Any) -> ModelDescriptor:
    from converters import onnx_file

    inputs, outputs = onnx_file.model_specs(model)
    return ModelDescriptor(
        artifact_sha256="0" * 64, format=Format.ONNX, size_bytes=1, inputs=inputs, outputs=outputs, **facts
    )


def graph(nodes: Sequence[onnx.NodeProto], inputs: Sequence[Any], outputs: Sequence[Any],
          weights: Mapping[str, np.ndarray] | None = None, *domains: str) -> onnx.ModelProto:  # fmt: skip
    stored = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, stored), opset_imports=opsets, ir_version=8)


def value(name: str, shape: Sequence[Any], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """Three convolutions trained on scikit-learn's digits, as ONNX, and held-out rows with their labels."""
    import torch
    from sklearn.datasets import load_digits

    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    held, rows = np.arange(len(images)) % 5 == 0, torch.from_numpy(images[np.arange(len(images)) % 5 != 0])
    right = torch.from_numpy(labels[~held])
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 32, 3, padding=1), torch.nn.ReLU(),
        torch.nn.MaxPool2d(2), torch.nn.Conv2d(32, 32, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(512, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(5):
        for part in torch.randperm(len(rows)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(rows[part]), right[part]).backward()
            optimizer.step()
    weights = {name.replace(".", "_"): tensor.detach().numpy() for name, tensor in net.named_parameters()}
    conv = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "0_weight", "0_bias"], ["c0"], "first", **conv),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "2_weight", "2_bias"], ["c1"], "second", **conv),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "5_weight", "5_bias"], ["c2"], "third", **conv),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Flatten", ["r2"], ["f"]),
        helper.make_node("Gemm", ["f", "8_weight", "8_bias"], ["scores"], "last", transB=1),
    ]
    inputs, outputs = [value("image", [BATCH_AXIS, 1, 8, 8])], [value("scores", [BATCH_AXIS, 10])]
    path = saved(graph(nodes, inputs, outputs, weights), tmp_path_factory.mktemp("digits"))
    return path, {"image": images[held], "labels": labels[held]}


LABELS = tuple("0123456789")
EXACT = TargetProfile(tolerances={Precision.INT8: Tolerance(min_cosine=0.9999999, min_agreement=1.0)})


def test_a_trained_cnn_keeps_its_answers_in_int8(bench: Bench, digits) -> None:
    path, samples = digits
    descriptor = described(onnx.load(path), labels=LABELS)
    reference = bench.reference(path, descriptor, samples)
    converted, folder = bench.step("onnx_openvino", descriptor, model=path, reference=reference)
    assert [spec.name for spec in (*converted.inputs, *converted.outputs)] == ["image", "scores"]
    assert isinstance(converted.inputs[0].shape[0], str)
    assert bench.parity(folder / "model", descriptor, reference, Precision.BF16).passed

    small, quantised = bench.step("openvino_int8", descriptor, model=folder / "model", reference=reference)
    assert small.notes[:2] == (
        "4 operators compute in int8.",
        "Activations were calibrated on 128 real inputs.",
    )
    assert small.size_bytes < converted.size_bytes * 0.6
    report = bench.parity(quantised / "model", descriptor, reference, Precision.INT8)
    assert report.passed, report.reason
    assert report.real_samples
    assert report.outputs[0].agreement is not None
    assert report.outputs[0].agreement > 0.98
    assert report.batching.holds, report.batching.reason
    # What is served says nothing of an axis but that it may change; its name is the original's.
    assert report.inputs[0].shape == (BATCH_AXIS, 1, 8, 8)

    # A tolerance that is out of its reach: no operators are left in float for it.
    same, _ = bench.step("openvino_int8", descriptor, EXACT, {"search_trials": 3}, model=folder / "model",
                         reference=reference)  # fmt: skip
    assert "Activations are bounded by their extremes; with the mean of the inputs': Output 'scores'" in same.notes[2]
    assert "With all of them in int8: Output 'scores' has cosine" in same.notes[3]
    assert same.notes[4].startswith("With 2 of 4 in float it misses the tolerance too: Output 'scores'")
    assert same.size_bytes < converted.size_bytes * 0.6


def test_an_operator_that_int8_ruins_is_found_and_left_in_float(bench: Bench, digits, tmp_path: Path) -> None:
    path, samples = digits
    model = onnx.load(path)
    # A channel three thousand times the others, which nothing uses: eight bits for all leave those no room.
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        if tensor.name in ("0_weight", "0_bias"):
            values[0] *= 3000
        if tensor.name == "2_weight":
            values[:, 0] = 0
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    path = saved(model, tmp_path)
    descriptor = described(model)
    reference = bench.reference(path, descriptor, samples)
    _, folder = bench.step("onnx_openvino", descriptor, model=path, reference=reference)
    ruined, _ = bench.step("openvino_int8", descriptor, options={"search_trials": 1}, model=folder / "model",
                           reference=reference)  # fmt: skip
    assert "was not asked for" in ruined.notes[-1]
    mixed, kept = bench.step("openvino_int8", descriptor, model=folder / "model", reference=reference)
    assert mixed.notes[3].startswith("Stay in float, as they cost the most accuracy: second")
    report = bench.parity(kept / "model", descriptor, reference, Precision.INT8)
    assert report.passed, report.reason


def test_a_few_rows_far_larger_than_the_rest_are_not_cut_off(bench: Bench, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((64, 64)).astype(np.float32),
        "v": rng.standard_normal((64, 8)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    model = graph(nodes, [value("x", [BATCH_AXIS, 64])], [value("y", [BATCH_AXIS, 8])], weights)
    rows = rng.standard_normal((64, 64)).astype(np.float32)
    rows[::16] *= 4
    descriptor, path = described(model), saved(model, tmp_path)
    reference = bench.reference(path, descriptor, {"x": rows})
    _, ir = bench.step("onnx_openvino", descriptor, model=path, reference=reference)
    inputs = {"model": ir / "model", "reference": reference}
    _, folder = bench.step("openvino_int8", descriptor, options={"ranges": "mean", "search_trials": 1}, **inputs)
    assert not bench.parity(folder / "model", descriptor, reference, Precision.INT8).passed
    report, folder = bench.step("openvino_int8", descriptor, **inputs)
    assert any(note.startswith("Activations are bounded by their extremes") for note in report.notes), report.notes
    assert not any("Stay in float" in note for note in report.notes), report.notes
    assert bench.parity(folder / "model", descriptor, reference, Precision.INT8).passed


def test_seven_bits_are_multiplied_right_on_every_cpu(bench: Bench, tmp_path: Path) -> None:
    """All values are near the largest there are: where the CPU adds two products in 16 bits, eight bits overflow."""
    rng = np.random.default_rng(0)
    weights = {name: rng.uniform(0.95, 1, (64, 64)).astype(np.float32) for name in ("w", "v")}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])]
    model = graph(nodes, [value("x", [BATCH_AXIS, 64])], [value("y", [BATCH_AXIS, 64])], weights)
    descriptor, path = described(model), saved(model, tmp_path)
    rows = rng.uniform(0.9, 1, (64, 64)).astype(np.float32)
    reference = bench.reference(path, descriptor, {"x": rows})
    _, ir = bench.step("onnx_openvino", descriptor, model=path, reference=reference)
    options = {"reduce_range": True, "search_trials": 1}
    _, folder = bench.step("openvino_int8", descriptor, options=options, model=ir / "model", reference=reference)
    assert bench.parity(folder / "model", descriptor, reference, Precision.INT8).passed


def test_weights_shrink_and_bf16_is_asked_for(bench: Bench, digits) -> None:
    path, samples = digits
    descriptor = described(onnx.load(path), labels=LABELS)
    reference = bench.reference(path, descriptor, samples)
    converted, folder = bench.step("onnx_openvino", descriptor, model=path, reference=reference)
    half, _ = bench.step("onnx_openvino", descriptor, options={"compress_to_fp16": True}, model=path)
    assert half.size_bytes < converted.size_bytes * 0.7
    for kind, precision in (("openvino_weights", Precision.INT8), ("openvino_weights4", Precision.INT4)):
        report, small = bench.step(kind, descriptor, model=folder / "model", reference=reference)
        assert report.size_bytes < converted.size_bytes * 0.6
        assert bench.parity(small / "model", descriptor, reference, precision).passed
    _, hinted = bench.step("openvino_bf16", descriptor, model=folder / "model", reference=reference)
    assert '<inference_precision value="bf16" />' in (hinted / "model" / "model.xml").read_text()
    assert bench.parity(hinted / "model", descriptor, reference, Precision.BF16).passed


def test_odd_interfaces_stay_what_they_are(bench: Bench, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["one"]),
        helper.make_node("Identity", ["one"], ["two"]),
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Slice", ["x", "start", "start"], ["nothing"]),
        helper.make_node("Greater", ["x", "one"], ["larger"]),
        helper.make_node("ArgMax", ["x"], ["place"], axis=1, keepdims=0),
    ]
    shape = [BATCH_AXIS, 3]
    outputs = [value("two", shape), value("one", shape), value("same", shape), value("total", []),
               value("nothing", ["none", 3]), value("larger", shape, TensorProto.BOOL),
               value("place", [BATCH_AXIS], TensorProto.INT64)]  # fmt: skip
    inputs = [value("unused", shape, TensorProto.INT64), value("x", shape)]
    model = graph(nodes, inputs, outputs, {"start": np.array([0], np.int64)})
    descriptor = described(model)
    path = saved(model, tmp_path)
    reference = bench.reference(path, descriptor, None)
    report, folder = bench.step("onnx_openvino", descriptor, model=path, reference=reference)
    assert isinstance(report, ConversionReport), report
    assert [spec.name for spec in report.inputs] == ["unused", "x"]
    assert [spec.name for spec in report.outputs] == [output.name for output in outputs]
    found = bench.parity(folder / "model", descriptor, reference, Precision.BF16)
    assert found.passed, found.reason
    assert [(o.name, o.method) for o in found.outputs if o.method == "agreement"] == [
        ("larger", "agreement"), ("place", "agreement")]  # fmt: skip


def test_an_embedding_is_probed_within_its_table(bench: Bench, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"table": rng.standard_normal((7, 4)).astype(np.float32)}
    axes = [BATCH_AXIS, "sequence"]
    model = graph([helper.make_node("Gather", ["table", "ids"], ["rows"])], [value("ids", axes, TensorProto.INT64)],
                  [value("rows", [*axes, 4])], weights)  # fmt: skip
    report, folder = bench.step("onnx_openvino", described(model), model=saved(model, tmp_path))
    dropped = ModelDescriptor(
        artifact_sha256="0" * 64, format=Format.OPENVINO, size_bytes=1, inputs=report.inputs, outputs=report.outputs
    )
    probed, _ = bench.step("probe", dropped, model=folder / "model")
    assert isinstance(probed, ProbeReport), probed
    assert probed.descriptor.inputs[0].shape[0] == BATCH_AXIS
    assert probed.descriptor.inputs[0].dtype == "int64"
    assert probed.descriptor.outputs[0].shape[2] == 4


def test_bfloat16_tensors_are_fed_and_read(bench: Bench, tmp_path: Path) -> None:
    shape = [BATCH_AXIS, 2]
    model = graph([helper.make_node("Add", ["x", "x"], ["y"])], [value("x", shape, TensorProto.BFLOAT16)],
                  [value("y", shape, TensorProto.BFLOAT16)])  # fmt: skip
    report, folder = bench.step("onnx_openvino", described(model), model=saved(model, tmp_path))
    assert isinstance(report, ConversionReport), report
    from converters.reference_cases import write_case, write_report
    from schemas.evidence import BatchProof, ReferenceCase, ReferenceReport

    reference = tmp_path / "reference"
    reference.mkdir()
    case = ReferenceCase(id="trace", source="random", axes={BATCH_AXIS: 2}, traced=True, rows=2)
    # 1.00390625 lies between two bfloat16 numbers, and is rounded to the even one.
    x = np.array([[1.00390625, -2.5], [3e38, 0.0]], np.float32)
    y = np.array([[2.0, -5.0], [np.inf, 0.0]], np.float32)
    write_case(reference, case, {"x": x}, {"y": y})
    spec = TensorSpec(name="y", dtype="bfloat16", shape=(BATCH_AXIS, 2), known_by=KnownBy.PROBE)
    proof = BatchProof(holds=False, reason="one case")
    write_report(reference, ReferenceReport(cases=(case,), outputs=(spec,), batching=proof))
    found = bench.parity(folder / "model", described(model), reference, Precision.FP32)
    assert found.passed, found.reason


HOLDS_ITS_INPUTS = """
import sys
from pathlib import Path
import numpy as np
from converters.openvino_runner import OpenvinoRunner

def bound(runner):
    # Float64 is cast, and what is this large goes back to the kernel as soon as nobody holds it.
    return runner.bind({"x": np.full((2, 3, 1024, 1024), 2.0)})

call = bound(OpenvinoRunner(Path(sys.argv[1])))
call()
(outputs,) = dict(call()).values()
assert (outputs == 4).all(), "the inputs that were bound are not the inputs that were given"
"""


def test_what_is_bound_for_timing_outlives_the_arrays_that_were_given(bench: Bench, tmp_path: Path) -> None:
    shape = [BATCH_AXIS, 3, 1024, 1024]
    model = graph([helper.make_node("Add", ["x", "x"], ["y"])], [value("x", shape)], [value("y", shape)])
    report, folder = bench.step("onnx_openvino", described(model), model=saved(model, tmp_path))
    assert isinstance(report, ConversionReport), report
    done = subprocess.run(
        [bench.tools.interpreter, "-P", "-s", "-c", HOLDS_ITS_INPUTS, folder / "model"],
        env={**os.environ, "PYTHONPATH": str(Path(reference_step.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr or f"ended with {done.returncode}"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            graph([helper.make_node("StringNormalizer", ["x"], ["y"])], [value("x", [3], TensorProto.STRING)],
                  [value("y", ["n"], TensorProto.STRING)]),
            "no operator StringNormalizer",
        ),
        (
            graph([helper.make_node("Identity", ["x"], ["y"])], [value("x", [3], TensorProto.STRING)],
                  [value("y", [3], TensorProto.STRING)]),
            "Tensor 'x' of the model holds string",
        ),
        (
            graph([helper.make_node("Shazam", ["x"], ["y"], domain="acme.ai")], [value("x", [3])], [value("y", [3])],
                  None, "acme.ai"),
            "no operator acme.ai.Shazam",
        ),
        (
            graph([helper.make_node("Relu", ["x"], ["y"])], [value("x", [])], [value("y", [])]),
            "Input 'x' is a single number",
        ),
    ],
    ids=["text operator", "text", "custom operator", "scalar input"],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_by_name(bench: Bench, tmp_path: Path, model, message: str) -> None:
    error, _ = bench.step("onnx_openvino", model=saved(model, tmp_path))
    assert isinstance(error, ErrorDocument)
    assert error.code in ("conversion_failed", "unsupported")
    assert message in error.message


def test_what_cannot_be_quantised_says_why(bench: Bench, digits, tmp_path: Path) -> None:
    plain = graph(
        [helper.make_node("Relu", ["x"], ["y"])], [value("x", [BATCH_AXIS, 3])], [value("y", [BATCH_AXIS, 3])]
    )
    _, folder = bench.step("onnx_openvino", model=saved(plain, tmp_path))
    error, _ = bench.step("openvino_int8", model=folder / "model")
    assert error.message == "The model has no convolution or matrix multiplication to quantise."
    error, _ = bench.step("openvino_weights", model=folder / "model")
    assert error.message == "The model has no matrices whose weights could be compressed."

    path, _ = digits
    _, folder = bench.step("onnx_openvino", described(onnx.load(path)), model=path)
    error, _ = bench.step("openvino_int8", described(onnx.load(path)), model=folder / "model")
    assert error.message.startswith("Quantising activations needs the reference's inputs")
    error, _ = bench.step("openvino_int8", options={"ignored": ["nobody"]}, model=folder / "model")
    assert error.message == "The model has no operator 'nobody' to leave in float."
