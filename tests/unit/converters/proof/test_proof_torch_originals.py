"""Originals that torch runs, from the probe to a proven graph: what people's files are really like."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from converters import exported_program_onnx, huggingface_onnx, module_onnx, torchscript_onnx
from converters.probe import _example
from planner.fixed_sizes import fixed_sizes
from schemas.descriptor import Format
from schemas.errors import ModelFailed, NeedsInput, SizesFrozen, Unsupported
from schemas.sidecar import Sidecar

pytestmark = pytest.mark.torch

CONVERTERS = {
    Format.TORCHSCRIPT: torchscript_onnx,
    Format.EXPORTED_PROGRAM: exported_program_onnx,
    Format.TORCH_STATE_DICT: module_onnx,
    Format.SAFETENSORS: module_onnx,
    Format.HUGGINGFACE: huggingface_onnx,
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def save_trace(tmp_path, save_script):
    def make(module: nn.Module, *inputs: torch.Tensor, train: bool = False) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return save_script(torch.jit.trace(module.train(train), inputs, check_trace=False))

    return make


@pytest.fixture
def save_scripted(save_script):
    def make(module: nn.Module) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return save_script(torch.jit.script(module.eval()))

    return make


@pytest.fixture
def with_class(tmp_path, tell):
    """Return how to begin the story of weights whose class stands in a sidecar."""

    def make(saved: object, code: str, *, safetensors: bool = False, class_name: str = "Net"):
        path, folder = tmp_path / "weights", tmp_path / "code"
        folder.mkdir()
        (folder / "model.py").write_text("import torch\nfrom torch import nn\n" + code)
        if safetensors:
            from safetensors.torch import save_model

            save_model(saved, str(path))
        else:
            torch.save(saved, path)
        story = tell(path, Format.SAFETENSORS if safetensors else Format.TORCH_STATE_DICT)
        story.sidecar = Sidecar.model_validate({"module": {"file": "model.py", "class_name": class_name}})
        story.code = folder
        return story

    return make


def prove(story, **options):
    """Probe, compute the reference, convert and compare; return the converter's report."""
    if not story.descriptor.outputs:
        story.probe()
    story.reference()
    converter = CONVERTERS[story.descriptor.format]
    context = story.context(
        converter.__name__.rpartition(".")[2], options, model=story.model, reference=story.reference_folder
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = converter.convert(context).report
    parity = story.parity(context.out / "model")
    assert parity.passed, parity.reason
    return report


def shapes(specs):
    return {spec.name: (spec.dtype, spec.shape) for spec in specs}


@pytest.mark.parametrize(("dtype", "name"), [(torch.float16, "float16"), (torch.float64, "float64")])
def test_inputs_have_the_float_that_the_weights_have(tell, save_trace, dtype, name):
    module = nn.Sequential(nn.Linear(8, 4), nn.ReLU()).to(dtype)
    story = tell(save_trace(module, torch.randn(2, 8, dtype=dtype)), Format.TORCHSCRIPT)
    prove(story)
    assert shapes(story.descriptor.inputs) == {"input": (name, ("batch", 8))}


def test_bfloat16_weights_run_as_float32_and_the_report_says_so(tell, save_trace):
    module = nn.Sequential(nn.Linear(8, 4), nn.ReLU()).bfloat16()
    story = tell(save_trace(module, torch.randn(2, 8).bfloat16()), Format.TORCHSCRIPT)
    report = prove(story)
    assert shapes(story.descriptor.inputs) == {"input": ("float32", ("batch", 8))}
    assert any("bfloat16" in note for note in report.notes)


def test_a_length_that_a_linear_layer_fixes_is_found(tell, save_trace):
    module = nn.Sequential(nn.Conv1d(3, 8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 46, 2))
    story = tell(save_trace(module, torch.randn(2, 3, 50)), Format.TORCHSCRIPT)
    assert shapes(story.probe().descriptor.inputs) == {"input": ("float32", ("batch", 3, 50))}


def test_an_image_size_that_a_linear_layer_fixes_is_found(tell, save_trace):
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2 * 18 * 18, 2))
    story = tell(save_trace(module, torch.randn(2, 3, 38, 38)), Format.TORCHSCRIPT)
    # 39 pixels would fit as well, because pooling rounds down.
    assert shapes(story.probe().descriptor.inputs) == {"input": ("float32", ("batch", 3, 38, 38))}


