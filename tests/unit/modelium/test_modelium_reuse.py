"""What is reused, and what never is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from executor import toolchain
from ingestion.drops import drops
from modelium import step_cache, step_memory, step_runs
from modelium.context import Context
from modelium.settings import Settings
from modelium.stages import execute
from modelium.stages.measure import _is_steady
from modelium.submit import submit
from schemas.account import CandidateAccount
from schemas.catalog import parse_options
from schemas.descriptor import Format
from schemas.evidence import Machine, Measurement, MeasureReport
from schemas.plan import Candidate
from schemas.precision import Precision
from schemas.step_io import StepRequest
from schemas.step_run import Isolation, Property, StepRun, StepRunState


def measured(contender: str, rounds: tuple[float, ...], median_ms: float) -> Measurement:
    return Measurement(
        contender=contender, runtime="onnxruntime", batch=1, rounds_ms=rounds, runs=9, median_ms=median_ms,
        p95_ms=median_ms, throughput_per_s=1,
    )  # fmt: skip


def run_of(*measurements: Measurement, failures: dict[str, str] | None = None) -> StepRun:
    machine = Machine(cpu="a", cores=2, threads=2, memory_bytes=1, os="linux")
    report = MeasureReport(machine=machine, method="m", measurements=measurements, failures=failures or {})
    return StepRun.model_validate(
        {
            "id": "a", "job_id": "b", "attempt": 1, "kind": "measure", "toolchain": "onnx", "cache_key": "k",
            "state": StepRunState.SUCCEEDED, "report": report.model_dump(mode="json"),
            "started_at": "2026-01-01T00:00:00Z",
        }
    )  # fmt: skip


def test_a_measurement_is_taken_again_only_if_it_was_steady_and_whole() -> None:
    original, candidate = measured("original", (2, 2, 2), 2), measured("onnx", (1, 1, 1), 1)
    assert _is_steady(run_of(original, candidate))
    assert not _is_steady(run_of(original, candidate, failures={"int8": "it crashed"}))
    assert not _is_steady(run_of(original, measured("onnx", (1, 1, 1), 3)))
    assert not _is_steady(run_of(candidate))


def test_a_measurement_of_another_machine_has_another_key() -> None:
    request = StepRequest(kind="measure")
    keys = {step_cache.cache_key(request, {}, {}, "bubblewrap", machine) for machine in ("", "here", "there")}
    assert len(keys) == 3


def test_levels_of_trust_never_share_and_limits_do() -> None:
    request = StepRequest(kind="probe")
    key = step_cache.cache_key(request, {}, {}, "bubblewrap")
    assert step_cache.cache_key(request, {}, {}, "none") != key
    assert step_cache.cache_key(request.model_copy(update={"memory_bytes": 1 << 30}), {}, {}, "bubblewrap") == key


class Backend:
    """A sandbox that counts how often it was asked what it enforces."""

    def __init__(self, name: str, **lacks: object) -> None:
        self.name, self.lacks, self.asked = name, lacks, 0

    def isolation(self, limits: object) -> Isolation:
        self.asked += 1
        whole = Isolation(
            backend=self.name, own_user=True, no_network=True, read_only_root=True, own_pids=True, seccomp=True,
            memory="cgroup-v2", processes="cgroup-v2", cpu="cgroup-v2",
        )  # fmt: skip
        return whole.model_copy(update=self.lacks)


def context_with(settings: Settings, backend: Backend) -> Context:
    context = Context(settings)
    vars(context)["_sandbox"] = backend
    return context


def test_the_next_process_knows_the_isolation_without_starting_a_sandbox(settings: Settings) -> None:
    first, second = Backend("bubblewrap"), Backend("docker")
    assert context_with(settings, first).trust == "bubblewrap"
    assert context_with(settings, second).trust == "bubblewrap"
    assert (first.asked, second.asked) == (1, 0)


def test_other_settings_or_another_boot_forget_the_isolation(settings: Settings) -> None:
    context_with(settings, Backend("bubblewrap")).trust  # noqa: B018
    assert context_with(settings.model_copy(update={"threads": 7}), Backend("docker")).trust == "docker"
    path = Context(settings).home.runtime / "trust.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "stamp": ["another boot", kept["stamp"][1]]}))
    assert context_with(settings, Backend("docker")).trust == "docker"


def test_no_process_believes_that_there_is_no_isolation(settings: Settings) -> None:
    lax = settings.model_copy(update={"allow_no_isolation": True})
    assert context_with(lax, Backend("none")).trust == "none"
    assert context_with(lax, Backend("bubblewrap")).trust == "bubblewrap"


@pytest.mark.parametrize("lacking", get_args(Property))
def test_what_a_worker_with_less_isolation_made_never_serves_one_with_more(
    settings: Settings, tmp_path: Path, lacking: str
) -> None:
    shared = f"sqlite:///{tmp_path / 'shared.db'}"
    less = "rlimit" if lacking in ("memory", "processes", "cpu") else False
    weak, strong, as_strong = (
        context_with(settings.model_copy(update={"home": tmp_path / name, "database_url": shared}), backend)
        for name, backend in (
            (
                "weak",
                Backend("bubblewrap", **{lacking: less}),
            ),
            ("strong", Backend("bubblewrap")),
            ("as-strong", Backend("bubblewrap")),
        )
    )
    (tmp_path / "model.onnx").write_text("weights")
    job_id = submit(weak, drops(tmp_path / "model.onnx")[0], source="cli").job_id
    request = StepRequest(kind="probe")

    def key(worker: Context) -> str:
        return step_cache.cache_key(request, {}, {}, worker.trust)

    for worker in (weak, strong):
        assert step_cache.find(strong.database, key(worker)) is None
        of = {"id": worker.settings.home.name, "job_id": job_id, "cache_key": key(worker)}
        run = run_of().model_copy(update=of)
        step_runs.save(worker.database, run)
    found = step_cache.find(as_strong.database, key(as_strong))
    assert found is not None and found.id == "strong"


def test_another_runtime_or_no_isolation_is_another_level() -> None:
    whole = Backend("docker").isolation(None)
    runtimes = [whole.model_copy(update={"runtime": runtime}).level for runtime in ("", "runc", "runsc")]
    assert runtimes == ["docker", "docker", "docker by runsc"]
    assert whole.model_copy(update={"backend": "none"}).level == "none"


def interpreter(folder: Path) -> Path:
    """A Python that counts how often it is started and has a library folder of its own."""
    (folder / "lib").mkdir()
    path = folder / "python"
    answer = {"versions": {"python": "3.11"}, "prefixes": [str(folder)], "path": [str(folder / "lib")]}
    path.write_text(f"#!/bin/sh\necho x >> {folder}/started\necho '{json.dumps(answer)}'\n")
    path.chmod(0o755)
    return path


def test_an_interpreter_is_asked_again_only_when_something_was_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = interpreter(tmp_path)
    monkeypatch.setattr(toolchain, "_folder", tmp_path)

    def ask() -> int:
        toolchain.installation.cache_clear()
        assert toolchain.installation(python).versions == {"python": "3.11"}
        return len((tmp_path / "started").read_text().splitlines())

    assert [ask(), ask()] == [1, 1]
    (tmp_path / "lib" / "new-1.0.dist-info").mkdir()
    assert [ask(), ask()] == [2, 2]
    (tmp_path / "pyvenv.cfg").write_text("home = elsewhere\n")
    assert [ask(), ask()] == [3, 3]
    toolchain.installation.cache_clear()


def test_more_model_never_means_less_memory() -> None:
    for kind in ("analyze", "probe", "reference", "onnx_optimize", "torchscript_onnx", "parity", "measure"):
        needs = [step_memory.estimate(kind, "torch", [size << 20]) for size in (0, 1, 90, 300, 3000, 30_000)]
        assert needs == sorted(needs), kind
    assert step_memory.estimate("measure", "onnx", [1 << 30] * 3) > step_memory.estimate("measure", "onnx", [1 << 30])


def test_what_was_built_on_a_gpu_is_reused_on_its_machine_only() -> None:
    def where(kind: str) -> str:
        return step_cache.gpu_of(kind, parse_options(kind, {}), Format.ONNX)

    assert where("onnx_tensorrt") == step_cache.machine_identity()
    assert where("onnx_optimize") == where("reference") == ""


@pytest.mark.parametrize(("precision", "same"), [(Precision.INT8, False), (Precision.FP32, True)])
def test_answers_in_int8_are_not_taken_from_a_cpu_that_computes_others(
    monkeypatch: pytest.MonkeyPatch, precision: Precision, same: bool
) -> None:
    candidate = Candidate(id="c", format=Format.ONNX, precision=precision, steps=(), reason="r")
    account = CandidateAccount(id="c", format=Format.ONNX, precision=precision, state="converted", model_sha256="a")
    machines = []

    class Asked(Exception):
        pass

    def step(*_: object, **named: object) -> None:
        machines.append(named["machine"])
        raise Asked

    work: Any = SimpleNamespace(step=step)
    for flags in ({"sse2", "avx2"}, {"sse2", "avx2", "avx512_vnni"}):
        monkeypatch.setattr(execute, "cpu_flags", lambda flags=flags: frozenset(flags))
        with pytest.raises(Asked):
            execute._prove(work, candidate, None, "reference", account)  # type: ignore[arg-type]
    assert (machines[0] == machines[1]) is same
