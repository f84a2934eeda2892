"""Keras, SavedModel and TFLite to ONNX: what TensorFlow gave before, the ONNX gives after, by tensor name."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from converters import arrays, tensorflow_onnx, tensorflow_operators, tensorflow_runner, tensorflow_source
from converters.model_errors import first_line
from converters.onnx_runner import OnnxRunner
from executor import StepSpec, run
from executor.sandbox import Sandbox
from executor.toolchain import Toolchain
from schemas.descriptor import BATCH_AXIS, Format, KnownBy, ModelDescriptor, ProbeReport, TensorSpec
from schemas.errors import ConversionFailed, ModelFailed, Unsupported
from schemas.evidence import ConversionReport, ReferenceReport
from schemas.step_io import StepRequest

DATA = Path(__file__).parents[2] / "data" / "tensorflow"
REPORTS = {"probe": ProbeReport, "reference": ReferenceReport}


class Steps:
    """Runs steps of the tensorflow toolchain in the sandbox, one after another."""

    def __init__(self, tools: Toolchain, sandbox: Sandbox, folder: Path) -> None:
        self.tools, self.sandbox, self.folder, self.count = tools, sandbox, folder, 0

    def __call__(
        self, kind: str, descriptor: ModelDescriptor, options: Mapping[str, Any] | None = None, **inputs: Path
    ):
        """Return the step's report, or its error, and the folder of its outputs."""
        request = StepRequest(kind=kind, options=dict(options or {}), descriptor=descriptor)
        self.count += 1
        kept = self.folder / f"kept-{self.count}"
        with run(StepSpec(request, self.tools, inputs), workspaces=self.folder / "ws", sandbox=self.sandbox) as output:
            if not output.result.ok:
                assert output.result.error is not None
                assert output.result.error.code != "internal", output.log
                return output.result.error, kept
            for name, path in output.outputs.items():
                shutil.copytree(path, kept / name)
        return REPORTS.get(kind, ConversionReport).model_validate(output.result.report), kept


@pytest.fixture
def steps(toolchain: Callable[[str], Toolchain], warm_sandbox: Sandbox, tmp_path: Path) -> Steps:
    return Steps(toolchain("tensorflow"), warm_sandbox, tmp_path)


def spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape, known_by=KnownBy.PROBE)  # type: ignore[arg-type]


def described(format_: Format, **facts: Any) -> ModelDescriptor:
    return ModelDescriptor(artifact_sha256="0" * 64, format=format_, size_bytes=1, **facts)


def proven(reference: Path, model: Path) -> float:
    """Return the largest difference of any output in any case of the reference."""
    runner, worst = OnnxRunner(model / "model.onnx"), 0.0
    cases = sorted(reference.glob("*.inputs.npz"))
    assert len(cases) > 3
    for case in cases:
        expected = arrays.load(Path(str(case).replace(".inputs.", ".outputs.")))
        given = runner.run(arrays.load(case))
        assert {name: (a.shape, a.dtype) for name, a in given.items()} == {
            name: (a.shape, a.dtype) for name, a in expected.items()
        }
        worst = max(worst, *(float(np.abs(given[name] - expected[name]).max()) for name in expected))
    return worst


@pytest.mark.sandbox
@pytest.mark.timeout(300)
def test_a_keras_model_of_like_inputs_and_like_outputs_comes_out_right_by_name(steps):
    path = DATA / "two_towers.h5"
    report, _ = steps("probe", described(Format.KERAS), model=path)
    found = report.descriptor
    assert [(s.name, s.shape) for s in found.inputs] == [("query", (BATCH_AXIS, 8)), ("item", (BATCH_AXIS, 8))]
    assert [s.name for s in found.outputs] == ["score", "left", "right"]
    assert (found.parameter_count, found.matrix_bytes) == (92, 320)
    assert found.flops is not None and found.flops >= 2 * 80
    asked, reference = steps("reference", found, model=path)
    assert asked.arithmetic == "fp32"

    for through in ("graph", "saved_model"):
        report, out = steps("keras_onnx", found, {"through": through}, model=path, reference=reference / "reference")
        assert isinstance(report, ConversionReport), report
        assert [s.name for s in report.inputs] == ["query", "item"]
        assert proven(reference / "reference", out / "model") < 1e-5


