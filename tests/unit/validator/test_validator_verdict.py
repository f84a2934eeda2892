from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.descriptor import Format, KnownBy, TensorSpec
from schemas.evidence import BatchProof, Measurement, ParityReport
from schemas.objective import Objective
from schemas.plan import ORIGINAL
from schemas.precision import Precision
from schemas.target import DEFAULT_TOLERANCES, TargetProfile
from validator.contender import Contender
from validator.paired import LEAST_ROUNDS, ratio_of
from validator.verdict import decide

X = TensorSpec(name="x", dtype="float32", shape=("batch", 4), known_by=KnownBy.PROBE)


def parity(precision: Precision = Precision.FP32, *, passed: bool = True, real: bool = False) -> ParityReport:
    return ParityReport(
        passed=passed,
        reason="All outputs agree." if passed else "Output 'y' differs by 3.1.",
        precision=precision,
        tolerance=DEFAULT_TOLERANCES[precision],
        outputs=(),
        cases=(),
        real_samples=real,
        batching=BatchProof(holds=True, reason="It holds.", sizes=(1, 8)),
        inputs=(X,),
        served_outputs=(X,),
    )


def timed(rounds: list[float], batch: int = 1) -> Measurement:
    middle = sorted(rounds)[len(rounds) // 2]
    return Measurement(
        contender="c",
        runtime="onnxruntime",
        batch=batch,
        rounds_ms=tuple(rounds),
        runs=len(rounds),
        median_ms=middle,
        p95_ms=max(rounds),
        throughput_per_s=1000 * batch / middle,
    )


def steady(milliseconds: float, batch: int = 1, rounds: int = 15, noise: float = 0.01, seed: int = 0) -> Measurement:
    rng = random.Random(f"{seed} {milliseconds}")
    return timed([milliseconds * (1 + rng.uniform(-noise, noise)) for _ in range(rounds)], batch)


def contender(id_: str, *measurements: Measurement, **facts: Any) -> Contender:
    precision = facts.pop("precision", Precision.FP32)
    defaults: dict[str, Any] = {
        "steps": 0 if id_ == ORIGINAL else 1,
        "size_bytes": 1000,
        "parity": parity(precision),
    }
    return Contender(id=id_, precision=precision, measurements=measurements, **{**defaults, **facts})


def outcomes(verdict: Any) -> dict[str, str]:
    return {c.contender: c.outcome for c in verdict.contenders}


def test_the_faster_candidate_wins_and_the_reason_has_both_times_and_the_interval() -> None:
    verdict = decide(
        TargetProfile(), Format.ONNX, [contender(ORIGINAL, steady(20)), contender("onnx-optimized", steady(10))]
    )
    assert verdict.winner == "onnx-optimized" and not verdict.unchanged
    assert "95% interval" in verdict.reason and "at batch 1 instead of" in verdict.reason
    winner = next(c for c in verdict.contenders if c.outcome == "winner")
    assert winner.speedup == pytest.approx(2, rel=0.05)
    assert winner.speedup_low and winner.speedup_high and winner.speedup_low < 2.05 < winner.speedup_high * 1.05


def test_a_difference_within_the_noise_leaves_an_onnx_original_unchanged() -> None:
    original, candidate = steady(10, noise=0.3, seed=1), steady(9.9, noise=0.3, seed=2)
    verdict = decide(TargetProfile(), Format.ONNX, [contender(ORIGINAL, original), contender("onnx", candidate)])
    assert verdict.winner == ORIGINAL and verdict.unchanged
    assert "noise" in verdict.contenders[0].reason


def test_a_pickle_is_replaced_by_the_best_candidate_even_if_it_is_slower_and_the_reason_says_so() -> None:
    contenders = [contender(ORIGINAL, steady(1), parity=None), contender("onnx", steady(2))]
    verdict = decide(TargetProfile(), Format.SKLEARN, contenders)
    assert verdict.winner == "onnx" and not verdict.unchanged
    assert "although it is slower" in verdict.reason and "does not serve sklearn" in verdict.reason
    assert outcomes(verdict)[ORIGINAL] == "not_allowed"


def test_nothing_is_published_when_no_candidate_of_a_pickle_passes() -> None:
    contenders = [
        contender(ORIGINAL, steady(1), parity=None),
        contender("onnx", steady(2), parity=parity(passed=False)),
    ]
    verdict = decide(TargetProfile(), Format.SKLEARN, contenders)
    assert verdict.winner is None and not verdict.unchanged
    assert "differs by 3.1" in verdict.reason


def test_an_onnx_original_is_served_when_no_candidate_passes() -> None:
    contenders = [contender(ORIGINAL, steady(1)), contender("onnx", failure="It ran out of memory.", parity=None)]
    verdict = decide(TargetProfile(), Format.ONNX, contenders)
    assert verdict.unchanged and outcomes(verdict) == {"onnx": "failed", ORIGINAL: "winner"}


def test_int8_does_not_win_where_the_target_allows_fp32_only() -> None:
    fast = contender("int8", steady(1), precision=Precision.INT8, parity=parity(Precision.INT8, real=True))
    verdict = decide(TargetProfile(), Format.ONNX, [contender(ORIGINAL, steady(9)), fast])
    assert verdict.winner == ORIGINAL and outcomes(verdict)["int8"] == "not_allowed"


def test_int8_wins_only_with_real_samples() -> None:
    target = TargetProfile(precisions=(Precision.FP32, Precision.INT8))
    for real, winner in ((False, ORIGINAL), (True, "int8")):
        fast = contender("int8", steady(1), precision=Precision.INT8, parity=parity(Precision.INT8, real=real))
        assert decide(target, Format.ONNX, [contender(ORIGINAL, steady(9)), fast]).winner == winner


def test_a_half_precision_model_may_stay_half_precision() -> None:
    half = contender(ORIGINAL, steady(9), precision=Precision.FP16)
    candidate = contender("onnx-optimized", steady(3), precision=Precision.FP16)
    assert decide(TargetProfile(), Format.ONNX, [half, candidate]).winner == "onnx-optimized"


def test_a_report_of_another_precisions_tolerance_proves_nothing() -> None:
    lenient = contender("onnx", steady(1), parity=parity(Precision.INT8))
    verdict = decide(TargetProfile(), Format.ONNX, [contender(ORIGINAL, steady(9)), lenient])
    assert outcomes(verdict)["onnx"] == "failed"


def test_the_simpler_of_two_level_candidates_wins() -> None:
    contenders = [
        contender(ORIGINAL, steady(20), parity=None),
        contender("a-long-way", steady(9.99, noise=0.2, seed=3), steps=3),
        contender("onnx", steady(10, noise=0.2, seed=4), steps=1),
    ]
    verdict = decide(TargetProfile(), Format.TORCHSCRIPT, contenders)
    assert verdict.winner == "onnx"
    assert "simpler" in verdict.contenders[0].reason


def test_a_candidate_without_a_measurement_cannot_win() -> None:
    verdict = decide(TargetProfile(), Format.TORCHSCRIPT, [contender(ORIGINAL, steady(1)), contender("onnx")])
    assert verdict.winner is None and outcomes(verdict)["onnx"] == "not_measured"


def test_without_a_timed_original_the_best_measured_candidate_wins_and_no_speed_is_claimed() -> None:
    verdict = decide(TargetProfile(), Format.ONNX, [contender(ORIGINAL), contender("onnx", steady(3))])
    assert verdict.winner == "onnx" and "could not be timed" in verdict.reason


def test_throughput_compares_each_contender_at_its_best_batch() -> None:
    target = TargetProfile(objective=Objective.THROUGHPUT)
    original = contender(ORIGINAL, steady(1, 1), steady(8, 8))
    batched = contender("onnx-optimized", steady(1.5, 1), steady(2, 8))
    verdict = decide(target, Format.ONNX, [original, batched])
    assert verdict.winner == "onnx-optimized" and "rows a second at batch 8" in verdict.reason


def test_size_takes_the_smallest_that_is_not_slower() -> None:
    target = TargetProfile(objective=Objective.SIZE)
    contenders = [
        contender(ORIGINAL, steady(10), size_bytes=1000),
        contender("small-and-slow", steady(20), size_bytes=100),
        contender("smaller", steady(10, seed=9), size_bytes=500),
    ]
    verdict = decide(target, Format.ONNX, contenders)
    assert verdict.winner == "smaller"
    assert "slower than the original" in verdict.contenders[1].reason


def test_a_fixed_batch_decides_at_its_own_size() -> None:
    verdict = decide(TargetProfile(), Format.ONNX, [contender(ORIGINAL, steady(9, 4)), contender("onnx", steady(3, 4))])
    assert verdict.winner == "onnx" and verdict.basis.endswith("at batch 4")


def test_too_few_rounds_never_beat_an_original() -> None:
    few = LEAST_ROUNDS - 1
    contenders = [contender(ORIGINAL, steady(9, rounds=few)), contender("onnx", steady(3, rounds=few))]
    verdict = decide(TargetProfile(), Format.ONNX, contenders)
    assert verdict.unchanged and "too few" in verdict.contenders[0].reason


def test_the_interval_is_the_sign_tests() -> None:
    values = [float(value) for value in range(1, 16)]
    ratio = ratio_of(values, [1.0] * 15)
    assert ratio is not None and (ratio.low, ratio.median, ratio.high) == (4, 8, 12)


@given(st.integers(6, 60))
def test_the_interval_covers_the_median_95_times_in_a_hundred_and_no_rank_narrower_does(number: int) -> None:
    values = [float(value) for value in range(1, number + 1)]
    ratio = ratio_of(values, [1.0] * number)
    assert ratio is not None and ratio.low is not None
    rank = int(ratio.low)

    def coverage(k: int) -> float:
        return 1 - 2 * sum(math.comb(number, i) for i in range(k)) / 2**number

    assert coverage(rank) >= 0.95 > coverage(rank + 1)


rounds_lists = st.lists(st.floats(0.01, 100) | st.sampled_from([0.0, math.nan, math.inf, -1.0]), max_size=12)
measured = st.builds(
    lambda rounds, batch: Measurement(
        contender="c", runtime="r", batch=batch, rounds_ms=tuple(rounds), runs=1, median_ms=1, p95_ms=1,
        throughput_per_s=1,
    ),
    rounds_lists,
    st.sampled_from([1, 4, 8]),
)  # fmt: skip


@st.composite
def contender_lists(draw: st.DrawFn) -> list[Contender]:
    ids = draw(st.lists(st.sampled_from([ORIGINAL, "a", "b", "c", "d"]), unique=True, max_size=5))
    made = []
    for id_ in ids:
        precision = draw(st.sampled_from(Precision))
        report = draw(
            st.none()
            | st.builds(parity, st.sampled_from([precision, *Precision]), passed=st.booleans(), real=st.booleans())
        )
        made.append(
            Contender(
                id=id_,
                precision=precision,
                steps=draw(st.integers(0, 3)),
                size_bytes=draw(st.integers(0, 5)),
                parity=report,
                measurements=tuple(draw(st.lists(measured, max_size=3))),
                failure=draw(st.none() | st.none() | st.text(max_size=600)),
            )
        )
    return made


verdict_targets = st.builds(
    TargetProfile,
    objective=st.sampled_from(Objective),
    precisions=st.lists(st.sampled_from(Precision), min_size=1, unique=True).map(tuple),
)


@settings(max_examples=300, deadline=None)
@given(verdict_targets, st.sampled_from([Format.ONNX, Format.SKLEARN]), contender_lists(), st.randoms())
def test_whatever_the_evidence_a_winner_is_proved_allowed_and_measured(
    target: TargetProfile, format_: Format, contenders: list[Contender], rng: random.Random
) -> None:
    verdict = decide(target, format_, contenders)
    shuffled = list(contenders)
    rng.shuffle(shuffled)
    assert decide(target, format_, shuffled) == verdict
    assert sorted(c.contender for c in verdict.contenders) == sorted(c.id for c in contenders)
    assert verdict.unchanged == (verdict.winner == ORIGINAL)
    assert [c.contender for c in verdict.contenders if c.outcome == "winner"] == (
        [verdict.winner] if verdict.winner else []
    )
    if verdict.winner is None:
        return
    winner = next(c for c in contenders if c.id == verdict.winner)
    assert winner.failure is None and winner.measurements
    if winner.id == ORIGINAL:
        assert format_ is Format.ONNX and (winner.parity is None or winner.parity.passed)
        return
    assert winner.parity is not None and winner.parity.passed and winner.parity.precision is winner.precision
    own = next((c.precision for c in contenders if c.id == ORIGINAL), Precision.FP32)
    assert winner.precision in target.precisions or winner.precision is own is not Precision.FP32


def test_evidence_of_a_cpu_is_called_a_proxy_where_the_target_has_a_gpu() -> None:
    contenders = [contender("original", steady(10)), contender("onnx", steady(5), parity=parity())]
    gpu = decide(TargetProfile(hardware="gpu"), Format.TORCHSCRIPT, contenders)
    assert "proxy" in gpu.reason and "proxy" in gpu.basis
    assert "proxy" not in decide(TargetProfile(), Format.TORCHSCRIPT, contenders).reason
