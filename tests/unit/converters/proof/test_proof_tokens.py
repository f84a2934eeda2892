"""Language models are judged by the tokens they would choose, and their distributions' divergence is told."""

from __future__ import annotations

import numpy as np
import pytest

from converters.comparison import compare, divergence, gather, token_outputs
from schemas.descriptor import KnownBy, TensorSpec
from schemas.target import Tolerance

LOOSE = Tolerance(min_cosine=0.9, min_agreement=0.97)


def logits(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_the_divergence_is_that_of_the_definition():
    original, candidate = np.log(np.array([[[0.5, 0.25, 0.25]]])), np.log(np.array([[[0.25, 0.25, 0.5]]]))
    wanted = 0.5 * np.log(0.5 / 0.25) + 0.25 * np.log(0.25 / 0.5)
    assert divergence(original, candidate) == pytest.approx(wanted)


def test_logits_moved_as_one_are_the_same_distribution():
    a = logits(2, 3, 50)
    assert divergence(a, a + 7) == pytest.approx(0, abs=1e-9)


def test_forbidden_tokens_leave_the_divergence_finite():
    a = logits(2, 3, 5)
    b = a.copy()
    b[..., 0] = -np.inf
    assert divergence(b, b) == 0
    assert 0 < divergence(b, a) < divergence(a, b) < np.inf


def test_the_share_of_equal_tokens_counts_every_place():
    a = logits(2, 5, 50)
    b = a.copy()
    b[0, 0] = -b[0, 0]
    difference = compare(a, b, LOOSE, lossy=True, tokens=True)
    assert difference.agreement == pytest.approx(0.9) and difference.weight == 10
    assert difference.kl is not None and difference.kl > 0


def test_a_lossy_candidate_that_chooses_other_tokens_fails_and_says_so():
    a = logits(4, 10, 50)
    b = a + 0.25 * logits(4, 10, 50)[::-1]
    difference = compare(a, b, LOOSE, lossy=True, tokens=True)
    parity, why = gather("logits", [("sentences-0", True, difference)], LOOSE, lossy=True)
    assert difference.passed and not parity.passed
    assert "same token in" in why and parity.kl == difference.kl


def test_real_sentences_decide_the_divergence_and_noise_does_not():
    a = logits(1, 4, 50)
    real, noise = (
        compare(a, a + shift * logits(1, 4, 50)[..., ::-1], LOOSE, lossy=True, tokens=True) for shift in (0.01, 2)
    )
    parity, _ = gather("logits", [("trace", False, noise), ("sentences-0", True, real)], LOOSE, lossy=True)
    assert parity.kl == real.kl


@pytest.mark.parametrize(
    ("task", "shape", "expected"),
    [
        ("text-generation", ("batch", "sequence", 128), {"logits"}),
        ("fill-mask", ("batch", "sequence", 128), {"logits"}),
        ("text-classification", ("batch", "sequence", 128), set()),
        ("text-generation", ("batch", 128), set()),
        (None, ("batch", "sequence", 128), set()),
    ],
)
def test_only_logits_over_a_vocabulary_are_judged_by_tokens(task, shape, expected):
    spec = TensorSpec(name="logits", dtype="float32", shape=shape, known_by=KnownBy.PROBE)
    assert token_outputs(task, [spec]) == expected
