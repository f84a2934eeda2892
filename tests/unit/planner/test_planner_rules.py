from __future__ import annotations

import pytest

from planner.rules import plan
from schemas.catalog import CATALOG
from schemas.descriptor import Format, ModelDescriptor
from schemas.errors import Unsupported
from schemas.plan import ORIGINAL, ConversionPlan, FindingLevel, Step
from schemas.precision import Precision
from schemas.runtime import Runtime
from schemas.target import TargetProfile
from validator import MachineBounds, check


def describe(format_: Format, **facts: object) -> ModelDescriptor:
    return ModelDescriptor.model_validate(
        {"artifact_sha256": "a" * 64, "format": format_, "size_bytes": 90_900_000, **facts}
    )


def ids(made: ConversionPlan) -> list[str]:
    return [candidate.id for candidate in made.candidates]


def kinds(made: ConversionPlan, candidate: str) -> list[str]:
    return next([step.kind for step in c.steps] for c in made.candidates if c.id == candidate)


def first_step(made: ConversionPlan) -> Step:
    return made.candidates[0].steps[0]


MINILM = describe(Format.HUGGINGFACE, architecture="BertModel", parameter_count=22_700_000, parameter_bytes=90_900_000)


def test_a_transformer_gets_a_plain_an_optimised_and_an_int8_candidate() -> None:
    made = plan(MINILM, TargetProfile())
    assert ids(made) == ["onnx", "onnx-optimized", "onnx-int8"]
    assert kinds(made, "onnx-int8") == ["huggingface_onnx", "onnx_optimize", "onnx_int8"]


def test_reasons_carry_the_numbers_of_the_descriptor() -> None:
    made = plan(MINILM, TargetProfile())
    assert "BertModel" in made.reason and "22.7 million parameters" in made.reason
    assert "90.9 MB to about 22.7 MB" in made.candidates[2].reason


def test_a_lossy_candidate_is_planned_and_says_that_it_cannot_win() -> None:
    assert "cannot win" in plan(MINILM, TargetProfile()).candidates[2].reason
    allowing = TargetProfile(precisions=(Precision.FP32, Precision.INT8))
    assert "real samples" in plan(MINILM, allowing).candidates[2].reason


def test_hugging_face_falls_back_from_fused_to_written_out_attention_and_then_to_dynamo() -> None:
    step = first_step(plan(MINILM, TargetProfile()))
    chain = [(s.options["exporter"], s.options["attention"]) for s in (step, *step.fallbacks)]
    assert chain == [("torchscript", "fused"), ("torchscript", "eager"), ("dynamo", "eager")]


@pytest.mark.parametrize(
    ("format_", "exporters"),
    [
        (Format.TORCHSCRIPT, ["torchscript"]),
        (Format.EXPORTED_PROGRAM, ["torchscript", "dynamo"]),
        (Format.TORCH_STATE_DICT, ["torchscript", "dynamo"]),
        (Format.SAFETENSORS, ["torchscript", "dynamo"]),
    ],
)
def test_torch_formats_try_their_exporters_in_order(format_: Format, exporters: list[str]) -> None:
    step = first_step(plan(describe(format_), TargetProfile()))
    assert [s.options["exporter"] for s in (step, *step.fallbacks)] == exporters


def test_an_onnx_model_competes_as_it_is() -> None:
    made = plan(describe(Format.ONNX, opset=11, operators={"MatMul": 40, "Add": 80}), TargetProfile())
    assert ids(made) == [ORIGINAL, "onnx-optimized", "onnx-int8"]
    assert made.candidates[0].steps == ()
    assert "Raises opset 11 to 17" in made.candidates[1].steps[0].reason


def test_a_convolutional_network_is_quantised_with_calibrated_activations() -> None:
    made = plan(
        describe(Format.EXPORTED_PROGRAM, operators={"aten.conv2d.default": 53, "aten.linear.default": 1}),
        TargetProfile(),
    )
    assert ids(made) == ["onnx", "onnx-optimized", "onnx-int8-static"]
    assert "53 convolutions" in made.candidates[2].steps[-1].reason


