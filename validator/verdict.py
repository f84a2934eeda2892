"""The verdict: which contender is published, decided by code from the evidence of one run.

The rules, in order:

1. A candidate must have passed parity under the tolerance of its own precision.
2. Its precision must be one the target allows, or the model's own half precision; a lossy one must have been compared
   on real samples too.
3. It must have been measured in the same run; nothing unmeasured is published.
4. Where the target serves the original as it is, a candidate must beat it beyond the noise, else the original wins.
   Where it does not (a pickle, a torch module), the best candidate wins even if it is slower, and the reason says so.
5. Among candidates that the noise cannot tell apart, the simpler wins: higher precision, then fewer steps.
"""

from __future__ import annotations

from collections.abc import Sequence

from schemas.catalog import SERVED_FORMATS
from schemas.descriptor import Format
from schemas.evidence import ContenderVerdict, Verdict
from schemas.objective import Objective
from schemas.plan import ORIGINAL
from schemas.precision import Precision
from schemas.target import TargetProfile
from validator.contender import Contender
from validator.paired import LEAST_ROUNDS, Ratio
from validator.score import Score, scores_of
from validator.sentences import cut, interval_in_words, size_in_words, speed_in_words

__all__ = ["Contender", "decide"]

_RANK = {
    precision: rank
    for rank, precision in enumerate(
        (Precision.INT4, Precision.INT8, Precision.FP8, Precision.BF16, Precision.FP16, Precision.FP32)
    )
}


def decide(target: TargetProfile, original_format: Format, contenders: Sequence[Contender]) -> Verdict:
    """Return which contender is published and why, with a sentence for each.

    Ids are unique; the order of ``contenders`` does not matter. The original stands among them with id 'original'
    wherever it was measured, also when the target cannot serve it: it is the baseline of every ratio.
    """
    ordered = sorted(contenders, key=lambda contender: contender.id)
    original = next((c for c in ordered if c.id == ORIGINAL), None)
    own = original.precision if original is not None else Precision.FP32
    served = original is not None and original_format in SERVED_FORMATS[target.runtime]
    scores = scores_of(target, ordered, original)
    stopped: dict[str, ContenderVerdict] = {}
    eligible: list[Contender] = []
    for contender in ordered:
        refusal = (
            _stop_original(contender, original_format, target, scores)
            if contender.id == ORIGINAL
            else _stop_candidate(contender, target, own, scores)
        )
        if refusal is None:
            eligible.append(contender)
        else:
            stopped[contender.id] = refusal
    candidates = [c for c in eligible if c.id != ORIGINAL]
    baseline = original if served and original is not None and original.id not in stopped else None
    winner = _choose(target, baseline, candidates, scores)
    verdicts = tuple(stopped.get(c.id) or _passed(c, winner, baseline, target, scores) for c in ordered)
    return Verdict(
        winner=winner.id if winner else None,
        unchanged=winner is not None and winner.id == ORIGINAL,
        reason=cut(_reason(winner, original, candidates, verdicts, original_format, target, scores) + _proxy(target)),
        contenders=verdicts,
        basis=f"{scores.basis}{', on a CPU as a proxy' if target.hardware == 'gpu' else ''}",
    )


def _proxy(target: TargetProfile) -> str:
    """Return the sentence that calls evidence of this machine's CPU what it is for a target with a GPU."""
    return " Measured on this machine's CPU, a proxy for the target's GPU." if target.hardware == "gpu" else ""


def _stop_original(
    original: Contender, format_: Format, target: TargetProfile, scores: Score
) -> ContenderVerdict | None:
    """Return why the original itself cannot be published, or None."""
    if format_ not in SERVED_FORMATS[target.runtime]:
        return _verdict(
            original, "not_allowed", f"The target does not serve {format_.value}; it is the baseline here.", scores
        )
    if original.failure is not None:
        return _verdict(original, "failed", original.failure, scores)
    if original.parity is None:
        return _verdict(original, "not_allowed", "The plan leaves it out: it is the baseline here.", scores)
    if not original.parity.passed:
        return _verdict(original, "failed", f"It does not repeat its own answers: {original.parity.reason}", scores)
    if original.id not in scores.rounds:
        return _verdict(original, "not_measured", "It has no measurement in this run.", scores)
    return None


