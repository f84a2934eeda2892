"""The class behind wine.pth: a state_dict holds numbers only, so somebody has to say what they are weights of."""

import torch


class WineNet(torch.nn.Module):
    """Thirteen measurements of a wine in, a score for each of three cultivars out."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(13)
        self.first = torch.nn.Linear(13, hidden)
        self.second = torch.nn.Linear(hidden, 3)

    def forward(self, measurements: torch.Tensor) -> torch.Tensor:
        """Return scores, shape (rows, 3)."""
        scores: torch.Tensor = self.second(torch.relu(self.first(self.norm(measurements))))
        return scores