def test_bytes_in_matrix_products_decide_about_int8_where_they_are_known() -> None:
    convolutional = {"Conv": 53, "Gemm": 1}
    resnet = plan(
        describe(Format.ONNX, operators=convolutional, parameter_bytes=102_000_000, matrix_bytes=8_200_000),
        TargetProfile(),
    )
    assert ids(resnet)[-1] == "onnx-int8-static"
    assert "8.2 MB of the 102 MB" in resnet.candidates[-1].steps[-1].reason
    vgg = plan(
        describe(Format.ONNX, operators={"Conv": 16, "Gemm": 3}, parameter_bytes=575_000_000, matrix_bytes=494_000_000),
        TargetProfile(),
    )
    assert "onnx-int8" in ids(vgg)
    tables = plan(
        describe(Format.ONNX, operators={"Gather": 1, "MatMul": 1}, parameter_bytes=50_000_000, matrix_bytes=400),
        TargetProfile(),
    )
    assert "onnx-int8" not in ids(tables)
    assert "only 400 bytes of the 50 MB" in tables.reason


@pytest.mark.parametrize(
    ("facts", "said"),
    [({"opset": 23}, "opset 23"), ({"opset": 17, "framework_version": "IR 11"}, "IR version 11")],
)
def test_an_onnx_file_newer_than_the_server_loads_is_no_candidate_itself(facts: dict[str, object], said: str) -> None:
    made = plan(describe(Format.ONNX, operators={"Relu": 1}, **facts), TargetProfile())
    assert ids(made) == ["onnx-optimized"]
    assert said in made.reason


def test_a_multilayer_perceptron_of_scikit_learn_is_matrices_though_its_operators_are_estimators() -> None:
    made = plan(
        describe(Format.SKLEARN, operators={"StandardScaler": 1, "MLPClassifier": 1}, parameter_bytes=9_000_000),
        TargetProfile(),
    )
    assert ids(made) == ["onnx", "onnx-optimized", "onnx-int8"]


def test_int8_is_left_out_of_a_small_model_with_its_size() -> None:
    made = plan(describe(Format.TORCHSCRIPT, size_bytes=60_000, parameter_bytes=51_200), TargetProfile())
    assert ids(made) == ["onnx", "onnx-optimized"]
    assert "51.2 kB" in made.reason


def test_int8_is_left_out_of_a_model_that_is_quantised_already() -> None:
    made = plan(describe(Format.ONNX, operators={"MatMulInteger": 36, "MatMul": 12}), TargetProfile())
    assert ids(made) == [ORIGINAL, "onnx-optimized"]
    assert "quantised already" in made.reason


def test_a_forest_gets_the_plain_conversion_alone_and_the_plan_says_why() -> None:
    made = plan(
        describe(Format.SKLEARN, architecture="Pipeline", operators={"RandomForestClassifier": 1}), TargetProfile()
    )
    assert ids(made) == ["onnx"]
    assert "RandomForest" in made.reason and "int8 is left out" in made.reason


def test_a_half_precision_onnx_model_keeps_its_precision() -> None:
    made = plan(describe(Format.ONNX, parameter_dtypes={"float16": 1000, "float32": 10}), TargetProfile())
    assert [c.precision for c in made.candidates[:2]] == [Precision.FP16, Precision.FP16]


@pytest.mark.parametrize("format_", [f for f in Format if not any(f in k.takes for k in CATALOG.values())])
def test_a_format_without_a_converter_is_refused_with_what_to_do(format_: Format) -> None:
    with pytest.raises(Unsupported) as caught:
        plan(describe(format_), TargetProfile())
    assert caught.value.hint


def test_a_name_with_line_breaks_stays_one_line_of_a_sentence() -> None:
    made = plan(describe(Format.SKLEARN, architecture="Evil\n\n" + "x" * 5000), TargetProfile())
    assert "\n" not in made.reason + made.candidates[0].steps[0].reason


EVERYTHING = frozenset({"onnx", "torch", "sklearn", "openvino", "boosting", "tensorflow"})
ANY_BACKEND = TargetProfile(runtime=Runtime.TRITON, precisions=(Precision.FP32, Precision.INT8))


def test_a_target_of_any_backend_gets_openvino_beside_onnx_where_it_is_installed() -> None:
    assert ids(plan(MINILM, ANY_BACKEND, EVERYTHING)) == [
        "onnx", "onnx-optimized", "onnx-int8", "openvino", "openvino-int8",
    ]  # fmt: skip
    without = plan(MINILM, ANY_BACKEND)
    assert not any(candidate.format is Format.OPENVINO for candidate in without.candidates)
    assert "make setup TOOLCHAINS=openvino" in without.reason


