from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from converters.accuracy import accuracy
from converters.comparison import compare, gather, least_cosine
from schemas.precision import Precision
from schemas.target import DEFAULT_TOLERANCES, Tolerance

FP32 = DEFAULT_TOLERANCES[Precision.FP32]
INT8 = DEFAULT_TOLERANCES[Precision.INT8]
FINITE = st.floats(-1e6, 1e6, width=32)
ARRAYS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, max_side=4), elements=FINITE)


@given(ARRAYS, st.floats(0, 1), st.floats(0, 1), st.randoms(use_true_random=False))
def test_the_verdict_on_numbers_is_allclose(array, atol, rtol, random):
    shift = np.float32(random.uniform(-2, 2))
    other = array + shift
    tolerance = Tolerance(atol=atol, rtol=rtol)
    a, b = array.astype(np.float64), other.astype(np.float64)
    assert compare(array, other, tolerance, lossy=False).passed == np.allclose(b, a, rtol=rtol, atol=atol)


@given(ARRAYS)
def test_an_array_always_passes_against_itself(array):
    for lossy in (False, True):
        found = compare(array, array.copy(), FP32, lossy=lossy)
        assert found.passed
        assert found.max_abs == 0
        assert found.cosine is None or found.cosine == pytest.approx(1)


@given(ARRAYS, ARRAYS)
def test_a_cosine_is_between_minus_one_and_one_and_does_not_depend_on_the_order(a, b):
    if a.shape != b.shape:
        assert not compare(a, b, FP32, lossy=True).passed
        return
    one, _ = least_cosine(a.astype(np.float64), b.astype(np.float64))
    two, _ = least_cosine(b.astype(np.float64), a.astype(np.float64))
    assert (one is None) == (a.ndim < 2 or a.size < 2 * max(a.shape[0], 1))
    if one is not None and two is not None:
        assert -1 <= one <= 1
        assert one == pytest.approx(two)


@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(-10, 10, width=32)), st.integers(0, 11))
def test_nan_passes_only_where_the_original_has_it(array, at):
    holed = array.copy()
    holed.reshape(-1)[at] = np.nan
    assert compare(holed, holed.copy(), FP32, lossy=False).passed
    for lossy in (False, True):
        assert not compare(holed, array, FP32, lossy=lossy).passed
        assert not compare(array, holed, FP32, lossy=lossy).passed


def test_infinity_of_the_other_sign_does_not_pass():
    a, b = np.array([1.0, np.inf]), np.array([1.0, -np.inf])
    assert not compare(a, b, FP32, lossy=True).passed
    assert compare(a, a.copy(), FP32, lossy=False).passed


def test_a_lossy_candidate_passes_by_cosine_and_an_exact_one_does_not():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((4, 64)).astype(np.float32) * 10
    b = a + rng.standard_normal((4, 64)).astype(np.float32) * 0.7
    assert compare(a, b, INT8, lossy=True).passed
    assert not compare(a, b, FP32, lossy=False).passed


def test_a_wrong_scale_does_not_pass_for_its_perfect_cosine():
    a = np.random.default_rng(0).standard_normal((4, 64))
    found = compare(a, a * 2, INT8, lossy=True)
    assert found.cosine == pytest.approx(1)
    assert not found.passed
    assert "length" in found.why


def test_one_bad_row_is_not_hidden_by_many_good_ones():
    a = np.random.default_rng(0).standard_normal((100, 8))
    b = a.copy()
    b[57] = -b[57]
    found = compare(a, b, INT8, lossy=True)
    assert found.cosine == pytest.approx(-1)
    assert not found.passed


def test_a_small_column_is_not_excused_by_a_large_one_beside_it():
    a = np.tile(np.array([1e6, 0.5]), (4, 1))
    b = np.tile(np.array([1e6, 0.6]), (4, 1))
    assert not compare(a, b, FP32, lossy=False).passed


def test_a_zero_row_equals_a_zero_row_only():
    zero, one = np.zeros((1, 3)), np.ones((1, 3))
    assert least_cosine(zero, zero)[0] == 1
    assert least_cosine(zero, one)[0] == 0


def test_a_lossy_candidate_does_not_pass_by_a_wide_tolerance_when_its_direction_is_wrong():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-0.02, 0.02, (2, 4, 64))
    assert np.allclose(b, a, atol=INT8.atol, rtol=INT8.rtol)
    found = compare(a, b, INT8, lossy=True)
    assert not found.passed
    assert "cosine" in found.why


