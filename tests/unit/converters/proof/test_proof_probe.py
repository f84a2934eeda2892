from __future__ import annotations

import numpy as np
import pytest

from schemas.descriptor import Format
from schemas.errors import ModelFailed, NeedsInput


def shapes(specs):
    return {spec.name: (spec.dtype, spec.shape) for spec in specs}


def torch_nn():
    import torch

    return torch, torch.nn


def digits_net():
    _, nn = torch_nn()
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10)
    ).eval()


@pytest.mark.torch
def test_an_image_size_is_found_from_the_weights(tell, save_script):
    story = tell(save_script(digits_net()), Format.TORCHSCRIPT)
    report = story.probe()
    assert shapes(report.descriptor.inputs) == {"input": ("float32", ("batch", 1, 8, 8))}
    assert shapes(report.descriptor.outputs) == {"output": ("float32", ("batch", 10))}
    assert report.descriptor.parameter_count == 40 + 650
    assert report.descriptor.example_axes == {"batch": 2}


@pytest.mark.torch
def test_a_frozen_script_whose_weights_are_constants_is_read_from_its_graph(tell, save_script):
    import warnings

    torch, _ = torch_nn()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frozen = torch.jit.freeze(torch.jit.script(digits_net()))
    assert tell(save_script(frozen), Format.TORCHSCRIPT).probe().descriptor.inputs[0].shape == ("batch", 1, 8, 8)


@pytest.mark.torch
def test_ids_stay_inside_the_embedding_and_their_length_is_dynamic(tell, save_script):
    torch, nn = torch_nn()

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(3, 4)
            self.recurrent = nn.GRU(4, 5, batch_first=True)

        def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
            states, last = self.recurrent(self.table(tokens))
            return {"states": states, "last": last[0]}

    # TorchScript resolves annotations in the module's globals.
    globals()["torch"] = torch
    report = tell(save_script(Tagger()), Format.TORCHSCRIPT).probe()
    assert shapes(report.descriptor.inputs) == {"tokens": ("int64", ("batch", "sequence"))}
    assert shapes(report.descriptor.outputs) == {
        "states": ("float32", ("batch", "sequence", 5)),
        "last": ("float32", ("batch", 5)),
    }


@pytest.mark.torch
def test_a_mask_goes_with_its_ids_although_it_is_broadcast_against_wider_activations(tell, save_script):
    torch, nn = torch_nn()
    globals()["torch"] = torch

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 6)
            self.out = nn.Linear(6, 2)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.out(self.table(ids) * mask.unsqueeze(-1)).mean(1)

    report = tell(save_script(Masked()), Format.TORCHSCRIPT).probe()
    assert shapes(report.descriptor.inputs) == {
        "ids": ("int64", ("batch", "sequence")),
        "mask": ("int64", ("batch", "sequence")),
    }


@pytest.mark.torch
def test_a_recurrent_network_that_leads_with_time_has_no_batch(tell, save_script):
    _, nn = torch_nn()
    report = tell(save_script(nn.Sequential(nn.RNN(5, 4))), Format.TORCHSCRIPT).probe()
    assert report.descriptor.inputs[0].shape == ("sequence", "items", 5)
    assert report.descriptor.example_axes == {"sequence": 16, "items": 2}


@pytest.mark.torch
def test_a_squeezed_output_fixes_the_model_at_one_row(tell, save_script):
    torch, nn = torch_nn()
    globals()["torch"] = torch

    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x).squeeze()

    report = tell(save_script(Squeezed()), Format.TORCHSCRIPT).probe()
    assert report.descriptor.inputs[0].shape == (1, 4)
    assert report.descriptor.outputs[0].shape == (5,)


@pytest.mark.torch
def test_rows_that_mix_are_not_called_a_batch(tell, save_script):
    torch, nn = torch_nn()
    globals()["torch"] = torch

    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x - x.mean(0))

    story = tell(save_script(Centred()), Format.TORCHSCRIPT)
    report = story.probe()
    assert report.descriptor.inputs[0].shape == ("rows", 6)
    proof = story.reference().batching
    assert not proof.holds
    assert "not independent" in proof.reason


@pytest.mark.torch
def test_a_network_that_takes_any_image_has_dynamic_height_and_width(tell, save_script):
    _, nn = torch_nn()
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    descriptor = tell(save_script(net), Format.TORCHSCRIPT).probe().descriptor
    assert descriptor.inputs[0].shape == ("batch", 3, "height", "width")
    assert descriptor.example_axes == {"batch": 2, "height": 64, "width": 64}


@pytest.mark.torch
def test_a_model_that_nothing_fits_asks_for_the_shape_with_the_sidecar_to_write(tell, save_script):
    torch, nn = torch_nn()
    globals()["torch"] = torch

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(7, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.reshape(-1, 5, 7, 11).sum(3))[:, :, 0]

    path = save_script(Odd())
    with pytest.raises(NeedsInput, match="What shape does input 'x' take") as caught:
        tell(path, Format.TORCHSCRIPT).probe()
    assert "- {name: x, dtype: float32, shape: [batch," in caught.value.hint
    answered = tell(path, Format.TORCHSCRIPT, sidecar={"inputs": [{"name": "x", "shape": ["batch", 385]}]})
    assert answered.probe().descriptor.inputs[0].shape == ("batch", 385)


