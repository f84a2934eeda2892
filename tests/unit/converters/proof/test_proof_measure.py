from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import pytest

from converters import machine, measure, measure_worker
from schemas.descriptor import Format

FAST = {"rounds": 3, "round_ms": 2}


def square(write_onnx, times, *, batch="batch"):
    """A graph of ``times`` multiplications of a 256 x 256 matrix; the same answer whatever ``times`` is."""
    names = ["x", *(f"h{i}" for i in range(times - 1)), "y"]
    nodes = [("MatMul", [names[i], "w"], [names[i + 1]], {}) for i in range(times)]
    return write_onnx(
        nodes, [("x", "float", [batch, 256])], [("y", "float", [batch, 256])], {"w": np.eye(256, dtype=np.float32)}
    )


def begun(tell, folder, format=Format.ONNX):
    story = tell(folder, format)
    story.probe()
    story.reference()
    return story


def test_a_contender_with_far_more_work_is_slower_in_every_round(tell, write_onnx):
    story = begun(tell, square(write_onnx, 1))
    report = story.measure({"slow": square(write_onnx, 200)}, **FAST)
    assert not report.failures
    found = {(m.contender, m.batch): m for m in report.measurements}
    assert set(found) == {("original", 1), ("original", 8), ("slow", 1), ("slow", 8)}
    for batch in (1, 8):
        original, slow = found["original", batch], found["slow", batch]
        assert len(original.rounds_ms) == len(slow.rounds_ms) == 3
        assert statistics.median(slow.rounds_ms) > statistics.median(original.rounds_ms)
        assert slow.median_ms == statistics.median(slow.rounds_ms)
        assert slow.p95_ms >= min(slow.rounds_ms) > 0
        assert slow.throughput_per_s == pytest.approx(batch * 1000 / slow.median_ms)
        assert slow.runs >= 9


def test_a_model_of_a_fixed_batch_is_timed_at_its_own_size(tell, write_onnx):
    report = begun(tell, square(write_onnx, 1, batch=4)).measure({}, **FAST)
    assert [m.batch for m in report.measurements] == [4]


def test_a_contender_that_cannot_be_loaded_or_run_is_a_failure_and_the_others_are_measured(tell, write_onnx):
    story = begun(tell, square(write_onnx, 1))
    broken = square(write_onnx, 1)
    (broken / "model.onnx").write_bytes(b"not onnx")
    wrong = write_onnx([("Relu", ["z"], ["y"], {})], [("z", "float", ["batch", 256])], [("y", "float", ["batch", 256])])
    report = story.measure({"broken": broken, "wrong": wrong, "good": square(write_onnx, 2)}, **FAST)
    assert {m.contender for m in report.measurements} == {"original", "good"}
    assert "onnxruntime cannot load" in report.failures["broken"]
    assert "'z'" in report.failures["wrong"]


