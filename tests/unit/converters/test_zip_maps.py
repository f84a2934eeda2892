"""Classifiers as skl2onnx writes them by default give a list of maps; it is compared and served as a tensor."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from converters import onnx_optimize
from converters.onnx_runner import OnnxRunner
from converters.zip_maps import drop_zip_maps, zip_maps
from schemas.descriptor import Format

pytestmark = pytest.mark.sklearn
IRIS = load_iris()
ROWS = IRIS.data.astype(np.float32)


@pytest.fixture(params=["numbers", "names"])
def zipped(request, tmp_path):
    """A file, and the classifier that it was made of; its classes are in no alphabetic order."""
    from skl2onnx import to_onnx

    labels = np.array([30, 2, 7] if request.param == "numbers" else ["c", "a", "b"])[IRIS.target]
    classifier = LogisticRegression(max_iter=1000).fit(IRIS.data, labels)
    (tmp_path / "m.onnx").write_bytes(to_onnx(classifier, ROWS[:1]).SerializeToString())
    return tmp_path / "m.onnx", classifier


def test_the_maps_of_all_rows_are_one_table_in_the_order_of_the_classes(zipped):
    file, classifier = zipped
    assert list(zip_maps(onnx.load(str(file)).graph).values()) == [tuple(classifier.classes_.tolist())]
    runner = OnnxRunner(file)
    given = runner.run({"X": ROWS})
    np.testing.assert_allclose(given["output_probability"], classifier.predict_proba(IRIS.data), atol=1e-5)
    assert [spec.shape for spec in runner.outputs if spec.name == "output_probability"] == [
        (runner.inputs[0].shape[0], 3)
    ]
    assert runner.run({"X": ROWS[:1]})["output_probability"].shape == (1, 3)


def test_what_is_served_gives_the_tensor_under_the_same_name(zipped, make_context, make_spec, run_onnx):
    file, _ = zipped
    context = make_context("onnx_optimize", file, Format.ONNX, inputs=[make_spec("X", ("batch", 4))])
    report = onnx_optimize.convert(context).report
    assert [spec.name for spec in report.outputs] == ["output_label", "output_probability"]
    wanted, given = OnnxRunner(file).run({"X": ROWS}), run_onnx(context, {"X": ROWS})
    assert (given["output_label"] == wanted["output_label"]).all()
    np.testing.assert_allclose(given["output_probability"], wanted["output_probability"], atol=1e-6)


def test_a_graph_without_such_maps_is_left_as_it_is(zipped):
    model = onnx.load(str(zipped[0]))
    assert drop_zip_maps(model) and not drop_zip_maps(model)
