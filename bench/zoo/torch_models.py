# ruff: noqa: D102
"""Torch modules written for the zoo, each saved in one of the ways people save them.

Every class stands in this file and nowhere else: for weights that need their class, its source is written beside them.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

HEADER = "import math\n\nimport torch\nfrom torch import nn\n\n\n"


class ConvNet(nn.Module):
    """Convolutions, batch norm, pooling, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.2),
            nn.Conv2d(8, 16, 3, stride=2), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(16, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(image))


class UNet(nn.Module):
    """Down, up again by transposed convolutions, with a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU())
        self.middle = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.SiLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        skip = self.down(image)
        return self.head(torch.cat([skip, self.up(self.middle(skip))], 1)).sigmoid()


class Tagger(nn.Module):
    """A bidirectional LSTM over token ids."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8, padding_idx=0)
        self.cells = nn.LSTM(8, 8, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.cells(self.table(ids))[0])


class Forecaster(nn.Module):
    """A GRU whose last state forecasts; returns the forecast and the state."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.GRU(3, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, series: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states, _ = self.cells(series)
        last = states[:, -1]
        return self.head(last), last


class Encoder(nn.Module):
    """Two encoder layers with torch's own attention and a padding mask."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.table = nn.Embedding(40, 16)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.layers(self.table(ids), src_key_padding_mask=mask == 0)
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


class TwoTower(nn.Module):
    """Two inputs of one shape that must not be swapped."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, query: torch.Tensor, item: torch.Tensor) -> dict[str, torch.Tensor]:
        a, b = self.left(query), self.right(item)
        return {"score": (a * b).sum(-1), "query_vector": a, "item_vector": b}


class Gate(nn.Module):
    """Control flow on a size and on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.steep = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = self.plain(x) if bool(x.sum() > 0) else self.steep(x).tanh()
        return x


class Bilinear(nn.Module):
    """Einsum with a tensor of three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Parameter(torch.randn(5, 4, 4) / 4)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bi,kij,bj->bk", a, self.core, b)


class Warp(nn.Module):
    """A spatial transformer: affine_grid and grid_sample."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([[0.9, 0.1, 0.0], [-0.1, 0.9, 0.1]]))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        theta = self.theta.expand(image.shape[0], 2, 3)
        grid = nn.functional.affine_grid(theta, [image.shape[0], 1, 8, 8], align_corners=False)
        return nn.functional.grid_sample(image, grid, align_corners=False)


class Bag(nn.Module):
    """An embedding bag over ids of fixed number."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(60, 6, mode="mean")
        self.head = nn.Linear(6, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(ids))


class Wave(nn.Module):
    """Dilated one-dimensional convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv1d(8, 8, 3, dilation=2, padding=2, groups=2), nn.Softplus()
        )

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        return self.body(wave).mean(-1)


class Volume(nn.Module):
    """Three-dimensional convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.ReLU(), nn.AvgPool3d(2))

    def forward(self, scan: torch.Tensor) -> torch.Tensor:
        return self.body(scan).flatten(1).amax(1)


class Patches(nn.Module):
    """Shapes that are folded, permuted and split: patches with windowed attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, stride=4)
        self.qkv = nn.Linear(16, 48)
        self.norm = nn.LayerNorm(16)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.embed(image).flatten(2).transpose(1, 2)
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        return torch.roll(x, 1, 1).mean(1)


class Recommender(nn.Module):
    """Integer inputs of one id a row beside numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(30, 6), nn.Embedding(20, 6)
        self.head = nn.Sequential(nn.Linear(15, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, user: torch.Tensor, item: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.users(user), self.items(item), features], -1)).squeeze(-1)


class Energy(nn.Module):
    """A scalar for the whole batch, and one number a row."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        row = self.body(x).square().sum(-1)
        return row, row.mean()


class Precise(nn.Module):
    """float64 throughout, with functions that float32 would spoil."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log1p(self.body(x).abs()).cumsum(-1)


class TiedLm(nn.Module):
    """Input and output tokens share one table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 16)
        self.body = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.LayerNorm(16))
        self.head = nn.Linear(16, 64, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.table(ids)))


class StraightThrough(torch.autograd.Function):
    """Rounds forward, passes gradients back: a custom autograd function."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        """Round to eighths."""
        return (x * 8).round() / 8

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        """Pass the gradient."""
        return gradient


class Quantised(nn.Module):
    """Uses a custom autograd function in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return StraightThrough.apply(self.body(x)).relu()


class Masked(nn.Module):
    """Boolean masks, where, top-k and gather."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        score = self.score(x).squeeze(-1)
        values, places = torch.where(score > 0, score, score * 0.1).topk(2, -1)
        return values, torch.gather(x, 1, places.unsqueeze(-1).expand(-1, -1, 4))


class Positions(nn.Module):
    """Sine positions made from the input's length, and a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[1]
        steps = torch.arange(n, device=x.device, dtype=x.dtype).unsqueeze(1)
        x = x + torch.sin(steps / 10.0 ** (torch.arange(8, dtype=x.dtype) / 4))
        mask = torch.triu(torch.ones(n, n, dtype=torch.bool), 1)
        return self.attend(x, x, x, attn_mask=mask, need_weights=False)[0]


def _image(*size: int) -> torch.Tensor:
    return torch.randn(2, *size)


def _ids(limit: int, *size: int) -> torch.Tensor:
    return torch.randint(1, limit, (2, *size))


