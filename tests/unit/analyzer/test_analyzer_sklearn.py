"""scikit-learn pickles of every protocol and compression are described without being loaded."""

from __future__ import annotations

import pickle

import pytest

from analyzer import describe
from schemas.descriptor import Format

pytestmark = pytest.mark.sklearn

NAMES = [f"protocol{n}.pkl" for n in range(6)] + [
    f"{codec}.joblib" for codec in ("plain", "zlib", "gzip", "bz2", "lzma", "xz")
]


@pytest.mark.parametrize("name", NAMES)
def test_a_pipeline_tells_steps_classes_features_and_version(sklearn_files, accepted, name):
    import sklearn

    descriptor = accepted(sklearn_files / name)
    assert descriptor.format is Format.SKLEARN
    assert descriptor.architecture == "Pipeline(StandardScaler, LogisticRegression)"
    assert descriptor.labels == ("setosa", "versicolor", "virginica")
    assert descriptor.task == "tabular-classification"
    assert descriptor.framework_version == sklearn.__version__
    assert descriptor.inputs[0].shape == ("batch", 4)


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_pickle_is_refused(sklearn_files, tmp_path, refused, name):
    whole = (sklearn_files / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: len(whole) * 2 // 3])

    message = refused(path, "model_failed").message
    assert "truncated" in message or "broken" in message


def test_names_of_features_are_told(tmp_path, accepted):
    import joblib
    import numpy as np
    from sklearn.linear_model import Ridge

    model = Ridge().fit(np.eye(3), np.arange(3.0))
    model.feature_names_in_ = np.array(["age", "height", "weight"], dtype=object)
    joblib.dump(model, tmp_path / "m.joblib")

    descriptor = accepted(tmp_path / "m.joblib")
    assert any("age, height, weight" in note for note in descriptor.notes)
    assert descriptor.task == "tabular-regression"


def test_a_dict_around_an_estimator_is_refused_with_what_to_dump(tmp_path, refused):
    from sklearn.preprocessing import StandardScaler

    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps({"model": StandardScaler(), "note": "x"}))

    refusal = refused(path, "model_failed")
    assert "dict of 2 entries" in refusal.message and "joblib.dump" in refusal.hint


def test_a_pickle_that_runs_a_command_is_quarantined_and_runs_nothing(tmp_path, refused):
    marker = tmp_path / "marker"
    path = tmp_path / "m.pkl"
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR.")

    refused(path, "quarantined")
    assert not marker.exists()


def test_a_class_that_is_not_known_is_a_question_that_names_it_and_the_setting(tmp_path, refused):
    path = tmp_path / "m.pkl"
    path.write_bytes(
        b"\x80\x02csklearn.preprocessing._data\nStandardScaler\n)\x81}X\x01\x00\x00\x00acacme.steps\nOwn\n)\x81sb."
    )

    refusal = refused(path, "needs_input")
    assert "acme.steps.Own" in refusal.message
    assert "MODELIUM_ALLOWED_PICKLE_GLOBALS" in refusal.hint
    assert describe(path, allowed_globals=("acme.steps.Own",)).refusal is None
