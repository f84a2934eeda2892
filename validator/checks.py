"""One function per rule of a plan. A plan with an error finding is never executed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from schemas.catalog import CATALOG, SERVED_FORMATS, StepKind
from schemas.descriptor import Format, ModelDescriptor
from schemas.plan import ORIGINAL, Candidate, ConversionPlan, FindingLevel, PlanFinding, Step
from schemas.precision import Precision
from schemas.target import TargetProfile
from validator.machine import MachineBounds

MAX_STEP_RUNS = 64
"""Steps of all candidates together, fallbacks counted: what one job may cost before it says something is wrong."""
MAX_PLAN_BYTES = 1 << 20
MAX_FINDINGS = 100
MEMORY_FACTOR = 2.5
"""Weights held at once by the hungriest step: measuring, with the original and a session's packed copy of a candidate
side by side, reached 2.07 times a model of 3 GiB; every other step stayed below 1.1 (``bench/big_model.py``)."""
TOOLCHAIN_BYTES = 512 << 20
"""Resident size of Python with torch, onnx and onnxruntime imported, before any model."""
DISK_FACTOR = 2
"""Bytes a converted model may take against the original's: an original of half precision exported as float32."""
_QUANTISED_OPERATORS = ("QLinear", "MatMulInteger", "ConvInteger", "QuantizeLinear", "DequantizeLinear")


def check(
    plan: Mapping[str, Any] | ConversionPlan,
    *,
    descriptor: ModelDescriptor,
    target: TargetProfile,
    machine: MachineBounds,
) -> tuple[PlanFinding, ...]:
    """Return what is wrong with ``plan`` for this model, target and machine; () when it may run as it is.

    ``plan`` may be anything that calls itself a plan: it is parsed again, also when it is a ConversionPlan already,
    since ``model_construct`` and ``model_copy`` check nothing.
    """
    raw = _raw(plan)
    if isinstance(raw, PlanFinding):
        return (raw,)
    try:
        parsed = ConversionPlan.model_validate(raw)
    except ValidationError as error:
        return tuple(_schema_findings(error))
    except RecursionError:
        return (_error("schema", "The plan's fallbacks are nested too deeply to be read.", ""),)
    findings = [
        *_target(parsed, target),
        *_ids(parsed),
        *_limits(parsed),
        *_room(parsed, descriptor, machine),
    ]
    for index, candidate in enumerate(parsed.candidates):
        findings += _candidate(candidate, f"/candidates/{index}", descriptor, target)
    findings += _reachable(parsed, descriptor, target)
    return tuple(findings[:MAX_FINDINGS])


def is_executable(findings: Sequence[PlanFinding]) -> bool:
    """Whether no finding is an error."""
    return all(finding.level is not FindingLevel.ERROR for finding in findings)


def _raw(plan: Mapping[str, Any] | ConversionPlan) -> Any:
    """Return the plan as plain JSON values, or the finding that it is none."""
    try:
        value = plan.model_dump(mode="json", warnings=False) if isinstance(plan, ConversionPlan) else plan
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError, AttributeError) as error:
        return _error("schema", f"The plan is not a JSON document: {type(error).__name__}.", "")
    if len(text) > MAX_PLAN_BYTES:
        return _error("limits", f"The plan is {len(text)} bytes long; at most {MAX_PLAN_BYTES} are read.", "")
    try:
        return json.loads(text)
    except RecursionError:
        return _error("schema", "The plan is nested too deeply to be read.", "")


def _schema_findings(error: ValidationError) -> Iterator[PlanFinding]:
    for item in error.errors(include_url=False, include_context=False, include_input=False)[:MAX_FINDINGS]:
        yield _error("schema", f"{item['msg']}.", _pointer(item["loc"]))