_Example = Callable[[], tuple[torch.Tensor, ...]]
_INPUTS: dict[str, tuple[type[nn.Module], _Example, dict[str, list[int | str]]]] = {
    "conv-net": (ConvNet, lambda: (_image(3, 32, 32),), {"image": ["batch", 3, 32, 32]}),
    "unet": (UNet, lambda: (_image(1, 16, 16),), {"image": ["batch", 1, "height", "width"]}),
    "tagger": (Tagger, lambda: (_ids(50, 9),), {"ids": ["batch", "sequence"]}),
    "forecaster": (Forecaster, lambda: (_image(12, 3),), {"series": ["batch", "sequence", 3]}),
    "encoder": (
        Encoder,
        lambda: (_ids(40, 7), torch.ones(2, 7, dtype=torch.int64)),
        {"ids": ["batch", "sequence"], "mask": ["batch", "sequence"]},
    ),
    "two-tower": (TwoTower, lambda: (_image(6), _image(6)), {"query": ["batch", 6], "item": ["batch", 6]}),
    "gate": (Gate, lambda: (_image(4),), {"x": ["rows", 4]}),
    "bilinear": (Bilinear, lambda: (_image(4), _image(4)), {"a": ["batch", 4], "b": ["batch", 4]}),
    "warp": (Warp, lambda: (_image(1, 8, 8),), {"image": ["batch", 1, 8, 8]}),
    "bag": (Bag, lambda: (_ids(60, 5),), {"ids": ["batch", 5]}),
    "wave": (Wave, lambda: (_image(1, 64),), {"wave": ["batch", 1, "length"]}),
    "volume": (Volume, lambda: (_image(1, 8, 8, 8),), {"scan": ["batch", 1, 8, 8, 8]}),
    "patches": (Patches, lambda: (_image(3, 16, 16),), {"image": ["batch", 3, 16, 16]}),
    "recommender": (
        Recommender,
        lambda: (_ids(30), _ids(20), _image(3)),
        {"user": ["batch"], "item": ["batch"], "features": ["batch", 3]},
    ),
    "energy": (Energy, lambda: (_image(4),), {"x": ["rows", 4]}),
    "precise": (Precise, lambda: (_image(4).double(),), {"x": ["batch", 4]}),
    "tied-lm": (TiedLm, lambda: (_ids(64, 6),), {"ids": ["batch", "sequence"]}),
    "quantised": (Quantised, lambda: (_image(6),), {"x": ["batch", 6]}),
    "masked": (Masked, lambda: (_image(5, 4),), {"x": ["batch", "items", 4]}),
    "positions": (Positions, lambda: (_image(6, 8),), {"x": ["batch", "sequence", 8]}),
}
_SAVED = {
    "traced": ("conv-net", "tagger", "two-tower", "warp", "wave", "precise"),
    "scripted": ("gate", "forecaster", "bilinear", "masked", "energy"),
    "exported": ("unet", "encoder", "patches", "volume", "positions"),
    "weights": ("recommender", "bag", "tied-lm", "quantised"),
    "checkpoint": ("conv-net",),
    "half": ("recommender",),
    "module": ("conv-net", "tagger"),
    "layers": ("plain",),
    "safetensors": ("patches", "tied-lm"),
}
"""How each is saved; several are saved more than once, because every way has its own traps."""


def models(folder: Path) -> Iterator[tuple[str, Path]]:
    """Write the models below ``folder`` and yield the name and path of each; sidecars and code stand beside theirs."""
    torch.set_num_threads(1)
    for way, names in _SAVED.items():
        for name in names:
            torch.manual_seed(0)
            target = folder / f"{way}-{name}"
            target.mkdir(parents=True, exist_ok=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield f"torch-{way}-{name}", _save(target, way, name)


def _save(folder: Path, way: str, name: str) -> Path:
    if way == "layers":
        path = folder / "model.pt"
        torch.save(nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).eval(), path)
        return path
    kind, example, axes = _INPUTS[name]
    module = kind().eval()
    match way:
        case "traced":
            path = folder / "model.pt"
            torch.jit.trace(module, example(), strict=False, check_trace=False).save(str(path))
        case "scripted":
            path = folder / "model.pt"
            torch.jit.script(module).save(str(path))
        case "exported":
            path = folder / "model.pt2"
            shapes = {
                argument: {at: torch.export.Dim.AUTO for at, dim in enumerate(dims) if isinstance(dim, str)}
                for argument, dims in axes.items()
            }
            torch.export.save(torch.export.export(module, example(), dynamic_shapes=shapes), path)
        case "module":
            path = folder / "model.pth"
            torch.save(module, path)
            _beside(path, kind, axes, example())
        case "safetensors":
            from safetensors.torch import save_model

            path = folder / "model.safetensors"
            save_model(module, str(path))
            _beside(path, kind, axes, example())
        case _:
            path = folder / "model.pt"
            state = module.half().state_dict() if way == "half" else module.state_dict()
            torch.save({"epoch": 3, "model_state_dict": state} if way == "checkpoint" else state, path)
            _beside(path, kind, axes, example())
    return path


def _beside(path: Path, kind: type[nn.Module], axes: dict[str, list[int | str]], example: tuple[Any, ...]) -> None:
    """Write the class's source and the sidecar that names it beside ``path``."""
    needed = [StraightThrough, kind] if kind is Quantised else [kind]
    source = "\n\n".join(inspect.getsource(each) for each in needed)
    code = HEADER + source.replace("ctx: Any", "ctx").replace("gradient: torch.Tensor", "gradient")
    path.with_name("model.py").write_text(code)
    lines = ["module:", "  file: model.py", f"  class_name: {kind.__name__}", "inputs:"]
    for (name, dims), tensor in zip(axes.items(), example, strict=True):
        dtype = str(tensor.dtype).removeprefix("torch.")
        lines.append(f"- {{name: {name}, dtype: {dtype}, shape: [{', '.join(map(str, dims))}]}}")
    path.with_name(f"{path.name}.modelium.yaml").write_text("\n".join(lines) + "\n")