@pytest.mark.sandbox
@pytest.mark.timeout(300)
def test_the_reference_says_in_which_float_a_keras_model_computes_when_it_is_half(steps):
    probed, _ = steps("probe", described(Format.KERAS), model=DATA / "half.keras")
    report, _ = steps("reference", probed.descriptor, model=DATA / "half.keras")
    assert report.arithmetic == "fp16"


@pytest.mark.sandbox
@pytest.mark.timeout(300)
def test_a_saved_model_is_converted_by_its_served_signature(steps):
    path = DATA / "scores"
    outputs = (spec("logits", BATCH_AXIS, 3), spec("label", BATCH_AXIS, dtype="int64"))
    found = described(Format.SAVED_MODEL, inputs=(spec("features", BATCH_AXIS, 6),), outputs=outputs)
    _, reference = steps("reference", found, model=path)
    report, out = steps("savedmodel_onnx", found, model=path, reference=reference / "reference")

    assert isinstance(report, ConversionReport), report
    assert [(s.name, s.dtype) for s in report.outputs] == [("logits", "float32"), ("label", "int64")]
    assert proven(reference / "reference", out / "model") < 1e-5


@pytest.mark.sandbox
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("file", "dtype"), [("two_towers.tflite", "float32"), ("two_towers_int8.tflite", "int8")])
def test_a_tflite_model_keeps_the_names_of_its_signature(steps, file, dtype):
    inputs = tuple(spec(name, BATCH_AXIS, 8, dtype=dtype) for name in ("item", "query"))
    outputs = tuple(spec(f"output_{number}", BATCH_AXIS, 4, dtype=dtype) for number in (1, 0, 2))
    found = described(Format.TFLITE, inputs=inputs, outputs=outputs)
    _, reference = steps("reference", found, model=DATA / file)
    report, out = steps("tflite_onnx", found, model=DATA / file, reference=reference / "reference")

    assert isinstance(report, ConversionReport), report
    # int8 tensors stay int8, and one step of their scale is what rounding may cost.
    assert proven(reference / "reference", out / "model") <= (1 if dtype == "int8" else 1e-5)
    assert ("QuantizeLinear" in report.operators) == (dtype == "int8")


@pytest.mark.sandbox
@pytest.mark.timeout(300)
def test_a_table_of_whole_numbers_is_converted_and_proven_on_its_own_keys(steps):
    path = DATA / "lookup.keras"
    report, _ = steps("probe", described(Format.KERAS), model=path)
    _, reference = steps("reference", report.descriptor, model=path)
    drawn = {
        number for file in (reference / "reference").glob("*.inputs.npz") for number in arrays.load(file)["code"].flat
    }
    assert drawn == {10, 2_000, 30, 9, 2_001}

    converted, out = steps("keras_onnx", report.descriptor, model=path, reference=reference / "reference")
    assert isinstance(converted, ConversionReport), converted
    assert proven(reference / "reference", out / "model") < 1e-6


@pytest.mark.sandbox
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "axis"), [("spectrum", BATCH_AXIS), ("boxes", "rows")])
def test_a_saved_model_is_described_and_converted_whatever_its_rows_are(steps, name, axis):
    report, _ = steps("probe", described(Format.SAVED_MODEL), model=DATA / name)
    assert isinstance(report, ProbeReport), report
    assert {found.shape[0] for found in report.descriptor.inputs} == {axis}
    _, reference = steps("reference", report.descriptor, model=DATA / name)

    converted, out = steps("savedmodel_onnx", report.descriptor, model=DATA / name, reference=reference / "reference")
    assert isinstance(converted, ConversionReport), converted
    assert proven(reference / "reference", out / "model") < 1e-5


def graph(kind: str, *inputs: str, opset: int = 17, **attributes: Any) -> onnx.ModelProto:
    node = helper.make_node(kind, inputs, ["y"], name="block/node", **attributes)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in inputs]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])
    made = helper.make_graph([node], "g", values, [result])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def erf(x: np.ndarray) -> np.ndarray:
    import math

    return np.vectorize(math.erf)(x)