def test_a_target_of_one_backend_gets_its_format_alone() -> None:
    target = TargetProfile(runtime=Runtime.TRITON_OPENVINO)
    assert {c.format for c in plan(MINILM, target, EVERYTHING).candidates} == {Format.OPENVINO}
    with pytest.raises(Unsupported, match="triton-openvino") as caught:
        plan(MINILM, target)
    assert "TOOLCHAINS=openvino" in caught.value.hint
    made = plan(MINILM, TargetProfile(runtime=Runtime.TRITON_PYTORCH))
    assert ids(made) == ["torchscript"]


def test_an_original_that_the_target_serves_competes_first_whatever_the_backend() -> None:
    script = describe(Format.TORCHSCRIPT, operators={"aten::linear": 12})
    assert ids(plan(script, ANY_BACKEND))[0] == ORIGINAL
    assert ORIGINAL not in ids(plan(script, TargetProfile()))


@pytest.mark.parametrize(
    ("format_", "kind"),
    [
        (Format.XGBOOST, "boosting_onnx"),
        (Format.CATBOOST, "boosting_onnx"),
        (Format.KERAS, "keras_onnx"),
        (Format.SAVED_MODEL, "savedmodel_onnx"),
        (Format.TFLITE, "tflite_onnx"),
        (Format.TORCH_MODULE, "module_onnx"),
        (Format.SKOPS, "sklearn_onnx"),
    ],
)
def test_every_format_with_a_converter_has_its_way_to_onnx(format_: Format, kind: str) -> None:
    assert first_step(plan(describe(format_), TargetProfile(), EVERYTHING)).kind == kind


def test_trees_and_other_classical_estimators_get_no_openvino_and_the_plan_says_why() -> None:
    made = plan(describe(Format.XGBOOST), ANY_BACKEND, EVERYTHING)
    assert ids(made) == ["onnx"]
    assert "OpenVINO is left out" in made.reason


def test_a_pipeline_with_boosted_trees_runs_in_the_toolchain_that_has_them() -> None:
    made = plan(describe(Format.SKLEARN, toolchain="boosting"), TargetProfile(), EVERYTHING)
    assert first_step(made).toolchain == "boosting"


@pytest.mark.parametrize("runtime", [Runtime.TRITON, Runtime.TRITON_ONNXRUNTIME, Runtime.TRITON_OPENVINO])
@pytest.mark.parametrize("format_", [Format.HUGGINGFACE, Format.ONNX, Format.XGBOOST, Format.SKLEARN])
def test_every_plan_of_the_rules_passes_the_validator(format_: Format, runtime: Runtime) -> None:
    target = TargetProfile(runtime=runtime, precisions=tuple(Precision))
    descriptor = describe(format_, operators={"MatMul": 40, "LayerNormalization": 20} if format_ is Format.ONNX else {})
    try:
        made = plan(descriptor, target, EVERYTHING)
    except Unsupported:
        return
    machine = MachineBounds(memory_bytes=64 << 30, disk_bytes=1 << 40, cpus=2)
    findings = check(made, descriptor=descriptor, target=target, machine=machine)
    assert not [finding for finding in findings if finding.level is FindingLevel.ERROR]


@pytest.mark.parametrize(
    ("flags", "option", "reason"),
    [
        ({"sse2", "avx2"}, {"reduce_range": True}, "lacks"),
        ({"sse2", "avx2", "avx512f"}, {"reduce_range": True}, "lacks"),
        ({"sse2", "avx2", "avx_vnni"}, {}, "serve it on CPUs with VNNI"),
        ({"sse2", "avx2", "avx512f", "avx512_vnni"}, {}, "serve it on CPUs with VNNI"),
        ({"asimd", "asimddp"}, {}, ""),
        (set(), {}, ""),
    ],
)
@pytest.mark.parametrize(
    "model", [MINILM, describe(Format.ONNX, parameter_bytes=90_900_000, operators={"Conv": 50, "Gemm": 1})]
)
def test_weights_have_as_many_bits_as_the_cpu_multiplies_right(
    model: ModelDescriptor, flags: set[str], option: dict[str, bool], reason: str
) -> None:
    allowing = TargetProfile(runtime=Runtime.TRITON, precisions=(Precision.FP32, Precision.INT8))
    made = plan(model, allowing, {"onnx", "torch", "openvino"}, frozenset(flags))
    steps = [candidate.steps[-1] for candidate in made.candidates if candidate.precision is Precision.INT8]
    assert len(steps) == 2, "onnxruntime's and OpenVINO's"
    for step in (one for last in steps for one in (last, *last.fallbacks)):
        assert {name: on for name, on in step.options.items() if name == "reduce_range" and on} == option
    assert all(reason in last.reason and (reason or " bits" not in last.reason) for last in steps)
