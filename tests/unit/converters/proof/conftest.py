"""What the tests of the proof share: one model's way from probe to measure, and ONNX graphs made by hand."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.catalog import parse_options
from schemas.descriptor import Format, ModelDescriptor, ProbeReport
from schemas.evidence import MeasureReport, ParityReport, ReferenceReport, TryReport
from schemas.sidecar import Sidecar
from schemas.step_io import StepContext, StepRequest
from schemas.target import TargetProfile


class Story:
    """The proof steps of one model, each in a workspace of its own, without a sandbox."""

    def __init__(self, folder: Path, model: Path, format: Format, sidecar: Sidecar | None, code: Path | None) -> None:
        self.folder, self.model, self.sidecar, self.code = folder, model, sidecar, code
        self.descriptor = ModelDescriptor(artifact_sha256="0" * 64, format=format, size_bytes=1)
        self.target = TargetProfile()
        self.steps = itertools.count()
        self.reference_folder: Path | None = None

    def context(self, kind: str, options: Mapping[str, Any], **inputs: Path) -> StepContext:
        workspace = self.folder / f"{kind}-{next(self.steps)}"
        (workspace / "out").mkdir(parents=True)
        if self.code is not None:
            inputs["code"] = self.code
        request = StepRequest(
            kind=kind,
            inputs={name: str(path) for name, path in inputs.items()},
            descriptor=self.descriptor,
            sidecar=self.sidecar,
            target=self.target,
        )
        return StepContext(request, workspace, parse_options(kind, dict(options)))

    def probe(self, **options: Any) -> ProbeReport:
        from converters.probe import probe

        report = probe(self.context("probe", options, model=self.model)).report
        assert isinstance(report, ProbeReport)
        self.descriptor = report.descriptor
        return report

    def reference(self, **options: Any) -> ReferenceReport:
        from converters.reference import reference

        context = self.context("reference", options, model=self.model)
        outcome = reference(context)
        self.reference_folder = context.out / outcome.outputs["reference"]
        assert isinstance(outcome.report, ReferenceReport)
        return outcome.report

    def parity(self, candidate: Path, precision: str = "fp32") -> ParityReport:
        from converters.parity import parity

        assert self.reference_folder is not None
        context = self.context("parity", {"precision": precision}, model=candidate, reference=self.reference_folder)
        report = parity(context).report
        assert isinstance(report, ParityReport)
        return report

    def measure(self, candidates: Mapping[str, Path], **options: Any) -> MeasureReport:
        from converters.measure import measure

        assert self.reference_folder is not None
        inputs = {f"candidate.{name}": path for name, path in candidates.items()}
        context = self.context("measure", options, model=self.model, reference=self.reference_folder, **inputs)
        report = measure(context).report
        assert isinstance(report, MeasureReport)
        return report

    def try_model(self, model: Path, **options: Any) -> TryReport:
        from converters.try_model import try_model

        report = try_model(self.context("try_model", options, model=model)).report
        assert isinstance(report, TryReport)
        return report


TellStory = Callable[..., Story]
WriteOnnx = Callable[..., Path]


@pytest.fixture
def tell(tmp_path: Path) -> TellStory:
    """Return how to begin a model's story; ``samples`` become the sidecar's."""
    count = itertools.count()

    def make(
        model: Path,
        format: Format,
        *,
        sidecar: Mapping[str, Any] | None = None,
        samples: Mapping[str, np.ndarray] | None = None,
    ) -> Story:
        folder = tmp_path / f"story-{next(count)}"
        folder.mkdir()
        code = None
        said = dict(sidecar or {})
        if samples is not None:
            code = folder / "code"
            code.mkdir()
            np.savez(code / "samples.npz", **samples)
            said["samples"] = "samples.npz"
        return Story(folder, model, format, Sidecar.model_validate(said) if said else None, code)

    return make


@pytest.fixture
def write_onnx(tmp_path: Path) -> WriteOnnx:
    """Return how to write a graph: nodes, inputs and outputs as (name, dtype, shape), weights by name."""
    from onnx import TensorProto, checker, helper, numpy_helper, save

    count = itertools.count()

    def make(
        nodes: Sequence[tuple[str, Sequence[str], Sequence[str], Mapping[str, Any]]],
        inputs: Sequence[tuple[str, str, Sequence[int | str]]],
        outputs: Sequence[tuple[str, str, Sequence[int | str]]],
        weights: Mapping[str, np.ndarray] | None = None,
    ) -> Path:
        def value(name: str, dtype: str, shape: Sequence[int | str]) -> Any:
            return helper.make_tensor_value_info(name, getattr(TensorProto, dtype.upper()), list(shape))

        graph = helper.make_graph(
            [helper.make_node(kind, list(takes), list(gives), **more) for kind, takes, gives, more in nodes],
            "graph",
            [value(*each) for each in inputs],
            [value(*each) for each in outputs],
            [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        checker.check_model(model)
        folder = tmp_path / f"onnx-{next(count)}"
        folder.mkdir()
        save(model, folder / "model.onnx")
        return folder

    return make


@pytest.fixture
def save_script(tmp_path: Path) -> Callable[[Any], Path]:
    """Return how to save a module as TorchScript."""
    import warnings

    import torch

    torch.set_num_threads(1)
    count = itertools.count()

    def make(module: Any) -> Path:
        path = tmp_path / f"model-{next(count)}.pt"
        with warnings.catch_warnings():
            # torch announces the end of TorchScript at every use.
            warnings.simplefilter("ignore")
            scripted = module if isinstance(module, torch.jit.ScriptModule) else torch.jit.script(module.eval())
            torch.jit.save(scripted, path)
        return path

    return make


@pytest.fixture
def copy_folder(tmp_path: Path) -> Callable[[Path], Path]:
    count = itertools.count()

    def make(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / f"copy-{next(count)}"))

    return make
