from __future__ import annotations

import json

import numpy as np
import pytest

from schemas.descriptor import Format
from schemas.target import TargetProfile

TWO = [("a", "float", ["batch", 3]), ("b", "float", ["batch", 3])]
Y = [("y", "float", ["batch", 3])]


def begun(tell, folder, format=Format.ONNX, **more):
    story = tell(folder, format, **more)
    story.probe()
    story.reference()
    return story


def test_the_original_passes_against_itself_with_its_batching_proven(tell, write_onnx):
    folder = write_onnx([("Sub", ["a", "b"], ["y"], {})], TWO, Y)
    report = begun(tell, folder).parity(folder)
    assert report.passed
    assert report.outputs[0].cosine == pytest.approx(1)
    assert report.batching.holds
    assert report.inputs[0].shape == ("batch", 3)
    assert report.served_outputs[0].shape == ("batch", 3)
    assert not report.real_samples


def test_inputs_in_another_order_still_answer_by_name(tell, write_onnx):
    original = write_onnx([("Sub", ["a", "b"], ["y"], {})], TWO, Y)
    reordered = write_onnx([("Sub", ["a", "b"], ["y"], {})], TWO[::-1], Y)
    assert begun(tell, original).parity(reordered).passed


def test_swapped_inputs_are_caught(tell, write_onnx):
    original = write_onnx([("Sub", ["a", "b"], ["y"], {})], TWO, Y)
    swapped = write_onnx([("Sub", ["b", "a"], ["y"], {})], TWO, Y)
    report = begun(tell, original).parity(swapped)
    assert not report.passed
    assert report.reason.startswith("Output 'y' differs by up to")


@pytest.mark.parametrize(
    ("nodes", "inputs", "outputs", "said"),
    [
        ([("Sub", ["a", "c"], ["y"], {})], [TWO[0], ("c", "float", ["batch", 3])], Y, "lacks input 'b'"),
        ([("Sub", ["a", "b"], ["z"], {})], TWO, [("z", "float", ["batch", 3])], "lacks output 'y'"),
        (
            [("Sub", ["a", "b"], ["y"], {}), ("Neg", ["y"], ["z"], {})],
            TWO,
            [*Y, ("z", "float", ["batch", 3])],
            "output 'z' of its own",
        ),
        (
            [("Sub", ["a", "b"], ["d"], {}), ("Cast", ["d"], ["y"], {"to": 7})],
            TWO,
            [("y", "int64", ["batch", 3])],
            "is int64 where the original gives float32",
        ),
        (
            [("Sub", ["a", "b"], ["d"], {}), ("ReduceSum", ["d"], ["y"], {})],
            TWO,
            [("y", "float", [1, 1])],
            "has shape",
        ),
    ],
)
def test_tensors_that_do_not_match_fail_with_what_is_wrong(tell, write_onnx, nodes, inputs, outputs, said):
    original = write_onnx([("Sub", ["a", "b"], ["y"], {})], TWO, Y)
    report = begun(tell, original).parity(write_onnx(nodes, inputs, outputs))
    assert not report.passed
    assert said in report.reason
    assert not report.batching.holds


def test_a_batch_that_the_export_froze_is_caught_at_a_size_that_was_not_traced(tell, write_onnx):
    original = write_onnx([("Relu", ["x"], ["y"], {})], [("x", "float", ["batch", 4])], [("y", "float", ["batch", 4])])
    frozen = write_onnx(
        [("Relu", ["x"], ["r"], {}), ("Reshape", ["r", "s"], ["y"], {})],
        [("x", "float", ["batch", 4])],
        [("y", "float", ["batch", 4])],
        {"s": np.array([2, 4], np.int64)},
    )
    report = begun(tell, original).parity(frozen)
    assert not report.passed
    assert "does not run on case batch-1 (batch 1), which the original does" in report.reason


