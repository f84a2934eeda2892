"""What a row costs, against what pencil and paper say."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn

from converters.flops import torch_work
from converters.flops_sklearn import estimator_work
from converters.torch_runner import TorchRunner
from converters.torch_source import TorchSource, flat_module

pytestmark = pytest.mark.torch

CONVOLVED = 2 * (6 * 6 * 8) * (3 * 3 * 3)
MULTIPLIED = 2 * (8 * 36) * 10


def work(module, feeds: Mapping[str, np.ndarray], rows: int = 1):
    names = tuple(feeds)
    runs = module.module() if isinstance(module, torch.export.ExportedProgram) else module
    flat = flat_module(runs, lambda inner, tensors: inner(*tensors), (), names)
    return torch_work(TorchRunner(TorchSource(flat, names, inner=module)), feeds, rows)


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()


@pytest.mark.parametrize(
    "made",
    [
        lambda net, x: net,
        lambda net, x: torch.jit.trace(net, x),
        lambda net, x: torch.jit.script(net),
        lambda net, x: torch.export.export(net, (x,)),
    ],
    ids=["module", "traced", "scripted", "exported"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_convolution_and_a_matrix_cost_the_same_in_every_format(made):
    x = torch.zeros(1, 3, 8, 8)

    facts = work(made(convolutional(), x), {"x": x.numpy()})

    assert facts["flops"] == CONVOLVED + MULTIPLIED
    assert facts["matrix_bytes"] == 4 * 8 * 36 * 10
    assert facts["operators"]["aten::addmm"] == 1


def test_of_several_rows_the_cost_of_one_is_told():
    assert work(convolutional(), {"x": np.zeros((4, 3, 8, 8), np.float32)}, 4)["flops"] == CONVOLVED + MULTIPLIED


def test_a_recurrent_layer_multiplies_by_both_matrices_at_every_step():
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = nn.LSTM(4, 8, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.cells(x)[0][:, -1]

    facts = work(Last().eval(), {"x": np.zeros((1, 5, 4), np.float32)})

    assert facts["flops"] == 2 * 5 * (4 * 32 + 8 * 32)
    assert facts["matrix_bytes"] == 4 * (4 * 32 + 8 * 32)


def test_the_fused_encoder_layer_is_looked_into():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()

    facts = work(layer, {"src": np.zeros((1, 5, 16), np.float32)})

    assert facts["matrix_bytes"] == sum(4 * p.numel() for p in layer.parameters() if p.dim() > 1)
    weights = 2 * 5 * (16 * 48 + 16 * 16 + 2 * 16 * 32)
    assert facts["flops"] == weights + 2 * (2 * 5 * 5 * 16)
    assert torch.backends.mha.get_fastpath_enabled()


def test_tied_weights_count_once():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 8)
            self.head = nn.Linear(8, 50, bias=False)
            self.again = nn.Linear(8, 50, bias=False)
            self.head.weight = self.again.weight = self.table.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.table(ids)
            return self.head(x) + self.again(x)

    assert work(Tied().eval(), {"ids": np.zeros((1, 3), np.int64)})["matrix_bytes"] == 4 * 50 * 8


def test_what_cannot_be_followed_tells_nothing():
    assert work(convolutional(), {"x": np.zeros((1, 4, 8, 8), np.float32)}) == {}


@pytest.mark.sklearn
def test_estimators_cost_what_their_formulas_say():
    from sklearn.decomposition import PCA
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import StandardScaler
    from sklearn.tree import DecisionTreeClassifier

    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 5))
    y = np.arange(64) % 3

    linear = LogisticRegression().fit(x, y)
    assert estimator_work([StandardScaler().fit(x), linear]) == {"flops": 2 * 5 * 3, "matrix_bytes": 8 * 5 * 3}
    projected = PCA(2).fit(x)
    after = LogisticRegression().fit(projected.transform(x), y)
    assert estimator_work([projected, after])["flops"] == 2 * 2 * 5 + 2 * 2 * 3
    layers = MLPClassifier((7,), max_iter=2000, tol=1e-2, random_state=0).fit(x, y)
    assert estimator_work([layers])["flops"] == 2 * (5 * 7 + 7 * 3)
    stump = DecisionTreeClassifier(max_depth=1).fit(x, y)
    assert estimator_work([stump])["flops"] == 1
    stumps = RandomForestClassifier(10, max_depth=1, random_state=0).fit(x, y)
    assert estimator_work([stumps])["flops"] == 10
    boosted = HistGradientBoostingClassifier(max_iter=4, max_leaf_nodes=2, min_samples_leaf=1).fit(x, y)
    assert estimator_work([boosted])["flops"] == 4 * 3
    assert estimator_work([KNeighborsClassifier().fit(x, y)]) == {}