X = np.linspace(-4, 4, 33, dtype=np.float32)
Y = np.linspace(0.1, 3, 33, dtype=np.float32)


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "expected"),
    [
        ("Erfc", ("x",), {}, 1 - erf(X)),
        ("Log1p", ("z",), {}, np.log1p(Y)),
        ("Expm1", ("x",), {}, np.expm1(X)),
        ("Silu", ("x",), {}, X / (1 + np.exp(-X))),
        ("TFL_GELU", ("x",), {"approximate": 0}, X / 2 * (1 + erf(X / np.sqrt(2)))),
        (
            "TFL_GELU",
            ("x",),
            {"approximate": 1},
            X / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (X + 0.044715 * X**3))),
        ),
        ("TFL_RELU_N1_TO_1", ("x",), {}, np.clip(X, -1, 1)),
        ("TFL_RELU_0_TO_1", ("x",), {}, np.clip(X, 0, 1)),
        ("Xlogy", ("x", "z"), {}, X * np.log(Y)),
        ("Xlog1py", ("x", "z"), {}, X * np.log1p(Y)),
        ("Xdivy", ("x", "z"), {}, X / Y),
        ("MulNoNan", ("x", "z"), {}, X * Y),
        ("Snapshot", ("x",), {}, X),
        ("AccumulateNV2", ("x", "z"), {}, X + Y),
        ("Inv", ("z",), {}, 1 / Y),
    ],
)
def test_an_operator_that_tf2onnx_leaves_is_written_in_onnx(tmp_path, kind, inputs, attributes, expected):
    model = graph(kind, *inputs, **attributes)
    tensorflow_operators.expand(model)
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "m.onnx")

    given = OnnxRunner(tmp_path / "m.onnx").run(
        {"x": X, "z": Y} if len(inputs) > 1 else {inputs[0]: X if inputs == ("x",) else Y}
    )
    np.testing.assert_allclose(given["y"], expected, rtol=1e-4, atol=1e-5)


def test_numbers_are_sorted_into_buckets(tmp_path):
    model = graph("Bucketize", "x", boundaries=[0.0, 0.5, 1.0])
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT32
    tensorflow_operators.expand(model)
    onnx.save(model, tmp_path / "m.onnx")

    given = OnnxRunner(tmp_path / "m.onnx").run({"x": np.array([-1, 0, 0.4, 0.5, 2], "f4")})
    assert given["y"].tolist() == [0, 1, 1, 2, 3]


def test_nothing_times_infinity_is_nothing(tmp_path):
    model = graph("Xlogy", "x", "z")
    tensorflow_operators.expand(model)
    onnx.save(model, tmp_path / "m.onnx")

    given = OnnxRunner(tmp_path / "m.onnx").run({"x": np.zeros(2, "f4"), "z": np.array([0, np.inf], "f4")})
    assert given["y"].tolist() == [0, 0]


def test_an_operator_without_an_onnx_form_is_named_with_its_place():
    with pytest.raises(ConversionFailed, match=r"Betainc \(at block/node\)") as failure:
        tensorflow_onnx._check_operators(graph("Betainc", "x"))
    assert failure.value.hint


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (
            "Graph execution error:\n\nDetected at node map/while/DecodeJpeg defined at (most recent call last):\n"
            "<stack traces unavailable>\nUnknown image file format.\n\t [[{{node map/while/DecodeJpeg}}]] [Op:f]",
            "Unknown image file format",
        ),
        (
            "Graph execution error:\n\nDetected at node a defined at (most recent call last):\n"
            '  File "x.py", line 1, in <module>\n\n2 root error(s) found.\n  (0) INVALID_ARGUMENT:  Bad.\n',
            "Bad",
        ),
        ("Graph execution error:\n", "Graph execution error"),
    ],
)
def test_of_a_failed_graph_the_cause_is_told_and_not_the_place(raised, told):
    assert first_line(RuntimeError(raised)) == told


def test_the_bound_of_token_ids_is_found_by_asking():
    inputs = (spec("ids", BATCH_AXIS, 3, dtype="int32"), spec("free", BATCH_AXIS, dtype="int64"))

    def told(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if feeds["ids"].max() >= 50:
            raise ModelFailed(f"indices[0,0] = {feeds['ids'].max()} is not in [0, 50)")
        return {}

    def silent(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if feeds["ids"].max() >= 50:
            raise ModelFailed("failed to invoke")
        return {}

    for model in (told, silent):
        limits = tensorflow_runner.integer_limits(model, inputs)
        assert {name: domain.limit for name, domain in limits.items()} == {"ids": 50}


def test_the_signature_that_is_served_is_the_default_or_the_only_one():
    assert tensorflow_source.choose_signature(["embed", "serve", "serving_default"]) == "serving_default"
    assert tensorflow_source.choose_signature(["score"]) == "score"
    for names in ([], ["a", "b"]):
        with pytest.raises(Unsupported, match="signature"):
            tensorflow_source.choose_signature(names)