@pytest.mark.torch
def test_samples_tell_the_shape_without_any_declared_input(tell, save_script):
    _, nn = torch_nn()
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    samples = {"input": np.zeros((5, 1, 13, 17), np.float32)}
    story = tell(save_script(net), Format.TORCHSCRIPT, samples=samples)
    assert story.probe().descriptor.inputs[0].shape == ("batch", 1, 13, 17)


@pytest.mark.torch
def test_a_wrong_sidecar_is_named_as_the_cause(tell, save_script):
    story = tell(save_script(digits_net()), Format.TORCHSCRIPT, sidecar={"inputs": [{"name": "x", "shape": [1, 9]}]})
    with pytest.raises(ModelFailed, match="does not run on the inputs that its sidecar declares"):
        story.probe()


def test_a_fixed_batch_in_onnx_stays_fixed(tell, write_onnx):
    folder = write_onnx([("Relu", ["x"], ["y"], {})], [("x", "float", [4, 3])], [("y", "float", [4, 3])])
    story = tell(folder, Format.ONNX)
    assert story.probe().descriptor.inputs[0].shape == (4, 3)
    report = story.reference()
    assert not report.batching.holds
    assert "fixed at 4" in report.batching.reason
    assert {case.rows for case in report.cases} == {4}


def test_a_declared_dynamic_batch_that_a_reshape_froze_is_found_out(tell, write_onnx):
    folder = write_onnx(
        [("Reshape", ["x", "shape"], ["y"], {})],
        [("x", "float", ["N", 6])],
        [("y", "float", ["N", "M"])],
        {"shape": np.array([1, 6], np.int64)},
    )
    descriptor = tell(folder, Format.ONNX).probe().descriptor
    assert descriptor.inputs[0].shape == (1, 6)
    assert descriptor.outputs[0].shape == (1, 6)


def test_a_first_axis_whose_output_does_not_scale_is_no_batch(tell, write_onnx):
    folder = write_onnx(
        [("ReduceSum", ["x"], ["y"], {"keepdims": 0})], [("x", "float", ["batch", 2])], [("y", "float", [])]
    )
    descriptor = tell(folder, Format.ONNX).probe().descriptor
    assert descriptor.inputs[0].shape == ("rows", 2)
    assert descriptor.outputs[0].shape == ()


def test_two_names_of_one_length_are_found_to_go_together(tell, write_onnx):
    folder = write_onnx(
        [("Add", ["a", "b"], ["y"], {})],
        [("a", "float", ["batch", "s"]), ("b", "float", ["batch", "t"])],
        [("y", "float", ["batch", "u"])],
    )
    descriptor = tell(folder, Format.ONNX).probe().descriptor
    assert [spec.shape for spec in descriptor.inputs] == [("batch", "s"), ("batch", "s")]
    assert descriptor.outputs[0].shape == ("batch", "s")


def test_ids_of_an_onnx_embedding_stay_inside_its_table(tell, write_onnx):
    folder = write_onnx(
        [("Cast", ["ids"], ["wide"], {"to": 7}), ("Gather", ["table", "wide"], ["y"], {})],
        [("ids", "int32", ["batch", "sequence"])],
        [("y", "float", ["batch", "sequence", 2])],
        {"table": np.zeros((3, 2), np.float32)},
    )
    assert tell(folder, Format.ONNX).probe().descriptor.outputs[0].shape == ("batch", "sequence", 2)


@pytest.mark.sklearn
def test_a_table_with_words_has_one_input_for_each_column(tell, tmp_path):
    import joblib
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    table = np.array([[1.0, "red"], [2.0, "blue"], [3.0, "red"], [4.0, "blue"]], dtype=object)
    columns = ColumnTransformer([("n", StandardScaler(), [0]), ("c", OneHotEncoder(), [1])])
    joblib.dump(make_pipeline(columns, LogisticRegression()).fit(table, ["no", "yes", "no", "yes"]), tmp_path / "m")
    story = tell(tmp_path / "m", Format.SKLEARN)
    descriptor = story.probe().descriptor
    assert shapes(descriptor.inputs) == {
        "column_0": ("float32", ("batch", 1)),
        "column_1": ("string", ("batch", 1)),
    }
    assert shapes(descriptor.outputs) == {
        "label": ("string", ("batch",)),
        "probabilities": ("float32", ("batch", 2)),
    }
    assert descriptor.labels == ("no", "yes")
    assert descriptor.task == "tabular-classification"
    assert story.reference().batching.holds


@pytest.mark.sklearn
def test_an_estimator_that_was_never_fitted_is_refused(tell, tmp_path):
    import joblib
    from sklearn.linear_model import Ridge

    joblib.dump(Ridge(), tmp_path / "m")
    with pytest.raises(ModelFailed, match="Ridge in this file is not fitted"):
        tell(tmp_path / "m", Format.SKLEARN).probe()