def _stop_candidate(
    candidate: Contender, target: TargetProfile, own: Precision, scores: Score
) -> ContenderVerdict | None:
    """Return why the candidate cannot win, or None."""
    if candidate.failure is not None:
        return _verdict(candidate, "failed", candidate.failure, scores)
    parity = candidate.parity
    if parity is None:
        return _verdict(candidate, "failed", "It was never compared with the original.", scores)
    if not parity.passed:
        return _verdict(candidate, "failed", parity.reason, scores)
    if parity.precision is not candidate.precision:
        reason = f"It is {candidate.precision.value} and was compared under the tolerance of {parity.precision.value}."
        return _verdict(candidate, "failed", reason, scores)
    keeps_half = candidate.precision is own and own is not Precision.FP32
    if candidate.precision not in target.precisions and not keeps_half:
        allowed = " and ".join(precision.value for precision in target.precisions)
        reason = (
            f"It gives the same answers, but the target allows {allowed} only; add {candidate.precision.value} to the "
            f"target's precisions to let it win.{_shown(candidate, scores)}"
        )
        return _verdict(candidate, "not_allowed", reason, scores)
    if _RANK[candidate.precision] < _RANK[own] and not parity.real_samples:
        reason = (
            f"{candidate.precision.value} loses digits, and it was compared on random inputs only; give real samples "
            f"in the sidecar to let it win.{_shown(candidate, scores)}"
        )
        return _verdict(candidate, "not_allowed", reason, scores)
    if candidate.id not in scores.rounds:
        return _verdict(candidate, "not_measured", f"It has no measurement {scores.where} in this run.", scores)
    return None


def _shown(candidate: Contender, scores: Score) -> str:
    speed = scores.speedups.get(candidate.id)
    return f" Measured and shown: {speed_in_words(speed)}." if speed is not None else ""


def _choose(
    target: TargetProfile, baseline: Contender | None, candidates: Sequence[Contender], scores: Score
) -> Contender | None:
    pool = list(candidates)
    if target.objective is Objective.SIZE:
        not_slower = [c for c in pool if not _known(scores.against_original(c), "slower")]
        if baseline is not None:
            pool = [c for c in not_slower if c.size_bytes < baseline.size_bytes]
        else:
            pool = not_slower or pool
        best = min(pool, key=lambda c: (c.size_bytes, *_simplicity(c), scores.cost(c), c.id), default=None)
        return best or baseline
    if baseline is not None:
        pool = [c for c in pool if _known(scores.against_original(c), "faster")]
    if not pool:
        return baseline
    best = min(pool, key=lambda c: (scores.cost(c), *_simplicity(c), c.id))
    level = [c for c in pool if c is best or not _told_apart(scores.between(c, best))]
    return min(level, key=lambda c: (*_simplicity(c), scores.cost(c), c.id))


def _known(ratio: Ratio | None, side: str) -> bool:
    return ratio is not None and (ratio.faster if side == "faster" else ratio.slower)


def _told_apart(ratio: Ratio | None) -> bool:
    return ratio is not None and (ratio.faster or ratio.slower)


def _simplicity(contender: Contender) -> tuple[int, int]:
    return (-_RANK[contender.precision], contender.steps)