def test_threads_of_what_is_timed_wait_as_the_runtimes_have_it(tell, write_onnx, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # as every step has it
    asked: list[bytes] = []
    ask = measure.WorkerProcess.ask

    def look(worker, order):
        asked.append(Path(f"/proc/{worker._process.pid}/environ").read_bytes())
        return ask(worker, order)

    monkeypatch.setattr(measure.WorkerProcess, "ask", look)
    begun(tell, square(write_onnx, 1)).measure({}, **FAST)
    assert asked and not any(b"OMP_WAIT_POLICY" in environ for environ in asked)


@pytest.mark.parametrize("when", ["load", "bind", "turn"])
def test_a_contender_whose_process_dies_takes_none_of_the_others_with_it(tell, write_onnx, monkeypatch, when):
    story = begun(tell, square(write_onnx, 1))
    ask = measure.WorkerProcess.ask

    def ask_and_kill(worker, order):
        if order["contender"] == "deadly" and order["do"] == when:
            worker._process.kill()
        return ask(worker, order)

    monkeypatch.setattr(measure.WorkerProcess, "ask", ask_and_kill)
    report = story.measure({"deadly": square(write_onnx, 1), "good": square(write_onnx, 2)}, **FAST)
    assert set(report.failures) == {"deadly"}
    assert "by signal 9 while it was asked to" in report.failures["deadly"]
    rounds = {(m.contender, m.batch): len(m.rounds_ms) for m in report.measurements}
    assert rounds == {("original", 1): 3, ("original", 8): 3, ("good", 1): 3, ("good", 8): 3}


def test_rounds_stop_when_the_budget_is_spent_but_never_below_five(tell, write_onnx):
    report = begun(tell, square(write_onnx, 1)).measure({}, rounds=50, round_ms=5, budget_s=0.001, batch_sizes=(1,))
    assert len(report.measurements[0].rounds_ms) == 5


def test_other_batch_sizes_are_shown_from_one_round_when_the_budget_is_spent(tell, write_onnx):
    report = begun(tell, square(write_onnx, 1)).measure(
        {}, rounds=50, round_ms=2, budget_s=0.001, batch_sizes=(1, 8), deciding=(1,)
    )
    assert {m.batch: len(m.rounds_ms) for m in report.measurements} == {1: 5, 8: 1}


def test_a_long_run_is_timed_once_a_turn_and_short_ones_after_one_that_is_not_timed():
    calls = []
    assert len(measure_worker.timed(lambda: calls.append(time.sleep(0.03)), 10, is_long=True)) == len(calls) == 1
    calls.clear()
    assert len(measure_worker.timed(lambda: calls.append(time.sleep(0.03)), 40, is_long=True)) == len(calls) == 2
    calls.clear()
    assert len(measure_worker.timed(lambda: calls.append(None), 1e-9)) == len(calls) - 1 == 3


def test_what_takes_long_to_warm_up_only_is_not_long(tell, write_onnx, monkeypatch):
    seconds = iter([0.1, 0.1])
    monkeypatch.setattr(measure_worker, "LONG_MS", 50)
    monkeypatch.setattr(measure_worker, "_SLOW_WARM_S", 0.15)

    class Compiled:
        runtime = "compiled"

        def bind(self, feeds):
            return lambda: time.sleep(next(seconds, 0.001))

    story = begun(tell, square(write_onnx, 1))
    context = story.context("measure", {}, model=story.model)
    worker = measure_worker.Worker(context.request, context.workspace)
    worker.runners["slow"] = worker.runners["late"] = Compiled()
    feeds = str(story.reference_folder / "trace.inputs.npz")
    assert worker.obey({"do": "bind", "contender": "slow", "batch": 1, "feeds": feeds}) == {"warm_runs": 2}
    seconds = iter([0.1])
    worker.obey({"do": "bind", "contender": "late", "batch": 1, "feeds": feeds})
    assert worker.are_long == {("slow", 1): True, ("late", 1): False}
    answer = worker.obey({"do": "turn", "contender": "late", "batch": 1, "least_ms": 0.1})
    assert len(answer["latencies_ms"]) == 3


def test_rounds_stop_once_the_order_is_clear_and_other_batch_sizes_are_shown_from_a_few(tell, write_onnx):
    report = begun(tell, square(write_onnx, 1)).measure(
        {"slow": square(write_onnx, 400)}, rounds=60, round_ms=2, batch_sizes=(1, 8), deciding=(1,)
    )
    rounds = {(m.contender, m.batch): len(m.rounds_ms) for m in report.measurements}
    assert rounds["original", 1] == rounds["slow", 1] < 60
    assert rounds["original", 8] == rounds["slow", 8] == measure.SHOWN_ROUNDS


@pytest.mark.parametrize(
    ("mine", "other", "settled"),
    [([1.0] * 7, [2.0] * 7, True), ([1.0] * 6 + [3.0], [2.0] * 7, False), ([1.0, 1.01] * 4, [1.01, 1.0] * 4, True)],
)
def test_two_contenders_are_settled_when_every_round_agrees_or_they_are_level(mine, other, settled):
    assert measure._settled(mine, other) is settled


def test_the_report_says_where_and_how_it_was_measured(tell, write_onnx):
    report = begun(tell, square(write_onnx, 1)).measure({}, batch_sizes=(1,), **FAST)
    assert report.machine.threads == 1
    assert report.machine.versions["onnxruntime"]
    assert "3 rounds" in report.method
    assert report.measurements[0].runtime == "onnxruntime"


@pytest.mark.torch
def test_torch_and_onnxruntime_are_timed_in_one_run(tell, save_script, write_onnx):
    import torch

    net = torch.nn.Linear(256, 256, bias=False)
    story = begun(tell, save_script(net), Format.TORCHSCRIPT)
    candidate = write_onnx(
        [("MatMul", ["input", "w"], ["output"], {})],
        [("input", "float", ["batch", 256])],
        [("output", "float", ["batch", 256])],
        {"w": net.weight.detach().numpy().T.copy()},
    )
    assert story.parity(candidate).passed
    report = story.measure({"a": candidate}, **FAST)
    assert not report.failures
    assert {(m.contender, m.runtime) for m in report.measurements} == {("original", "torch"), ("a", "onnxruntime")}


@pytest.mark.torch
def test_what_a_model_prints_does_not_disturb_the_measuring(tell, save_script):
    import torch

    globals()["torch"] = torch

    class Chatty(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            print('{"ok": true, "latencies_ms": [0.0]}')
            return self.linear(x)

    story = begun(tell, save_script(Chatty()), Format.TORCHSCRIPT)
    report = story.measure({}, rounds=3, round_ms=0.01, batch_sizes=(1,))
    assert not report.failures
    assert report.measurements[0].median_ms > 0


def test_the_machine_is_described_without_importing_a_framework():
    described = machine.describe(2)
    assert described.threads == 2
    assert described.cores >= 1
    assert described.memory_bytes > 1 << 28
    assert described.cpu


def test_one_inference_shows_the_first_values_of_each_output(tell, write_onnx):
    folder = square(write_onnx, 1)
    story = begun(tell, folder)
    report = story.try_model(folder, rows=3)
    assert report.shapes == {"y": (3, 256)}
    assert len(report.outputs["y"]) == 8
    assert report.latency_ms > 0
    assert report.inputs[0].shape == ("batch", 256)


def test_not_a_number_is_shown_as_nothing(tell, write_onnx):
    folder = write_onnx([("Log", ["x"], ["y"], {})], [("x", "float", ["batch", 64])], [("y", "float", ["batch", 64])])
    report = begun(tell, folder).try_model(folder)
    assert None in report.outputs["y"]
