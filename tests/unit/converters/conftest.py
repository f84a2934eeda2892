"""What the tests of converters share: a step's workspace, built without a sandbox."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from executor import find_sandbox
from executor.sandbox import Sandbox
from executor.warm_bounds import WarmBounds
from schemas.catalog import parse_options
from schemas.descriptor import Format, KnownBy, ModelDescriptor, TensorSpec
from schemas.errors import SandboxUnavailable
from schemas.sidecar import Sidecar
from schemas.step_io import StepContext, StepRequest

Shape = tuple[int | str, ...]
MakeContext = Callable[..., StepContext]


def spec(name: str, shape: Shape, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape, known_by=KnownBy.PROBE)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def warm_sandbox() -> Sandbox:
    """The sandbox as workers have it: a toolchain that takes seconds to import is imported once for many steps."""
    try:
        return find_sandbox(warm=WarmBounds())
    except SandboxUnavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture
def make_spec() -> Callable[..., TensorSpec]:
    return spec


@pytest.fixture
def make_context(tmp_path: Path) -> MakeContext:
    """Return how to build a step's context; every call makes a workspace of its own, inputs copied into it."""
    count = 0

    def make(
        kind: str,
        model: Path,
        format: Format,
        *,
        inputs: Sequence[TensorSpec] = (),
        outputs: Sequence[TensorSpec] = (),
        options: Mapping[str, Any] | None = None,
        sidecar: Sidecar | None = None,
        descriptor: Mapping[str, Any] | None = None,
        **paths: Path,
    ) -> StepContext:
        nonlocal count
        count += 1
        workspace = tmp_path / f"step-{count}"
        (workspace / "in").mkdir(parents=True)
        (workspace / "out").mkdir()
        given = {"model": model, **paths}
        for name, path in given.items():
            target = workspace / "in" / name
            if path.is_dir():
                shutil.copytree(path, target)
            else:
                shutil.copyfile(path, target)
        request = StepRequest(
            kind=kind,
            options=dict(options or {}),
            inputs={name: f"in/{name}" for name in given},
            sidecar=sidecar,
            descriptor=ModelDescriptor(
                artifact_sha256="0" * 64,
                format=format,
                size_bytes=1,
                inputs=tuple(inputs),
                outputs=tuple(outputs),
                **(descriptor or {}),
            ),
        )
        return StepContext(request, workspace, parse_options(kind, dict(options or {})))

    return make


@pytest.fixture
def run_onnx() -> Callable[[StepContext, Mapping[str, Any]], dict[str, np.ndarray]]:
    """Return how to run the ONNX model that a step wrote, by tensor name."""
    import onnxruntime

    def run(context: StepContext, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        session = onnxruntime.InferenceSession(
            str(context.out / "model" / "model.onnx"), providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))

    return run


@pytest.fixture
def same(tmp_path: Path, make_context, make_spec, run_onnx):
    """Convert an estimator and compare what the graph gives with what the estimator gives."""

    import joblib

    from converters import sklearn_onnx
    from converters.sklearn_runner import SklearnRunner

    def check(estimator, feeds, outputs, atol=1e-5):
        joblib.dump(estimator, tmp_path / "model.joblib")
        runner = SklearnRunner(joblib.load(tmp_path / "model.joblib"))
        context = make_context(
            "sklearn_onnx",
            tmp_path / "model.joblib",
            Format.SKLEARN,
            inputs=runner.inputs,
            outputs=[make_spec(*output) for output in outputs],
        )
        sklearn_onnx.convert(context)
        wanted = runner.run(feeds)
        got = run_onnx(context, feeds)
        assert list(got) == list(wanted)
        for name, array in wanted.items():
            assert got[name].shape == array.shape, name
            if array.dtype.kind == "f":
                np.testing.assert_allclose(got[name], array, atol=atol, rtol=1e-5)
            else:
                assert (got[name] == array).all(), name
        return lambda more: run_onnx(context, more)

    return check