class Prepared(nn.Module):
    """Pictures as files have them, prepared by the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.conv(pictures.permute(0, 3, 1, 2).float() / 255 - 0.5).mean((2, 3))


class WideAndDeep(nn.Module):
    """Numbers joined to what ids were embedded as: no weight of their own tells how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(50, 8), nn.Linear(12, 2)

    def forward(self, ids: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        return self.out(torch.cat([self.table(ids).mean(1), numbers], 1))


class Spectrum(nn.Module):
    """Complex numbers out."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft(self.mix(x))


class Untold(nn.Module):
    """Weights that no input meets."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return x[ids, 1, 2, 3, 4]


def test_pictures_with_the_channels_last_are_found(tell, save_scripted):
    story = tell(save_scripted(Prepared()), Format.TORCHSCRIPT)
    assert shapes(story.probe().descriptor.inputs) == {"pictures": ("float32", ("batch", "height", "width", 3))}
    prove(story)


def test_how_many_numbers_stand_beside_ids_is_told_by_the_layer_that_joins_them(tell, save_scripted):
    story = tell(save_scripted(WideAndDeep()), Format.TORCHSCRIPT)
    found = shapes(story.probe().descriptor.inputs)
    assert found == {"ids": ("int64", ("batch", "sequence")), "numbers": ("float32", ("batch", 4))}
    prove(story)


@pytest.mark.parametrize("declared", [False, True])
def test_complex_numbers_are_the_model_s_own_and_no_fault_of_a_sidecar(tell, save_scripted, declared):
    story = tell(
        save_scripted(Spectrum()),
        Format.TORCHSCRIPT,
        sidecar={"inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 8]}]} if declared else None,
    )
    with pytest.raises(Unsupported, match="values of type complex64") as refused:
        story.probe()
    assert "torch.view_as_real" in refused.value.hint


def test_a_question_for_shapes_shows_the_dtypes_that_were_tried(tell, save_scripted):
    with pytest.raises(NeedsInput) as asked:
        tell(save_scripted(Untold()), Format.TORCHSCRIPT).probe()
    assert "nothing in it tells" in asked.value.hint
    tried = ["ids int64[2, 16], x.y float32[2]: no", "stopped after 60 attempts"]
    assert _example(tried, "ids") == "dtype: int64, shape: [batch, 64]"
    assert _example(tried, "x.y") == "dtype: float32, shape: [batch]"
    assert _example([], "ids") == "dtype: float32, shape: [batch, 3, 224, 224]"


class Product(nn.Module):
    """Two inputs of other widths in one einsum with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Parameter(torch.randn(5, 3, 4))

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bti, kij, bj -> btk", a.relu(), self.core, b)


class Turned(nn.Module):
    """An einsum behind a transposition, whose letters do not stand for the input's axes."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Parameter(torch.randn(3, 4))

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bi,ij->bj", a.transpose(0, 1), self.core)


class Warp(nn.Module):
    """A sampling grid that takes images of any channels and size."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        theta = torch.tensor([[0.9, 0.1, 0.0], [-0.1, 0.9, 0.1]]).expand(image.shape[0], 2, 3)
        grid = nn.functional.affine_grid(theta, [image.shape[0], 1, 8, 8], align_corners=False)
        return nn.functional.grid_sample(image, grid, align_corners=False)


@pytest.mark.parametrize(
    ("module", "shapes"),
    [
        (Product(), [("batch", "axis_t", 3), ("batch", 4)]),
        (nn.Bilinear(3, 4, 2), [("batch", 3), ("batch", 4)]),
    ],
    ids=["einsum", "bilinear"],
)
def test_a_weight_that_several_inputs_meet_tells_each_one_s_shape(tell, save_scripted, module, shapes):
    story = tell(save_scripted(module), Format.TORCHSCRIPT)
    assert [spec.shape for spec in story.probe().descriptor.inputs] == shapes
    prove(story)


def test_the_letters_of_an_einsum_are_believed_only_of_the_input_itself(tell, save_scripted):
    story = tell(save_scripted(Turned()), Format.TORCHSCRIPT)
    with pytest.raises(NeedsInput):
        story.probe()


def test_what_fixes_no_channels_takes_images_of_any(tell, save_trace):
    story = tell(save_trace(Warp(), torch.randn(2, 1, 8, 8)), Format.TORCHSCRIPT)
    assert [spec.shape for spec in story.probe().descriptor.inputs] == [("batch", "channels", "height", "width")]
    prove(story)


def test_a_traced_transformer_is_replayed_where_the_exporter_knows_no_ranks(tell, save_trace):
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
            self.head = nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.layers(x).mean(1))

    story = tell(save_trace(Encoder(), torch.randn(2, 6, 16)), Format.TORCHSCRIPT)
    report = prove(story)
    assert shapes(report.inputs) == {"x": ("float32", ("batch", "sequence", 16))}
    assert any("replay" in note for note in report.notes)


def test_a_weight_among_the_outputs_is_served(tell, save_trace):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            result = self.linear(x)
            return result, self.linear.weight.t(), x, result

    story = tell(save_trace(Net(), torch.randn(2, 8)), Format.TORCHSCRIPT)
    report = prove(story)
    assert [spec.name for spec in report.outputs] == [f"output_{n}" for n in range(4)]


@pytest.mark.parametrize("module", [nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))])
def test_a_trace_with_dropout_left_on_fails_with_the_cause(tell, save_trace, module):
    story = tell(save_trace(module, torch.randn(2, 8), train=True), Format.TORCHSCRIPT)
    with pytest.raises(ModelFailed, match="answers the same input differently") as failure:
        prove(story)
    assert "eval()" in failure.value.hint


def test_a_model_quantised_already_is_refused_by_its_operator(tell, save_trace):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 4)).eval(), {nn.Linear})
    story = tell(save_trace(module, torch.randn(2, 8)), Format.TORCHSCRIPT)
    with pytest.raises(Unsupported, match="quantized::linear_dynamic"):
        story.probe()


class Keyed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        result = self.linear(x)
        return {"scores": result, "again": result, "x": x}


def test_an_exported_program_keeps_the_keys_of_its_outputs_and_equal_ones_apart(tell, tmp_path):
    path = tmp_path / "keyed.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = torch.export.Dim("batch", max=64)
        program = torch.export.export(Keyed().eval(), (torch.randn(3, 8),), dynamic_shapes=({0: batch},))
        torch.export.save(program, path)
    report = prove(tell(path, Format.EXPORTED_PROGRAM))
    # A graph has each name once, and x is an input.
    assert [spec.name for spec in report.outputs] == ["scores", "again", "x_output"]


NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(8, 4), nn.Linear(5, 4)
    def forward(self, image, meta, flag=None, return_all=False):
        return {"logits": self.left(image) + self.right(meta)}
"""


def net() -> nn.Module:
    names: dict[str, type[nn.Module]] = {}
    exec("from torch import nn\n" + NET, names)
    return names["Net"]()


def test_several_inputs_of_a_class_that_cannot_be_scripted_are_found(with_class):
    story = with_class(net().state_dict(), NET)
    prove(story)
    assert shapes(story.descriptor.inputs) == {
        "image": ("float32", ("batch", 8)),
        "meta": ("float32", ("batch", 5)),
    }


@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        (lambda state: {"epoch": 3, "generator": state, "best": np.float64(0.5)}, "'generator'"),
        (lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}}, "'model.'"),
    ],
)
def test_weights_are_found_where_training_scripts_put_them(with_class, wrap, note):
    report = prove(with_class(wrap(net().state_dict()), NET))
    assert any(note in each for each in report.notes)


