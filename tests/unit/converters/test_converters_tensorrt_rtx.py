"""Engines are built by TensorRT-RTX itself, in its own toolchain and in the sandbox; none is run, for want of a GPU."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import executor
from converters import onnx_tensorrt
from converters.tensorrt_build import graph_sha256, ranges
from executor import StepSpec
from modelium.context import Context
from schemas.descriptor import Format, KnownBy, ModelDescriptor, TensorSpec
from schemas.engine import EngineSheet
from schemas.errors import ToolchainMissing, Unsupported
from schemas.precision import Precision
from schemas.runtime import Runtime
from schemas.step_io import StepRequest
from schemas.target import TargetProfile

pytestmark = pytest.mark.torch


def tensor(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec.model_validate({"name": name, "dtype": dtype, "shape": shape, "known_by": KnownBy.PROBE})


INPUTS = (tensor("ids", "batch", "sequence", dtype="int64"),)
OUTPUTS = (tensor("states", "batch", "sequence", 4),)


def graph(folder: Path, *nodes: onnx.NodeProto, domain: str | None = None, half: bool = False) -> Path:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((16, 4)).astype(np.float16 if half else np.float32)
    made = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["found"]), *nodes],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])],
        [
            helper.make_tensor_value_info(
                "states", TensorProto.FLOAT16 if half else TensorProto.FLOAT, ["batch", "sequence", 4]
            )
        ],
        [numpy_helper.from_array(table, "table")],
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    folder.mkdir(parents=True)
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=8), folder / "model.onnx")
    return folder


RELU = helper.make_node("Relu", ["found"], ["states"])
Build = Callable[..., executor.StepOutput]


@pytest.fixture
def build(toolchain: Callable[[str], Any], context: Context, tmp_path: Path) -> Build:
    tools = toolchain("tensorrt_rtx")

    def run(model: Path, *architectures: str, options: dict[str, Any] | None = None) -> executor.StepOutput:
        request = StepRequest(
            kind="onnx_tensorrt_rtx",
            options=options or {},
            inputs={},
            descriptor=ModelDescriptor(
                artifact_sha256="0" * 64,
                format=Format.ONNX,
                size_bytes=1,
                inputs=INPUTS,
                outputs=OUTPUTS,
                example_axes={"batch": 2, "sequence": 16},
            ),
            target=TargetProfile(
                hardware="gpu", runtime=Runtime.TENSORRT_RTX, gpu_architectures=architectures, batch_sizes=(1, 8)
            ),
        )
        workspaces = tmp_path / "workspaces"
        workspaces.mkdir(exist_ok=True)
        spec = StepSpec(request=request, inputs={"model": model}, toolchain=tools)
        return executor.run(spec, workspaces=workspaces, sandbox=context.sandbox)

    return run


def test_an_engine_is_built_for_every_architecture_of_the_target(build: Build, tmp_path: Path) -> None:
    with build(graph(tmp_path / "model", RELU), "sm_75", "sm_120") as output:
        assert output.result.ok, output.log
        folder = output.outputs["model"]
        sheet = EngineSheet.model_validate_json((folder / "engines.json").read_bytes())
        assert [engine.file for engine in sheet.engines] == ["model.engine.sm_75", "model.engine.sm_120"]
        for engine in sheet.engines:
            data = (folder / engine.file).read_bytes()
            assert hashlib.sha256(data).hexdigest() == engine.sha256 and len(data) == engine.size_bytes
        assert sheet.graph_sha256 == graph_sha256(folder) and not sheet.ran
        profile = sheet.profile["ids"]
        assert (profile.least, profile.best, profile.most) == ((1, 1), (1, 16), (8, 16))
        notes = " ".join(output.result.report["notes"])  # type: ignore[index]
        assert "Built for sm_75, sm_120" in notes and "No engine was run" in notes


def test_a_larger_size_can_be_asked_for_and_an_fp16_graph_gives_an_fp16_engine(build: Build, tmp_path: Path) -> None:
    wanted = {"sms": ["sm_89"], "most": {"sequence": 512}}
    with build(graph(tmp_path / "model", RELU, half=True), options=wanted) as output:
        assert output.result.ok, output.log
        sheet = EngineSheet.model_validate_json((output.outputs["model"] / "engines.json").read_bytes())
        assert sheet.profile["ids"].most == (8, 512) and sheet.outputs[0].dtype == "float16"


def test_an_architecture_that_cannot_be_built_for_is_refused_by_name(build: Build, tmp_path: Path) -> None:
    model = graph(tmp_path / "model", RELU)
    with build(model, "sm_86", "sm_90") as output:
        assert output.result.error is not None and output.result.error.code == "unsupported"
        assert "sm_90" in output.result.error.message and "sm_86" in output.result.error.hint
    with build(model) as output:
        assert output.result.error is not None and "names no GPU architecture" in output.result.error.message


def test_an_operator_that_only_onnxruntime_has_is_named(build: Build, tmp_path: Path) -> None:
    node = helper.make_node("Gelu", ["found"], ["states"], domain="com.microsoft")
    with build(graph(tmp_path / "model", node, domain="com.microsoft"), "sm_86") as output:
        assert output.result.error is not None and output.result.error.code == "conversion_failed"
        assert "com.microsoft::Gelu" in output.result.error.message


def test_the_profile_covers_the_sizes_that_the_original_was_seen_at(
    make_context: Callable[..., Any], tmp_path: Path
) -> None:
    reference = tmp_path / "reference"
    reference.mkdir()
    proof = {"holds": True, "reason": "It holds."}
    cases = [
        {"id": f"random-{number}", "source": "random", "rows": rows, "axes": {"batch": rows, "height": size}}
        for number, (rows, size) in enumerate(((2, 224), (16, 160)))
    ]
    report = {"cases": cases, "outputs": [], "batching": proof}
    (reference / "cases.json").write_text(json.dumps(report))
    image = tensor("image", "batch", 3, "height", "height")
    context = make_context(
        "onnx_tensorrt_rtx",
        reference,
        Format.ONNX,
        inputs=[image],
        descriptor={"example_axes": {"height": 224}},
        reference=reference,
    )
    found = ranges(context, [image], (4, 8), {})["image"]
    assert found.least == (1, 3, 160, 160) and found.best == (4, 3, 224, 224) and found.most == (16, 3, 224, 224)


def test_full_tensorrt_says_what_is_missing(make_context: Callable[..., Any], tmp_path: Path) -> None:
    context = make_context("onnx_tensorrt", graph(tmp_path / "model", RELU), Format.ONNX, inputs=INPUTS)
    with pytest.raises(ToolchainMissing, match="MODELIUM_TOOLCHAINS"):
        onnx_tensorrt.convert(context)


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU")
def test_without_a_gpu_the_refusal_names_the_way_that_needs_none() -> None:
    with pytest.raises(Unsupported, match="tensorrt-rtx"):
        onnx_tensorrt.compute_capability()


def test_a_precision_that_the_gpu_has_no_units_for_is_refused() -> None:
    onnx_tensorrt._check_ability(Precision.FP8, 89)
    with pytest.raises(Unsupported, match="sm_80 has no units for fp8"):
        onnx_tensorrt._check_ability(Precision.FP8, 80)


@pytest.mark.gpu
def test_a_plan_is_built_on_this_machines_gpu(make_context: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt")
    context = make_context("onnx_tensorrt", graph(tmp_path / "model", RELU), Format.ONNX, inputs=INPUTS)
    onnx_tensorrt.convert(context)
    folder = context.out / "model"
    assert (folder / "model.plan").stat().st_size and (folder / "timing.cache").stat().st_size
