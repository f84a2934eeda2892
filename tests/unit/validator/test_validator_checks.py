from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.rules import plan
from schemas.catalog import CATALOG
from schemas.descriptor import Format, KnownBy, ModelDescriptor, TensorSpec
from schemas.objective import Objective
from schemas.plan import FindingLevel
from schemas.precision import Precision
from schemas.runtime import Runtime
from schemas.target import TargetProfile
from validator import MachineBounds, check
from validator.checks import is_executable

MACHINE = MachineBounds(memory_bytes=1 << 50, disk_bytes=1 << 50, cpus=2)
TARGET = TargetProfile()
CONVERTIBLE = sorted({f for kind in CATALOG.values() if kind.role == "conversion" for f in kind.takes})
MINILM = ModelDescriptor(
    artifact_sha256="a" * 64, format=Format.HUGGINGFACE, size_bytes=90_900_000, parameter_bytes=90_900_000
)

descriptors = st.builds(
    ModelDescriptor,
    artifact_sha256=st.just("a" * 64),
    format=st.sampled_from(CONVERTIBLE),
    size_bytes=st.integers(0, 1 << 40),
    architecture=st.none() | st.text(max_size=300),
    opset=st.none() | st.integers(1, 30),
    operators=st.dictionaries(
        st.sampled_from(["MatMul", "Conv", "Gemm", "QLinearMatMul", "aten::linear", "RandomForestRegressor", "?"])
        | st.text(max_size=20),
        st.integers(1, 10_000),
        max_size=6,
    ),
    parameter_count=st.none() | st.integers(0, 1 << 40),
    parameter_bytes=st.none() | st.integers(0, 1 << 42),
    parameter_dtypes=st.dictionaries(
        st.sampled_from(["float32", "float16", "bfloat16", "int8"]), st.integers(0, 1 << 40), max_size=4
    ),
    inputs=st.lists(
        st.builds(
            TensorSpec,
            name=st.text(max_size=5),
            dtype=st.sampled_from(["float32", "float16", "bfloat16", "int64"]),
            shape=st.just(("batch", 3)),
            known_by=st.just(KnownBy.PROBE),
        ),
        max_size=2,
    ).map(tuple),
)
targets = st.builds(
    TargetProfile,
    objective=st.sampled_from(Objective),
    precisions=st.lists(st.sampled_from(Precision), min_size=1, max_size=3, unique=True).map(tuple),
    batch_sizes=st.lists(st.integers(1, 128), min_size=1, max_size=8).map(tuple),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)


def document(descriptor: ModelDescriptor = MINILM, target: TargetProfile = TARGET) -> dict[str, Any]:
    return plan(descriptor, target).model_dump(mode="json")


def codes(made: Any, descriptor: ModelDescriptor = MINILM, machine: MachineBounds = MACHINE) -> dict[str, str]:
    findings = check(made, descriptor=descriptor, target=TARGET, machine=machine)
    return {f.code: f.pointer for f in findings if f.level is FindingLevel.ERROR}


def step(made: dict[str, Any], candidate: int = 2, index: int = 0) -> Any:
    return made["candidates"][candidate]["steps"][index]


@given(descriptors, targets)
def test_a_plan_of_the_rules_always_passes(descriptor: ModelDescriptor, target: TargetProfile) -> None:
    if descriptor.format is Format.OPENVINO:  # onnxruntime's backend has no way to it, and the plan says so
        target = target.model_copy(update={"runtime": Runtime.TRITON_OPENVINO})
    made = plan(descriptor, target, frozenset({"onnx", "torch", "sklearn", "boosting", "tensorflow", "openvino"}))
    assert is_executable(check(made, descriptor=descriptor, target=target, machine=MACHINE))
    assert check(made.model_dump(mode="json"), descriptor=descriptor, target=target, machine=MACHINE) == check(
        made, descriptor=descriptor, target=target, machine=MACHINE
    )


