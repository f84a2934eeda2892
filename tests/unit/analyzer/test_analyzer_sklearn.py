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


@pytest.mark.parametrize("nested", [False, True])
def test_a_dict_of_two_estimators_is_refused_with_what_to_dump(tmp_path, refused, nested):
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    path = tmp_path / "m.pkl"
    scaler = {"first": [StandardScaler()]} if nested else StandardScaler()
    path.write_bytes(pickle.dumps({"model": Ridge(), "scaler": scaler, "note": "x"}))

    refusal = refused(path, "model_failed")
    assert "dict of 3 entries" in refusal.message and "joblib.dump(make_pipeline(scaler, model)" in refusal.hint


@pytest.mark.parametrize("around", ["dict", "list", "tuple", "nested", "encoder"])
def test_the_one_estimator_of_a_dict_or_list_is_the_model(sklearn_files, tmp_path, accepted, around):
    from sklearn.preprocessing import LabelEncoder

    model = pickle.loads((sklearn_files / "protocol4.pkl").read_bytes())
    held = {
        "dict": {"model": model, "features": ["a", "b"], "threshold": 0.3},
        "list": ["v1", model],
        "tuple": (model, {"trained": "today"}),
        "nested": {"run": {"models": [model]}},
        "encoder": {"model": model, "names": LabelEncoder().fit(["no", "yes"])},
    }[around]
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(held))

    descriptor = accepted(tmp_path / "m.pkl")
    assert descriptor.architecture == "Pipeline(StandardScaler, LogisticRegression)"
    assert descriptor.inputs[0].shape == ("batch", 4)
    place = {"dict": "['model']", "list": "[1]", "tuple": "[0]", "nested": "['run']['models'][0]"}
    assert any(place.get(around, "['model']") in note and "is the model" in note for note in descriptor.notes)


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