def test_tied_weights_that_safetensors_leaves_out_are_filled_in(with_class):
    code = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(30, 8), nn.Linear(8, 30, bias=False)
        self.head.weight = self.table.weight
    def forward(self, ids):
        return self.head(self.table(ids))
"""
    names: dict[str, type[nn.Module]] = {}
    exec("from torch import nn\n" + code, names)
    prove(with_class(names["Net"](), code, safetensors=True))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import package_that_is_absent\n" + NET, "imports package_that_is_absent"),
        (NET + "class Own(Exception): pass\nraise Own('not today')\n", "raised Own: not today"),
        (NET + "raise KeyboardInterrupt\n", "raised KeyboardInterrupt"),
        (NET.replace("super().__init__()", "raise ValueError('boom')"), "ValueError: boom"),
    ],
)
def test_code_that_fails_is_told_as_the_code_s_fault(with_class, code, said):
    with pytest.raises(ModelFailed, match=said):
        with_class(net().state_dict(), code).probe()


LOOP = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)

    def forward(self, x):
        total = torch.zeros_like(x[:, 0])
        for place in range(x.shape[1]):
            total = self.body(total + x[:, place]).tanh()
        return total
"""


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_an_export_that_holds_at_one_length_only_says_so_and_holds_there(with_class, exporter):
    names: dict[str, type[nn.Module]] = {}
    exec("import torch\nfrom torch import nn\n" + LOOP, names)
    story = with_class(names["Net"]().state_dict(), LOOP)
    module = story.sidecar.module
    inputs = [{"name": "x", "dtype": "float32", "shape": ["batch", "items", 4]}]
    story.sidecar = Sidecar.model_validate({"module": module.model_dump(), "inputs": inputs})
    options = {"exporter": exporter, "opset": 18 if exporter == "dynamo" else 17}
    with pytest.raises(SizesFrozen):
        prove(story, **options)
    ((story.descriptor,), _) = fixed_sizes(story.descriptor)
    report = prove(story, **options)
    assert report.inputs[0].shape == ("batch", story.descriptor.inputs[0].shape[1], 4)


