"""Labels of rows in which the original itself puts two classes first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from converters.ties import settled
from schemas.descriptor import Format

SCORES = np.array([[0.41, 0.41, 0.18], [0.7, 0.2, 0.1], [0.2, 0.4, 0.4]], np.float32)
LABELS = np.array([0, 0, 1])


def test_a_label_of_a_tie_is_any_of_its_classes_and_no_other_label_is():
    candidate = {"scores": SCORES, "label": np.array([1, 1, 2])}
    assert settled({"scores": SCORES, "label": LABELS}, candidate)["label"].tolist() == [0, 1, 1]
    assert candidate["label"].tolist() == [1, 1, 2]


@pytest.mark.parametrize("moved", [0.001, 0.1])
def test_a_candidate_that_decides_what_the_original_does_not_is_held_to_it(moved):
    scores = SCORES.copy()
    scores[0, 1] += moved
    given = settled({"scores": SCORES, "label": LABELS}, {"scores": scores, "label": np.array([1, 0, 1])})
    assert given["label"].tolist() == [1, 0, 1]


def test_nothing_is_settled_where_it_is_not_known_what_the_scores_are():
    expected = {"scores": SCORES, "others": SCORES, "label": LABELS}
    candidate = {"scores": SCORES, "others": SCORES, "label": np.array([1, 0, 1])}
    assert settled(expected, candidate)["label"].tolist() == [1, 0, 1]


@given(
    arrays(np.float32, (4, 3), elements=st.sampled_from([0, 0.25, 0.5, 1])),
    arrays(np.int64, 4, elements=st.integers(0, 2)),
)
def test_only_rows_that_tie_change_and_only_to_the_originals_label(scores, labels):
    right = scores.argmax(axis=1)
    given = settled({"scores": scores, "label": right}, {"scores": scores, "label": labels})["label"]
    best = scores.max(axis=1, keepdims=True)
    for row in range(4):
        tie = (scores[row] == best[row]).sum() > 1
        assert given[row] == (right[row] if tie else labels[row])


def test_a_classifier_is_proven_though_a_drawn_row_ties(tell, write_onnx):
    """The scores of class 0 and 1 are equal for every row; the candidate takes the last of them, as it may."""
    inputs, outputs = [("a", "float", ["batch", 2])], [("s", "float", ["batch", 3]), ("label", "int64", ["batch"])]

    def classifier(last: int, third: str):
        return write_onnx(
            [
                ("ReduceMean", ["a"], ["m"], {"axes": [1], "keepdims": 1}),
                (third, ["m"], ["t"], {}),
                ("Concat", ["m", "m", "t"], ["s"], {"axis": 1}),
                ("ArgMax", ["s"], ["label"], {"axis": 1, "keepdims": 0, "select_last_index": last}),
            ],
            inputs,
            outputs,
        )

    story = tell(classifier(0, "Neg"), Format.ONNX)
    story.probe()
    story.reference()
    assert story.parity(classifier(1, "Neg")).passed
    assert not story.parity(classifier(1, "Abs")).passed