def _pointer(parts: Sequence[str | int]) -> str:
    """Return an RFC 6901 pointer."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)[:300]


def _target(plan: ConversionPlan, target: TargetProfile) -> Iterator[PlanFinding]:
    if plan.target != target:
        yield _error(
            "target",
            "The plan names another target than the job's; a planner may not change what is proved.",
            "/target",
        )


def _ids(plan: ConversionPlan) -> Iterator[PlanFinding]:
    seen: dict[str, int] = {}
    for index, candidate in enumerate(plan.candidates):
        if candidate.id in seen:
            yield _error(
                "duplicate-candidate",
                f"Candidates {seen[candidate.id]} and {index} are both called {candidate.id!r}.",
                f"/candidates/{index}/id",
            )
        seen.setdefault(candidate.id, index)


def _limits(plan: ConversionPlan) -> Iterator[PlanFinding]:
    runs = sum(1 for candidate in plan.candidates for step in candidate.steps for _ in _with_fallbacks(step))
    if runs > MAX_STEP_RUNS:
        yield _error("limits", f"The plan has {runs} steps, fallbacks counted; at most {MAX_STEP_RUNS} may run.", "")


def _with_fallbacks(step: Step) -> Iterator[Step]:
    waiting = [step]
    while waiting:
        step = waiting.pop()
        yield step
        waiting.extend(step.fallbacks)


def _room(plan: ConversionPlan, descriptor: ModelDescriptor, machine: MachineBounds) -> Iterator[PlanFinding]:
    """Estimate memory and disk from what the headers say; an estimate refuses only what cannot fit by far."""
    weights = max(descriptor.parameter_bytes or 0, descriptor.size_bytes)
    memory = int(max(MEMORY_FACTOR * weights, descriptor.memory_bytes or 0)) + TOOLCHAIN_BYTES
    converts = any(candidate.steps for candidate in plan.candidates)
    if converts and memory > machine.memory_bytes:
        yield _error(
            "memory",
            f"Converting needs about {memory >> 20:,} MiB ({MEMORY_FACTOR} x {weights >> 20:,} MiB of weights and the "
            f"libraries); a step may use {machine.memory_bytes >> 20:,} MiB.",
            "",
        )
    steps = sum(len(candidate.steps) for candidate in plan.candidates)
    # One copy more goes into the repository.
    disk = DISK_FACTOR * weights * (steps + 1)
    if disk > machine.disk_bytes:
        yield _error(
            "disk",
            f"{steps} conversions and the published copy need up to {disk >> 20:,} MiB; "
            f"{machine.disk_bytes >> 20:,} MiB are free.",
            "",
        )


def _candidate(
    candidate: Candidate, at: str, descriptor: ModelDescriptor, target: TargetProfile
) -> Iterator[PlanFinding]:
    if (candidate.id == ORIGINAL) != (not candidate.steps):
        yield _error(
            "original",
            f"Candidate {candidate.id!r} has {len(candidate.steps)} steps; 'original' is the one without any, "
            "and no other is.",
            f"{at}/steps",
        )
    format_, precisions = descriptor.format, _own_precisions(descriptor)
    for index, step in enumerate(candidate.steps):
        pointer = f"{at}/steps/{index}"
        yield from _step(step, pointer, format_)
        kind = CATALOG.get(step.kind)
        if kind is None or kind.gives is None:
            # What it gives is not known, so what follows cannot be judged; the step's own finding stands.
            return
        for number, fallback in enumerate(step.fallbacks):
            yield from _fallback(fallback, kind, f"{pointer}/fallbacks/{number}", format_)
        format_ = kind.gives
        if kind.precision is not None:
            precisions = {kind.precision}
    if candidate.format is not format_:
        yield _error("format", f"The chain ends in {format_.value}, not in {candidate.format.value}.", f"{at}/format")
    if candidate.format not in SERVED_FORMATS[target.runtime]:
        yield _error("target", f"The target does not serve {candidate.format.value}.", f"{at}/format")
    if candidate.precision not in precisions:
        expected = " or ".join(sorted(precision.value for precision in precisions))
        yield _error(
            "precision",
            f"The candidate says {candidate.precision.value} and its steps give {expected}.",
            f"{at}/precision",
        )
    if candidate.steps and candidate.precision not in target.precisions and candidate.precision is not Precision.FP32:
        yield PlanFinding(
            level=FindingLevel.WARNING,
            code="lossy",
            message=f"{candidate.precision.value} is measured and shown; the target allows "
            f"{', '.join(precision.value for precision in target.precisions)} only.",
            pointer=f"{at}/precision",
        )


def _step(step: Step, at: str, given: Format) -> Iterator[PlanFinding]:
    kind = CATALOG.get(step.kind)
    if kind is None:
        yield _error("unknown-kind", f"There is no step kind {step.kind!r} in the catalogue.", f"{at}/kind")
        return
    if kind.role != "conversion":
        yield _error("role", f"{step.kind} is a step of {kind.role}; code adds it, a plan never does.", f"{at}/kind")
    if step.toolchain not in kind.toolchains:
        yield _error(
            "toolchain",
            f"{step.kind} runs in {' or '.join(kind.toolchains)}, not in {step.toolchain!r}.",
            f"{at}/toolchain",
        )
    if given not in kind.takes:
        takes = ", ".join(format_.value for format_ in kind.takes) or "no model"
        yield _error("format", f"{step.kind} takes {takes}; here it would get {given.value}.", f"{at}/kind")
    yield from _options(kind, step.options, at)


def _options(kind: StepKind, options: dict[str, Any], at: str) -> Iterator[PlanFinding]:
    try:
        # Strict: a language model's "17" is a mistake that a person should see, not a number.
        kind.options.model_validate_json(json.dumps(options), strict=True)
    except ValidationError as error:
        for item in error.errors(include_url=False, include_context=False, include_input=False):
            yield _error("options", f"{kind.kind}: {item['msg']}.", f"{at}/options{_pointer(item['loc'])}"[:300])


def _fallback(step: Step, instead_of: StepKind, at: str, given: Format) -> Iterator[PlanFinding]:
    yield from _step(step, at, given)
    kind = CATALOG.get(step.kind)
    if kind is not None and (kind.gives is not instead_of.gives or kind.precision is not instead_of.precision):
        yield _error(
            "fallback", f"{step.kind} does not give what {instead_of.kind} gives; the rest of the chain needs it.", at
        )
    if step.fallbacks:
        yield _error("fallback", "A fallback has no fallbacks of its own; put them side by side.", f"{at}/fallbacks")


def _own_precisions(descriptor: ModelDescriptor) -> set[Precision]:
    """Return what a chain that changes no precision may call itself."""
    precisions = {Precision.FP32}
    halves = {"float16", "bfloat16"}
    if halves & descriptor.parameter_dtypes.keys():
        precisions.add(Precision.FP16)
    if not any(count for dtype, count in descriptor.parameter_dtypes.items() if "float" in dtype):
        # Without parameters, what goes in says in what it calculates.
        precisions |= {Precision.FP16 for spec in descriptor.inputs if spec.dtype in halves}
    if descriptor.format is Format.TFLITE and {"int8", "uint8", "int16"} & descriptor.parameter_dtypes.keys():
        precisions.add(Precision.INT8)
    if any(name.startswith(_QUANTISED_OPERATORS) for name in descriptor.operators):
        precisions.add(Precision.INT8)
    return precisions


def _reachable(plan: ConversionPlan, descriptor: ModelDescriptor, target: TargetProfile) -> Iterator[PlanFinding]:
    if descriptor.format in SERVED_FORMATS[target.runtime]:
        return
    own = _own_precisions(descriptor)
    if not any(c.precision in target.precisions or c.precision in own for c in plan.candidates):
        yield _error(
            "target",
            "No candidate has a precision that the target allows, nor can the original be served: nothing could win.",
            "/candidates",
        )


def _error(code: str, message: str, pointer: str) -> PlanFinding:
    return PlanFinding(level=FindingLevel.ERROR, code=code, message=message[:1000], pointer=pointer[:300])