def test_a_forward_of_any_number_of_arguments_asks_which_inputs_it_takes(with_class):
    code = NET.replace("image, meta, flag=None, return_all=False", "*args").replace("image", "args[0]")
    with pytest.raises(NeedsInput, match=r"Which inputs does Net\.forward take"):
        with_class(net().state_dict(), code.replace("meta", "args[1]")).probe()


TEXT = {"vocab_size": 120, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT |= {"intermediate_size": 32, "max_position_embeddings": 40}
IMAGE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE |= {"image_size": 32, "patch_size": 16}


@pytest.fixture
def save_hugging(tmp_path):
    def make(architecture: str, config: str, **settings: object) -> Path:
        import transformers

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            transformers.logging.set_verbosity_error()
            model = getattr(transformers, architecture)(getattr(transformers, config)(**settings))
            model.eval().save_pretrained(tmp_path / "folder")
        return tmp_path / "folder"

    return make


def test_a_model_of_texts_and_images_takes_more_of_the_one_than_of_the_other(tell, save_hugging):
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "projection_dim": 8}
    folder = save_hugging(
        "CLIPModel", "CLIPConfig", text_config={**TEXT, **tokens}, vision_config=IMAGE, projection_dim=8
    )
    story = tell(folder, Format.HUGGINGFACE)
    prove(story)
    assert shapes(story.descriptor.inputs)["pixel_values"] == ("float32", ("images", 3, 32, 32))
    assert shapes(story.descriptor.outputs)["logits_per_image"] == ("float32", ("images", "texts"))


def test_a_multiple_choice_model_has_an_axis_of_choices(tell, save_hugging):
    story = tell(save_hugging("BertForMultipleChoice", "BertConfig", **TEXT), Format.HUGGINGFACE)
    prove(story)
    assert shapes(story.descriptor.inputs)["input_ids"] == ("int64", ("batch", "choices", "sequence"))


def test_a_spectrogram_model_takes_what_its_config_says(tell, save_hugging):
    settings = {**{k: v for k, v in IMAGE.items() if k != "image_size"}, "max_length": 64, "num_mel_bins": 32}
    story = tell(save_hugging("ASTForAudioClassification", "ASTConfig", **settings), Format.HUGGINGFACE)
    assert shapes(story.probe().descriptor.inputs) == {"input_values": ("float32", ("batch", 64, 32))}


def test_a_part_that_transformers_has_and_does_not_export_is_loaded(tell, tmp_path):
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    width = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = WhisperConfig(
        vocab_size=100, d_model=16, encoder_layers=1, decoder_layers=1, max_source_positions=50, num_mel_bins=20,
        pad_token_id=1, bos_token_id=1, eos_token_id=1, decoder_start_token_id=1, **width,
    )  # fmt: skip
    WhisperEncoder(config).eval().save_pretrained(tmp_path / "encoder")
    story = tell(tmp_path / "encoder", Format.HUGGINGFACE)
    assert shapes(story.probe().descriptor.inputs) == {"input_features": ("float32", ("batch", 20, 100))}


def test_weights_of_another_shape_are_named(tell, save_hugging):
    folder = save_hugging("BertModel", "BertConfig", **TEXT)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(ModelFailed, match=r"tensors are missing or of another shape, for example encoder\.layer"):
        tell(folder, Format.HUGGINGFACE).probe()