def test_rows_of_a_single_number_are_judged_by_the_tolerance_and_a_vector_is_one_row():
    a, b = np.array([[1.0], [-0.01]]), np.array([[1.02], [0.01]])
    found = compare(a, b, INT8, lossy=True)
    assert found.passed
    assert found.cosine is None
    assert compare(a[:, 0], b[:, 0], INT8, lossy=True).passed
    assert compare(a[:, 0], b[:, 0], INT8, lossy=True, vector=True).cosine == pytest.approx(0.9998, abs=1e-4)
    assert not compare(a[:, 0], -b[:, 0], INT8, lossy=True, vector=True).passed


def test_a_lossy_candidate_is_judged_on_real_cases_where_there_are_any():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((4, 64))
    noisy = compare(a, a + rng.standard_normal((4, 64)), INT8, lossy=True)
    good = compare(a, a + 0.01, INT8, lossy=True)
    joined, why = gather("y", [("trace", False, noisy), ("samples", True, good)], INT8, lossy=True)
    assert joined.passed and not why
    assert joined.cosine == good.cosine
    assert not gather("y", [("trace", False, noisy)], INT8, lossy=True)[0].passed
    assert not gather("y", [("trace", False, good), ("samples", True, noisy)], INT8, lossy=True)[0].passed
    holed = compare(a, np.full_like(a, np.nan), INT8, lossy=True)
    assert not gather("y", [("trace", False, holed), ("samples", True, good)], INT8, lossy=True)[0].passed


def test_scalars_are_compared_by_value_alone():
    assert compare(np.array(5.0), np.array(5.0), INT8, lossy=True).passed
    assert not compare(np.array(5.0), np.array(50.0), INT8, lossy=True).passed


def test_huge_and_tiny_values_leave_the_cosine_finite():
    a = np.array([[1e300, 1e300], [1e-300, 1e-300]])
    assert least_cosine(a, a) == (pytest.approx(1), 0)


def test_integers_and_strings_compare_by_agreement_across_widths():
    a = np.array([1, 2, 3, 4], np.int64)
    assert compare(a, a.astype(np.int32), FP32, lossy=False).passed
    found = compare(a, np.array([1, 2, 3, 5]), FP32, lossy=False)
    assert found.agreement == 0.75
    assert not found.passed
    words = np.array(["a", "b"])
    assert compare(words, words.astype(object), FP32, lossy=False).passed


@pytest.mark.parametrize("other", [np.array([1, 0]), np.array(["1", "0"]), np.array([True, False])])
def test_another_kind_of_dtype_does_not_pass(other):
    found = compare(np.array([1.0, 0.0], np.float32), other, INT8, lossy=True)
    assert not found.passed
    assert "where the original gives float32" in found.why


def test_top_one_is_told_for_classes_and_decides_for_lossy_ones_on_real_samples():
    a = np.array([[1.0, 0.99], [0.0, 1.0]])
    b = np.array([[0.99, 1.0], [0.0, 1.0]])
    found = compare(a, b, INT8, lossy=True, classes=True)
    assert found.agreement == 0.5
    assert found.passed
    random_only, _ = gather("logits", [("trace", False, compare(a, a, INT8, lossy=True, classes=True)),
                                       ("samples", True, found)], INT8, lossy=True)  # fmt: skip
    assert random_only.agreement == 0.5
    assert not random_only.passed


def test_the_reason_names_the_output_and_the_case():
    bad = compare(np.zeros(3), np.ones(3), FP32, lossy=False)
    output, why = gather("y", [("trace", False, bad)], FP32, lossy=False)
    assert not output.passed
    assert output.worst_case == "trace"
    assert why == "Output 'y' differs by up to 1 in case trace."


def test_accuracy_is_the_share_of_right_labels_logits_or_names():
    logits = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], np.float32)
    assert accuracy({"logits": logits}, np.array([1, 0, 0])) == pytest.approx(2 / 3)
    assert accuracy({"logits": logits}, np.array(["cat", "dog", "cat"]), ("dog", "cat")) == 1
    both = {"label": np.array([1, 1, 1]), "probabilities": logits}
    assert accuracy(both, np.array([1, 1, 0])) == pytest.approx(2 / 3)
    assert accuracy({"prediction": logits[:, :1]}, np.array([1, 0, 0])) is None
    assert accuracy({"logits": logits}, np.array([0.5, 1.5, 2.5])) is None
