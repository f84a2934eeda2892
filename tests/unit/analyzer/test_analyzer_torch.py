"""Torch files: program, TorchScript, weights and whole modules are told apart without unpickling."""

from __future__ import annotations

import sys
import types
import zipfile

import pytest

from analyzer import describe
from schemas.descriptor import Format, KnownBy
from schemas.sidecar import ModuleSource, Sidecar, SidecarInput

pytestmark = pytest.mark.torch

MODULE = Sidecar(module=ModuleSource(file="model.py", class_name="Net"))


@pytest.fixture
def pickled_net(tmp_path, monkeypatch):
    """A whole module of a class of its own, their_net.Net."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Linear(2, 2)

    own = types.ModuleType("their_net")
    own.Net = Net
    Net.__module__, Net.__qualname__ = "their_net", "Net"
    monkeypatch.setitem(sys.modules, "their_net", own)
    torch.save(Net(), tmp_path / "pickled.pt")
    return tmp_path / "pickled.pt"


@pytest.mark.parametrize("name", ["traced.pt", "scripted.pt"])
def test_torchscript_tells_class_operators_parameters_and_what_forward_takes(torch_files, accepted, name):
    descriptor = accepted(torch_files / name)

    assert descriptor.format is Format.TORCHSCRIPT
    assert descriptor.architecture == "Net"
    assert descriptor.parameter_count == 139
    assert descriptor.parameter_dtypes == {"float32": 138, "int64": 1}
    assert descriptor.operators["aten::relu"] == 1
    assert any("forward takes image (Tensor)" in note for note in descriptor.notes)


def test_an_exported_program_tells_its_inputs_by_name_and_leaves_its_outputs_to_the_probe(torch_files, accepted):
    descriptor = accepted(torch_files / "program.pt2")

    assert descriptor.format is Format.EXPORTED_PROGRAM
    assert [(s.name, s.dtype, s.shape) for s in descriptor.inputs] == [("image", "float32", ("batch", 3, 8, 8))]
    assert descriptor.outputs == ()
    assert descriptor.operators["aten::conv2d.default"] == 1
    assert descriptor.known_by["inputs"] is KnownBy.HEADER
    assert descriptor.framework_version is not None and descriptor.framework_version.startswith("2.")


def test_an_exported_program_in_the_older_layout_is_read(torch_files, tmp_path, accepted):
    with zipfile.ZipFile(torch_files / "program.pt2") as new:
        graph = next(n for n in new.namelist() if n.endswith("models/model.json"))
        old = tmp_path / "old.pt2"
        with zipfile.ZipFile(old, "w") as archive:
            archive.writestr("serialized_exported_program.json", new.read(graph))
            archive.writestr("version", "5.1")

    descriptor = accepted(old)
    assert descriptor.format is Format.EXPORTED_PROGRAM
    assert descriptor.inputs[0].name == "image"


def test_an_exported_program_that_lacks_a_weight_names_it(torch_files, tmp_path, refused):
    broken = tmp_path / "broken.pt2"
    with zipfile.ZipFile(torch_files / "program.pt2") as new, zipfile.ZipFile(broken, "w") as archive:
        for name in new.namelist():
            if not name.endswith("weight_0"):
                archive.writestr(name, new.read(name))

    assert "conv.weight" in refused(broken, "model_failed").message


@pytest.mark.parametrize("name", ["state.pth", "legacy.pth", "checkpoint.pth", "weights.safetensors"])
def test_weights_without_a_sidecar_ask_for_their_class_and_show_the_sidecar_to_write(torch_files, refused, name):
    refusal = refused(torch_files / name, "needs_input")

    assert refusal.message.startswith("Which class do these weights belong to?")
    assert "9 tensors" in refusal.message
    assert "module:\n  file: model.py\n  class_name: Net\n" in refusal.hint
    assert ".modelium.yaml" in refusal.hint


@pytest.mark.parametrize("name", ["state.pth", "legacy.pth", "checkpoint.pth", "weights.safetensors"])
def test_weights_with_a_sidecar_are_accepted_and_counted(torch_files, accepted, tmp_path, name):
    (tmp_path / "model.py").write_text("import torch\n\n\nclass Net(torch.nn.Module):\n    pass\n")

    descriptor = accepted(torch_files / name, sidecar=MODULE, code=tmp_path)
    assert descriptor.format is (Format.SAFETENSORS if name.endswith("safetensors") else Format.TORCH_STATE_DICT)
    assert descriptor.parameter_count == 139
    assert descriptor.memory_bytes is not None and descriptor.known_by["memory_bytes"] is KnownBy.GUESS


def test_a_folder_around_one_model_file_is_that_model(torch_files, tmp_path, accepted):
    folder = tmp_path / "drop"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "net.pt2").write_bytes((torch_files / "program.pt2").read_bytes())

    descriptor = accepted(folder)
    assert (descriptor.format, descriptor.entry) == (Format.EXPORTED_PROGRAM, "net.pt2")
    assert descriptor.license == "mit"


def test_a_checkpoint_says_under_which_key_the_weights_are(torch_files):
    notes = describe(torch_files / "checkpoint.pth").descriptor.notes

    assert any("'model'" in note for note in notes)


def test_a_whole_pickled_module_of_known_layers_goes_on_with_the_globals_it_asks_for(torch_files, accepted):
    descriptor = accepted(torch_files / "module.pt")

    assert descriptor.format is Format.TORCH_MODULE
    assert descriptor.architecture == "Sequential"
    assert descriptor.parameter_count == 9
    assert "torch.nn.modules.container.Sequential" in descriptor.pickle_globals
    assert "torch._utils._rebuild_tensor_v2" in descriptor.pickle_globals


def test_a_class_that_the_sidecars_file_defines_is_no_question(tmp_path, accepted, pickled_net):
    code = tmp_path / "code"
    code.mkdir()
    (code / "model.py").write_text("from torch import nn\n\nclass Net(nn.Module):\n    pass\n")
    (code / "other.py").write_text("X = 1\n")

    assert accepted(pickled_net, sidecar=MODULE, code=code).format is Format.TORCH_MODULE
    other = Sidecar(module=ModuleSource(file="other.py", class_name="Net"))
    assert "their_net.Net" in str(describe(pickled_net, sidecar=other, code=code).refusal)


def test_a_dangerous_global_stays_danger_whatever_the_sidecars_file_defines(tmp_path):
    code = tmp_path / "code"
    code.mkdir()
    (code / "model.py").write_text("class system:\n    pass\n")
    evil = b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R."
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("net/data.pkl", evil)
        archive.writestr("net/version", "3\n")

    refusal = describe(tmp_path / "net.pt", sidecar=MODULE, code=code).refusal
    assert refusal is not None and refusal.code == "quarantined"


def test_a_lone_tensor_is_no_model(torch_files, refused):
    assert "one tensor of shape [3]" in refused(torch_files / "tensor.pt", "model_failed").message


@pytest.mark.parametrize("name", ["traced.pt", "program.pt2", "state.pth", "legacy.pth", "weights.safetensors"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_a_truncated_file_is_refused_in_one_sentence_that_says_so(torch_files, tmp_path, refused, name, share):
    whole = (torch_files / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: int(len(whole) * share)])

    refusal = refused(path, "model_failed", sidecar=MODULE)
    assert "truncated" in refusal.message and "Copy it again" in refusal.hint


def test_a_torch_zip_that_lacks_a_storage_names_the_tensor(torch_files, tmp_path, refused):
    broken = tmp_path / "broken.pth"
    with zipfile.ZipFile(torch_files / "state.pth") as whole, zipfile.ZipFile(broken, "w") as archive:
        for name in whole.namelist():
            if not name.endswith("data/0"):
                archive.writestr(name, whole.read(name))

    assert "conv.weight" in refused(broken, "model_failed", sidecar=MODULE).message


def test_what_a_sidecar_says_is_kept_as_said_by_a_sidecar(torch_files, accepted):
    sidecar = Sidecar(
        task="image-classification",
        license="mit",
        labels=("cat", "dog"),
        inputs=(SidecarInput(name="image", shape=("batch", 3, 8, 8)),),
    )

    descriptor = accepted(torch_files / "traced.pt", sidecar=sidecar)
    assert descriptor.labels == ("cat", "dog")
    assert descriptor.inputs[0].known_by is KnownBy.SIDECAR
    assert {descriptor.known_by[name] for name in ("task", "license", "labels", "inputs")} == {KnownBy.SIDECAR}


def test_a_sidecar_that_contradicts_the_header_is_a_question(torch_files, refused):
    sidecar = Sidecar(inputs=(SidecarInput(name="picture", shape=("batch", 3, 8, 8)),))

    refusal = refused(torch_files / "program.pt2", "needs_input", sidecar=sidecar)
    assert "picture" in refusal.message and "image" in refusal.message
