from __future__ import annotations

import numpy as np
import pytest

from converters.arrays import load
from converters.reference_cases import Reference
from converters.sampling import sentence_feeds
from schemas.descriptor import Format, KnownBy, TensorSpec
from schemas.errors import InvalidDocument

LINEAR = (
    [("MatMul", ["x", "w"], ["y"], {})],
    [("x", "float", ["batch", 3])],
    [("y", "float", ["batch", 2])],
)
WEIGHT = {"w": np.array([[1, 0], [0, 1], [0, 0]], np.float32)}


def test_cases_cover_traced_and_untraced_sizes_and_can_be_read_again(tell, write_onnx):
    story = tell(write_onnx(*LINEAR, WEIGHT), Format.ONNX)
    story.probe()
    report = story.reference()
    assert {case.axes["batch"] for case in report.cases} == {1, 2, 3, 8}
    assert [case.id for case in report.cases if case.traced] == ["trace"]
    assert report.batching.holds
    assert report.deterministic
    reference = Reference.open(story.reference_folder)
    assert reference.report == report
    for case, feeds, outputs in reference.cases():
        assert feeds["x"].shape == (case.rows, 3)
        assert np.allclose(outputs["y"], feeds["x"][:, :2])


def test_the_same_seed_gives_the_same_inputs(tell, write_onnx):
    story = tell(write_onnx(*LINEAR, WEIGHT), Format.ONNX)
    story.probe()
    story.reference()
    first = load(story.reference_folder / "batch-3.inputs.npz")["x"]
    story.reference()
    assert np.array_equal(load(story.reference_folder / "batch-3.inputs.npz")["x"], first)


def test_samples_with_labels_give_the_accuracy_of_the_original(tell, write_onnx):
    rows = np.random.default_rng(0).standard_normal((70, 3)).astype(np.float32)
    labels = rows[:, :2].argmax(1)
    labels[:7] = 1 - labels[:7]
    story = tell(write_onnx(*LINEAR, WEIGHT), Format.ONNX, samples={"x": rows, "labels": labels})
    story.probe()
    report = story.reference()
    assert report.has_labels
    assert report.accuracy == pytest.approx(0.9)
    samples = next(case for case in report.cases if case.id == "samples")
    assert samples.rows == 70
    assert samples.source == "sidecar"
    parity = story.parity(story.model)
    assert parity.accuracy == report.accuracy
    assert parity.real_samples


def test_no_more_rows_of_samples_are_used_than_allowed(tell, write_onnx):
    samples = {"x": np.zeros((90, 3), np.float32), "labels": np.zeros(90, np.int64)}
    story = tell(write_onnx(*LINEAR, WEIGHT), Format.ONNX, samples=samples)
    story.probe()
    report = story.reference(max_samples=33)
    assert next(case for case in report.cases if case.id == "samples").rows == 33


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ({"z": np.zeros((4, 3))}, "no array for input 'x'"),
        ({"x": np.zeros((4, 5))}, r"have shape \[4, 5\]"),
        ({"x": np.zeros((4, 3)), "labels": np.zeros(3)}, "different numbers of rows"),
    ],
)
def test_samples_that_do_not_fit_are_refused_with_what_is_wrong(tell, write_onnx, samples, said):
    story = tell(write_onnx(*LINEAR, WEIGHT), Format.ONNX, samples=samples)
    story.sidecar, told = None, story.sidecar
    story.probe()
    story.sidecar = told
    with pytest.raises(InvalidDocument, match=said):
        story.reference()


def test_a_fixed_batch_takes_samples_in_its_own_portions(tell, write_onnx):
    rows = np.random.default_rng(0).standard_normal((11, 3)).astype(np.float32)
    folder = write_onnx(LINEAR[0], [("x", "float", [4, 3])], [("y", "float", [4, 2])], WEIGHT)
    story = tell(folder, Format.ONNX, samples={"x": rows})
    story.sidecar, told = None, story.sidecar
    story.probe()
    story.sidecar = told
    report = story.reference()
    assert next(case for case in report.cases if case.id == "samples").rows == 8
    assert story.parity(folder).passed


@pytest.mark.torch
def test_dropout_in_the_original_itself_is_reported_as_not_deterministic(tell, save_script):
    import torch

    globals()["torch"] = torch

    class Noisy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(40, 20)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.dropout(self.linear(x), 0.5, True)

    story = tell(save_script(Noisy()), Format.TORCHSCRIPT)
    story.probe()
    assert not story.reference().deterministic


def _save_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "the", "a", "and", "to", "."])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def test_a_decoder_gets_the_same_text_after_its_own_start_token_in_every_batch(tmp_path):
    _save_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"decoder_start_token_id": 5}')
    specs = [
        TensorSpec(name=name, dtype="int64", shape=("batch", "sequence"), known_by=KnownBy.PROBE)
        for name in ("input_ids", "decoder_input_ids")
    ]
    cases = sentence_feeds(tmp_path, specs)
    assert len(cases) == 3
    for case in cases:
        assert (case["decoder_input_ids"][:, 0] == 5).all()
        assert (case["decoder_input_ids"][:, 1] == case["input_ids"][:, 0]).all()


def test_sentences_are_padded_to_lengths_of_their_own(tmp_path):
    _save_tokenizer(tmp_path)
    specs = [
        TensorSpec(name=name, dtype="int64", shape=("batch", "sequence"), known_by=KnownBy.PROBE)
        for name in ("input_ids", "attention_mask")
    ]
    cases = sentence_feeds(tmp_path, specs)
    lengths = [case["input_ids"].shape[1] for case in cases]
    assert len(set(lengths)) == len(cases) == 3
    for case in cases:
        assert case["attention_mask"].sum(1).max() == case["input_ids"].shape[1]
        assert (case["input_ids"][case["attention_mask"] == 0] == 0).all()


def test_a_broken_tokenizer_leaves_no_sentences(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    spec = TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence"), known_by=KnownBy.PROBE)
    assert sentence_feeds(tmp_path, [spec]) == []


def test_rows_are_run_alone_of_one_case_of_every_size_and_of_a_real_one_where_there_is_one(
    tell, write_onnx, monkeypatch
):
    from converters import reference

    model = write_onnx([("Relu", ["x"], ["y"], {})], [("x", "float", ["batch", 4])], [("y", "float", ["batch", 4])])
    story = tell(model, Format.ONNX, samples={"x": np.full((8, 4), 7, np.float32)})
    story.probe()
    proven = []
    prove = reference.prove
    monkeypatch.setattr(
        reference, "prove", lambda run, cases, tolerance: proven.extend(cases) or prove(run, cases, tolerance)
    )
    assert story.reference().batching.sizes == (1, 2, 3, 8)
    by_size = {len(feeds["x"]): feeds["x"] for feeds, _ in proven}
    assert len(by_size) == len(proven) == 4
    assert (by_size[8] == 7).all(), "the samples"
    assert by_size[2].any(), "not the zeros"