def walk(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    paths = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        paths += walk(inner, (*path, key))
    return paths


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_plan_however_mangled_passes_with_an_uncatalogued_step(data: st.DataObject) -> None:
    made = document()
    for _ in range(data.draw(st.integers(1, 4))):
        path = data.draw(st.sampled_from(walk(made)))
        place = made
        for key in path[:-1]:
            place = place[key]
        action = data.draw(st.sampled_from(["delete", "replace", "copy"]))
        if action == "delete":
            del place[path[-1]]
        elif action == "replace":
            kinds = st.sampled_from([*CATALOG, "shell", "onnx_tensorrt", "os.system"])
            place[path[-1]] = data.draw(json_values | kinds)
        else:
            other = data.draw(st.sampled_from(walk(made)))
            source = made
            for key in other:
                source = source[key]
            place[path[-1]] = copy.deepcopy(source)
        if not walk(made):
            break
    findings = check(made, descriptor=MINILM, target=TARGET, machine=MACHINE)
    if is_executable(findings):
        for candidate in made["candidates"]:
            for first in candidate.get("steps", ()):
                for one in (first, *first.get("fallbacks", ())):
                    assert CATALOG[one["kind"]].role == "conversion"
                    CATALOG[one["kind"]].options.model_validate(one.get("options", {}))
                    assert not one.get("fallbacks") or one is first


@given(json_values)
def test_anything_at_all_gets_findings_and_never_an_exception(value: Any) -> None:
    assert codes(value)


def test_a_plan_that_is_nested_without_end_gets_a_finding() -> None:
    made = document()
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    step(made)["options"] = deep
    assert "schema" in codes(made)
    made = document()
    fallback = {**step(made), "fallbacks": []}
    for _ in range(300):
        fallback = {**fallback, "fallbacks": [fallback]}
    step(made)["fallbacks"] = [fallback]
    assert codes(made)


def test_an_unknown_kind_is_named_with_its_pointer() -> None:
    made = document()
    step(made)["kind"] = "shell"
    assert codes(made)["unknown-kind"] == "/candidates/2/steps/0/kind"


@pytest.mark.parametrize("kind", [k.kind for k in CATALOG.values() if k.role != "conversion"])
def test_a_plan_cannot_name_a_step_of_analysis_or_proof(kind: str) -> None:
    made = document()
    step(made).update(kind=kind, options={}, fallbacks=[], toolchain=CATALOG[kind].toolchains[0])
    assert "role" in codes(made)


def test_options_are_checked_by_the_kinds_own_model() -> None:
    made = document()
    step(made)["options"] = {"opset": 99, "exporter": "magic", "surprise": 1}
    pointers = {f.pointer for f in check(made, descriptor=MINILM, target=TARGET, machine=MACHINE)}
    assert {f"/candidates/2/steps/0/options/{name}" for name in ("opset", "exporter", "surprise")} <= pointers


def test_a_number_written_as_text_is_refused() -> None:
    made = document()
    step(made)["options"]["opset"] = "17"
    assert codes(made)["options"] == "/candidates/2/steps/0/options/opset"


def test_a_toolchain_the_kind_does_not_run_in_is_refused() -> None:
    made = document()
    step(made)["toolchain"] = "onnx"
    assert "toolchain" in codes(made)


def test_steps_in_the_wrong_order_do_not_fit() -> None:
    made = document()
    made["candidates"][2]["steps"].reverse()
    assert "format" in codes(made)


def test_a_fallback_must_give_what_its_step_gives() -> None:
    made = document()
    step(made, 2, 1)["fallbacks"] = [step(made, 2, 2)]
    assert codes(made)["fallback"].startswith("/candidates/2/steps/1/fallbacks/0")


def test_a_lossy_chain_cannot_call_itself_exact() -> None:
    made = document()
    made["candidates"][2]["precision"] = "fp32"
    assert codes(made) == {"precision": "/candidates/2/precision"}


def test_a_planner_cannot_loosen_the_tolerance() -> None:
    made = document()
    made["target"]["tolerances"] = {"fp32": {"atol": 1.0}}
    assert codes(made) == {"target": "/target"}


def test_two_candidates_of_one_name_are_refused() -> None:
    made = document()
    made["candidates"][1]["id"] = "onnx"
    assert codes(made) == {"duplicate-candidate": "/candidates/1/id"}


def test_only_the_original_has_no_steps() -> None:
    made = document()
    made["candidates"][0]["steps"] = []
    assert "original" in codes(made)
    made = document()
    made["candidates"][0]["id"] = "original"
    assert "original" in codes(made)


def test_a_model_too_big_for_the_machine_is_refused_with_both_numbers() -> None:
    small = MachineBounds(memory_bytes=600 << 20, disk_bytes=100 << 20, cpus=2)
    findings = check(document(), descriptor=MINILM, target=TARGET, machine=small)
    assert [f.code for f in findings if f.level is FindingLevel.ERROR] == ["memory", "disk"]
    assert "600 MiB" in findings[0].message


def test_a_plan_where_nothing_could_win_is_refused() -> None:
    made = document()
    made["candidates"] = made["candidates"][2:]
    assert codes(made) == {"target": "/candidates"}


def test_a_lossy_candidate_that_cannot_win_is_a_warning_only() -> None:
    findings = check(document(), descriptor=MINILM, target=TARGET, machine=MACHINE)
    assert [(f.level.value, f.code) for f in findings] == [("warning", "lossy")]


def test_findings_are_json_documents() -> None:
    assert json.loads(check([], descriptor=MINILM, target=TARGET, machine=MACHINE)[0].model_dump_json())  # type: ignore[arg-type]
