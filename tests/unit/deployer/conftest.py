from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from schemas.deployment import EntrySpec
from schemas.descriptor import KnownBy, TensorSpec
from schemas.evidence import BatchProof


@dataclass
class Site:
    """A repository, its archive and a store with one folder a version."""

    root: Path

    @property
    def repository(self) -> Path:
        return self.root / "model_repository"

    @property
    def archive(self) -> Path:
        return self.root / "archive"

    def model(self, content: str) -> Path:
        folder = self.root / "store" / content
        if not folder.exists():
            folder.mkdir(parents=True)
            (folder / "model.onnx").write_text(content)
            (folder / "model.onnx.data").write_text(f"weights of {content}")
        return folder

    def served(self, name: str = "iris") -> str:
        """Read what a server would load: the model that the configuration in place names."""
        from deployer.publish import active_version

        return (self.repository / name / str(active_version(name, self.repository)) / "model.onnx").read_text()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def make_spec() -> Callable[..., EntrySpec]:
    def make(version: int = 1, **facts: object) -> EntrySpec:
        return EntrySpec.model_validate(
            {
                "name": "iris",
                "version": version,
                "inputs": (TensorSpec(name="x", dtype="float32", shape=("batch", 4), known_by=KnownBy.PROBE),),
                "outputs": (
                    TensorSpec(name="label", dtype="string", shape=("batch",), known_by=KnownBy.PROBE),
                    TensorSpec(name="probabilities", dtype="float32", shape=("batch", 2), known_by=KnownBy.PROBE),
                ),
                "batching": BatchProof(holds=True, reason="It holds.", sizes=(1, 2, 8)),
                "max_batch_size": 8,
                "labels": ("no", f"yes {version}"),
                "labels_output": "probabilities",
                **facts,
            }
        )

    return make