def test_a_candidate_whose_rows_mix_gets_no_batching(tell, write_onnx):
    # Equal to the original on one row only, where x - mean(x) + mean(x) and x are the same.
    x, y = [("x", "float", ["batch", 2])], [("y", "float", ["batch", 2])]
    original = write_onnx([("Identity", ["x"], ["y"], {})], x, y)
    mixing = write_onnx([("ReduceMean", ["x"], ["m"], {"axes": [0]}), ("Sub", ["x", "m"], ["d"], {}),
                         ("Add", ["d", "x"], ["y"], {})], x, y)  # fmt: skip
    assert not begun(tell, original).parity(mixing).passed
    story = begun(tell, mixing)
    report = story.parity(mixing)
    assert report.passed
    assert not report.batching.holds
    assert report.inputs[0].shape == ("rows", 2)


def test_nan_where_the_original_has_none_is_caught(tell, write_onnx):
    x, y = [("x", "float", ["batch", 2])], [("y", "float", ["batch", 2])]
    original = write_onnx([("Relu", ["x"], ["y"], {})], x, y)
    broken = write_onnx([("Sqrt", ["x"], ["s"], {}), ("Mul", ["s", "s"], ["y"], {})], x, y)
    report = begun(tell, original).parity(broken, "int8")
    assert not report.passed
    assert "NaN" in report.reason


def test_nan_in_both_passes(tell, write_onnx):
    x, y = [("x", "float", ["batch", 2])], [("y", "float", ["batch", 2])]
    folder = write_onnx([("Sqrt", ["x"], ["y"], {})], x, y)
    assert begun(tell, folder).parity(folder).passed


@pytest.mark.parametrize(
    ("arithmetic", "away", "passes"), [("fp32", 5e-3, False), ("fp16", 5e-3, True), ("fp16", 0.1, False)]
)
def test_an_original_of_half_floats_is_met_as_near_as_its_own_roundings_let(tell, write_onnx, arithmetic, away, passes):
    folder = write_onnx([("Sub", ["a", "b"], ["y"], {})], TWO, Y)
    story = begun(tell, folder)
    cases = story.reference_folder / "cases.json"
    said = json.loads(cases.read_text())
    cases.write_text(json.dumps({**said, "arithmetic": arithmetic}))
    candidate = write_onnx(
        [
            ("Sub", ["a", "b"], ["exact"], {}),
            ("Constant", [], ["away"], {"value_float": away}),
            ("Add", ["exact", "away"], ["y"], {}),
        ],
        TWO,
        Y,
    )
    report = story.parity(candidate)
    assert report.passed == passes
    assert report.tolerance.min_agreement == 1, "labels agree as ever"
    assert report.tolerance.atol == (1e-2 if arithmetic == "fp16" else 1e-4)


def test_ids_labels_and_scalars_are_compared(tell, write_onnx):
    folder = write_onnx(
        [
            ("Gather", ["table", "ids"], ["rows"], {}),
            ("ArgMax", ["rows"], ["label"], {"axis": 1, "keepdims": 0}),
            ("ReduceMax", ["rows"], ["top"], {"keepdims": 0}),
        ],
        [("ids", "int32", ["batch"])],
        [("label", "int64", ["batch"]), ("top", "float", [])],
        {"table": np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)},
    )
    report = begun(tell, folder).parity(folder)
    assert report.passed
    assert {o.name: o.method for o in report.outputs} == {"label": "agreement", "top": "numeric"}
    assert not report.batching.holds


def test_int8_passes_by_cosine_and_the_same_graph_fails_as_fp32(tell, write_onnx):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 32)).astype(np.float32)
    x, y = [("x", "float", ["batch", 64])], [("y", "float", ["batch", 32])]
    original = write_onnx([("MatMul", ["x", "w"], ["y"], {})], x, y, {"w": weight})
    rounded = write_onnx(
        [("MatMul", ["x", "w"], ["y"], {})], x, y, {"w": np.round(weight * 12).astype(np.float32) / 12}
    )
    story = begun(tell, original)
    exact, lossy = story.parity(rounded), story.parity(rounded, "int8")
    assert not exact.passed
    assert lossy.passed
    assert lossy.outputs[0].cosine == exact.outputs[0].cosine