def _passed(
    contender: Contender, winner: Contender | None, baseline: Contender | None, target: TargetProfile, scores: Score
) -> ContenderVerdict:
    """Return the verdict on a contender that nothing stopped."""
    if winner is not None and contender.id == winner.id:
        return _verdict(contender, "winner", _winning(contender, scores), scores)
    if contender.id == ORIGINAL:
        beaten_by = winner.id if winner else "nothing"
        return _verdict(contender, "passed", f"It could be served as it is; {beaten_by} is better.", scores)
    ratio = scores.against_original(contender)
    if target.objective is Objective.SIZE:
        reason = f"{size_in_words(contender.size_bytes)}"
        if _known(ratio, "slower") and ratio is not None:
            reason += f", and slower than the original beyond the noise: {interval_in_words(ratio)}."
        elif baseline is not None and contender.size_bytes >= baseline.size_bytes:
            reason += f" is no smaller than the original's {size_in_words(baseline.size_bytes)}."
        elif winner is not None:
            reason += f"; {winner.id} has {size_in_words(winner.size_bytes)}."
        return _verdict(contender, "passed", reason, scores)
    if baseline is not None and not _known(ratio, "faster"):
        if ratio is None:
            reason = "It shares no usable round with the original, so that nothing shows that it is faster."
        elif ratio.low is None:
            reason = f"{ratio.rounds} rounds are too few to tell it from the original ({LEAST_ROUNDS} are needed)."
        elif ratio.slower:
            reason = f"It is slower than the original: {interval_in_words(ratio)}."
        else:
            reason = f"It is no faster than the original beyond the noise: {interval_in_words(ratio)}."
        return _verdict(contender, "passed", reason, scores)
    if winner is None:
        return _verdict(contender, "passed", "It passed.", scores)
    between = scores.between(contender, winner)
    if between is not None and _told_apart(between):
        reason = f"It passed; {winner.id} is faster: {interval_in_words(between)}."
    else:
        reason = f"It passed, and is level with {winner.id} within the noise; {winner.id} is the simpler of the two."
        if _simplicity(contender) <= _simplicity(winner):
            reason = f"It passed, and is level with {winner.id} within the noise, whose median is the lower."
    return _verdict(contender, "passed", reason, scores)


def _winning(winner: Contender, scores: Score) -> str:
    if winner.id == ORIGINAL:
        return f"The original is served as it is: {scores.words(winner)}."
    against = scores.against_original(winner)
    return f"{scores.words(winner)}{'; ' + speed_in_words(against) if against else ''}."


def _reason(
    winner: Contender | None,
    original: Contender | None,
    candidates: Sequence[Contender],
    verdicts: Sequence[ContenderVerdict],
    original_format: Format,
    target: TargetProfile,
    scores: Score,
) -> str:
    if winner is None:
        why = "; ".join(f"{v.contender}: {v.reason.rstrip('.')}" for v in verdicts if v.contender != ORIGINAL)
        return f"Nothing may be published. {why or 'No candidate was made'}."
    if winner.id == ORIGINAL:
        if not candidates:
            return f"The original stays as it is: no candidate may replace it. It takes {scores.words(winner)}."
        what = "smaller without being slower" if target.objective is Objective.SIZE else "faster beyond the noise"
        return f"The original stays as it is: no candidate is {what}. It takes {scores.words(winner)}."
    against = scores.against_original(winner)
    answers = f"{winner.id} gives the original's answers"
    unserved = original_format not in SERVED_FORMATS[target.runtime]
    if against is None or original is None:
        return (
            f"{answers} and takes {scores.words(winner)}; the original could not be timed in this run, so that nothing "
            "is claimed about speed."
        )
    if target.objective is Objective.SIZE:
        return (
            f"{answers} in {size_in_words(winner.size_bytes)} instead of {size_in_words(original.size_bytes)}, and is "
            f"{speed_in_words(against)}."
        )
    numbers = f"{scores.words(winner)} instead of {scores.words(original)}"
    if against.faster:
        return f"{answers} and is {speed_in_words(against)}: {numbers}."
    why = f"the target does not serve {original_format.value}" if unserved else "the original cannot be served"
    if against.slower:
        return f"{answers} and is published although it is {speed_in_words(against)}: {numbers}; {why}."
    return f"{answers} and is {speed_in_words(against)}: {numbers}; {why}."


def _verdict(contender: Contender, outcome: str, reason: str, scores: Score) -> ContenderVerdict:
    speedup = scores.speedups.get(contender.id) if contender.id != ORIGINAL else None
    return ContenderVerdict.model_validate(
        {
            "contender": contender.id,
            "outcome": outcome,
            "reason": cut(reason),
            "speedup": speedup.median if speedup else None,
            "speedup_low": speedup.low if speedup else None,
            "speedup_high": speedup.high if speedup else None,
        }
    )