def test_int8_does_not_pass_by_absolute_tolerance_below_the_cosine(tell, write_onnx):
    x, y = [("x", "float", ["batch", 64])], [("y", "float", ["batch", 64])]
    nodes = [("Mul", ["x", "s"], ["m"], {}), ("Add", ["m", "e"], ["y"], {})]
    noise = np.random.default_rng(0).uniform(-0.02, 0.02, 64).astype(np.float32)
    scale = np.array(0.01, np.float32)
    original = write_onnx(nodes, x, y, {"s": scale, "e": np.zeros(64, np.float32)})
    report = begun(tell, original).parity(write_onnx(nodes, x, y, {"s": scale, "e": noise}), "int8")
    assert not report.passed
    assert "has cosine" in report.reason and "below 0.98" in report.reason


def test_the_target_s_batch_sizes_are_proven_up_to_thirty_two(tell, write_onnx):
    folder = write_onnx([("Sub", ["a", "b"], ["y"], {})], TWO, Y)
    story = tell(folder, Format.ONNX)
    story.target = TargetProfile(batch_sizes=(1, 16, 32, 100))
    story.probe()
    reference = story.reference()
    assert {case.rows for case in reference.cases} >= {1, 2, 3, 8, 16, 32}
    assert 100 not in {case.rows for case in reference.cases}
    assert max(reference.batching.sizes) == 32
    assert max(story.parity(folder).batching.sizes) == 32


def test_a_damaged_candidate_file_is_told_as_such(tell, write_onnx):
    folder = write_onnx([("Sub", ["a", "b"], ["y"], {})], TWO, Y)
    story = begun(tell, folder)
    damaged = write_onnx([("Sub", ["a", "b"], ["y"], {})], TWO, Y)
    (damaged / "model.onnx").write_bytes(b"not onnx")
    report = story.parity(damaged)
    assert not report.passed
    assert "does not load" in report.reason and "onnxruntime cannot load" in report.reason


@pytest.mark.torch
def test_dropout_that_an_exporter_left_on_is_caught(tell, save_script, write_onnx):
    import torch

    globals()["torch"] = torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(8, 8)
            self.dropout = torch.nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.dropout(self.linear(x))

    net = Net()
    weights = {
        "w": net.linear.weight.detach().numpy().T.copy(),
        "b": net.linear.bias.detach().numpy(),
        "ratio": np.array(0.5, np.float32),
    }
    x, output = [("x", "float", ["batch", 8])], [("output", "float", ["batch", 8])]
    linear = [("MatMul", ["x", "w"], ["m"], {}), ("Add", ["m", "b"], ["a"], {})]
    right = write_onnx([*linear, ("Identity", ["a"], ["output"], {})], x, output, weights)
    training = write_onnx(
        [*linear, ("Dropout", ["a", "ratio", "on"], ["output"], {})], x, output, {**weights, "on": np.array(True)}
    )
    story = begun(tell, save_script(net), Format.TORCHSCRIPT)
    assert story.parity(right).passed
    assert not story.parity(training).passed


@pytest.mark.sklearn
def test_string_labels_and_probabilities_of_a_converted_pipeline_agree(tell, tmp_path, make_context):
    import joblib
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from converters.sklearn_onnx import convert

    rows, answers = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[answers]
    joblib.dump(make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, names), tmp_path / "m")
    samples = {"X": rows.astype(np.float32), "labels": names}
    story = begun(tell, tmp_path / "m", Format.SKLEARN, samples=samples)
    context = story.context("sklearn_onnx", {}, model=story.model, reference=story.reference_folder)
    report = story.parity(context.out / convert(context).outputs["model"])
    assert report.passed, report.reason
    assert report.accuracy is not None and report.accuracy > 0.95
    assert {o.name: o.method for o in report.outputs} == {"label": "agreement", "probabilities": "numeric"}
    assert report.served_outputs[0].shape == ("batch",)
