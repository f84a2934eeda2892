"""One name, several backends: what each gets as files and configuration, and what each must not be given."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from deployer import entry_spec, prune, publish, publish_engines, rollback, rollback_engines, undeploy_engines
from deployer.backends import BACKENDS, unservable
from deployer.config_checks import check_config, check_entry
from deployer.config_text import config_text, parse_config
from deployer.engines import engine_versions
from deployer.kserve import manifest
from deployer.publish import active_version, versions
from schemas.deployment import EntrySpec
from schemas.descriptor import Format, KnownBy, ModelDescriptor, TensorSpec
from schemas.engine import EngineManifest, EngineSheet
from schemas.errors import Conflict, ModeliumError, NotFound, Unsupported
from schemas.evidence import BatchProof, ParityReport, ReferenceCase
from schemas.precision import Precision
from schemas.target import TargetProfile, Tolerance

MakeSpec = Callable[..., EntrySpec]
NUMBERS = {"labels": (), "labels_output": None}
SCHEMA = json.loads(
    (Path(__file__).parents[2] / "data" / "kserve" / "inferenceservice-v1beta1.schema.json").read_text()
)
FILES = {
    Format.ONNX: ("model.onnx", "model.onnx.data"),
    Format.OPENVINO: ("model.xml", "model.bin"),
    Format.TORCHSCRIPT: ("model.pt",),
    Format.TENSORRT: ("model.plan",),
}


def tensor(name: str, dtype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec.model_validate({"name": name, "dtype": dtype, "shape": shape, "known_by": KnownBy.PROBE})


def entry(make_spec: MakeSpec, version: int, format: Format, **facts: object) -> EntrySpec:
    given: dict[str, object] = {
        "outputs": (tensor("probabilities", "float32", "batch", 2),),
        "format": format,
        "hardware": "gpu" if format is Format.TENSORRT else "cpu",
        "max_batch_size": 0 if format is Format.OPENVINO else 8,
        **NUMBERS,
        **facts,
    }
    return make_spec(version, **given)


def stored(site: Any, format: Format, content: str) -> Path:
    folder: Path = site.root / "store" / f"{format.value} {content}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES[format]:
        (folder / name).write_text(f"{name} of {content}")
    (folder / "tensors.json").write_text("{}")
    return folder


def put(site: Any, spec: EntrySpec, content: str) -> Any:
    return publish(spec, stored(site, spec.format, content), site.repository, site.archive)


def parity(precision: Precision = Precision.FP32, dtype: str = "float32") -> ParityReport:
    axes = {"batch": 2}
    return ParityReport(
        passed=True,
        reason="Over 4 cases, y differs by at most 0.",
        precision=precision,
        tolerance=Tolerance(),
        outputs=(),
        cases=(ReferenceCase(id="random-0", source="random", axes=axes, rows=2),),
        real_samples=False,
        batching=BatchProof(holds=True, reason="It holds.", sizes=(1, 2, 8)),
        inputs=(tensor("x", dtype, "batch", 4),),
        served_outputs=(tensor("y", "float32", "batch"),),
    )


def spec_of(format: Format, **facts: Any) -> EntrySpec:
    descriptor = ModelDescriptor(artifact_sha256="0" * 64, format=Format.ONNX, size_bytes=1)
    target = TargetProfile(hardware=facts.pop("hardware", "cpu"))
    return entry_spec("iris", 1, parity(**facts), descriptor, target, format=format)


@pytest.mark.parametrize("format", FILES)
def test_each_format_gets_its_backend_and_its_file_names(site: Any, make_spec: MakeSpec, format: Format) -> None:
    published = put(site, entry(make_spec, 1, format), "a")
    config = parse_config(published.config)
    assert config.backend == BACKENDS[format].name and config.platform == BACKENDS[format].platform
    assert config.default_model_filename == FILES[format][0]
    names = {path.name for path in (published.entry / "1").iterdir()}
    # What lies beside an ONNX graph may be its data; beside other models nothing is theirs but what they name.
    assert names == {*FILES[format], *(["tensors.json"] if format is Format.ONNX else [])}
    assert check_entry(published.entry) == ()


def test_a_model_of_another_name_takes_its_weights_file_along(site: Any, make_spec: MakeSpec) -> None:
    folder = site.root / "dropped"
    (folder / "ir").mkdir(parents=True)
    for name in ("encoder.xml", "encoder.bin", "other.xml"):
        (folder / "ir" / name).write_text(name)
    spec = entry(make_spec, 1, Format.OPENVINO)
    published = publish(spec, folder, site.repository, site.archive, model_entry="ir/encoder.xml")
    assert (published.entry / "1" / "model.xml").read_text() == "encoder.xml"
    assert (published.entry / "1" / "model.bin").read_text() == "encoder.bin"
    (folder / "ir" / "encoder.bin").unlink()
    with pytest.raises(NotFound, match=r"encoder\.bin"):
        publish(spec, folder, site.repository, site.archive, model_entry="ir/encoder.xml")
    (site.root / "lone").write_text("<net/>")
    with pytest.raises(NotFound, match=r"\.bin"):
        publish(spec, site.root / "lone", site.repository, site.archive)


def test_versions_of_one_name_may_have_different_formats(site: Any, make_spec: MakeSpec) -> None:
    first = put(site, entry(make_spec, 1, Format.ONNX), "first")
    second = put(site, entry(make_spec, 2, Format.OPENVINO), "second")
    put(site, entry(make_spec, 3, Format.TORCHSCRIPT), "third")
    assert versions("iris", site.repository) == (1, 2, 3)
    assert rollback("iris", 2, site.repository, site.archive) == second
    assert rollback("iris", 1, site.repository, site.archive) == first
    assert check_entry(first.entry) == ()
    assert rollback("iris", 3, site.repository, site.archive).config.count("pytorch_libtorch") == 1
    assert prune("iris", 1, site.repository) == (1,)
    assert versions("iris", site.repository) == (2, 3) and check_entry(first.entry) == ()
    with pytest.raises(NotFound, match="Kept: 2, 3"):
        rollback("iris", 1, site.repository, site.archive)


KILLED = """
import os, signal, sys
from pathlib import Path
from deployer import publish, rollback
from schemas.deployment import EntrySpec

action, spec, model, root, at = sys.argv[1:]
spec, root = EntrySpec.model_validate_json(spec), Path(root)

def die(phase):
    if phase == at:
        os.kill(os.getpid(), signal.SIGKILL)

places = (root / "model_repository", root / "archive")
if action == "publish":
    publish(spec, Path(model), *places, on_phase=die)
else:
    rollback(spec.name, spec.version, *places, on_phase=die)
"""


def killed(action: str, spec: EntrySpec, model: Path, site: Any, at: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, action, spec.model_dump_json(), model, site.root, at],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("phase", ["copied", "version", "archived", "committed"])
def test_a_change_of_format_killed_anywhere_leaves_one_of_the_two_served(
    site: Any, make_spec: MakeSpec, phase: str
) -> None:
    put(site, entry(make_spec, 1, Format.ONNX), "first")
    second = entry(make_spec, 2, Format.OPENVINO)
    killed("publish", second, stored(site, Format.OPENVINO, "second"), site, phase)
    folder = site.repository / "iris"
    assert active_version("iris", site.repository) == (2 if phase == "committed" else 1)
    assert check_entry(folder) == ()
    # The retry may bring another winner in another format under the same number.
    if phase != "committed":
        put(site, entry(make_spec, 2, Format.TORCHSCRIPT), "another")
        assert sorted(path.name for path in (folder / "2").iterdir()) == ["model.pt"]
        assert check_entry(folder) == ()


@pytest.mark.parametrize("phase", ["staged", "committed"])
def test_a_rollback_over_a_change_of_format_killed_anywhere_serves_one_of_the_two(
    site: Any, make_spec: MakeSpec, phase: str
) -> None:
    put(site, entry(make_spec, 1, Format.ONNX), "first")
    put(site, entry(make_spec, 2, Format.OPENVINO), "second")
    killed("rollback", entry(make_spec, 1, Format.ONNX), site.root, site, phase)
    assert active_version("iris", site.repository) == (1 if phase == "committed" else 2)
    assert check_entry(site.repository / "iris") == ()


def test_openvino_gets_no_max_batch_size_since_its_backend_would_run_that_size_only() -> None:
    spec = spec_of(Format.OPENVINO)
    config = parse_config(config_text(spec))
    assert spec.max_batch_size == 0 and spec.batching.holds
    assert list(config.input[0].dims) == [-1, 4] and not config.HasField("dynamic_batching")
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "NUM_STREAMS": "1",
        "PERFORMANCE_HINT": "LATENCY",
    }
    assert check_config(config) == ()
    config.max_batch_size = 8
    assert any("of no other size" in problem for problem in check_config(config))


def test_a_bf16_candidate_asks_openvino_for_bf16() -> None:
    assert spec_of(Format.OPENVINO, precision=Precision.BF16).parameters["HINT_BF16"] == "YES"
    assert "HINT_BF16" not in spec_of(Format.OPENVINO).parameters


def test_onnx_and_torchscript_keep_their_proven_batch() -> None:
    for format in (Format.ONNX, Format.TORCHSCRIPT):
        config = parse_config(config_text(spec_of(format)))
        assert config.max_batch_size == 8 and list(config.input[0].dims) == [4]
    assert config.parameters["INFERENCE_MODE"].string_value == "true"


def test_a_gpu_target_asks_for_gpu_instances() -> None:
    config = parse_config(config_text(spec_of(Format.ONNX, hardware="gpu")))
    assert config.instance_group[0].kind == config.instance_group[0].KIND_GPU
    assert check_config(config) == ()
    with pytest.raises(Unsupported, match="openvino backend does not run on a GPU"):
        spec_of(Format.OPENVINO, hardware="gpu")
    with pytest.raises(Unsupported, match="tensorrt backend does not run on a CPU"):
        spec_of(Format.TENSORRT)


@pytest.mark.parametrize(
    ("format", "dtype"),
    [(Format.OPENVINO, "float64"), (Format.OPENVINO, "string"), (Format.TORCHSCRIPT, "string"),
     (Format.TORCHSCRIPT, "uint16"), (Format.TENSORRT, "float64")],
)  # fmt: skip
def test_a_type_that_a_backend_does_not_serve_is_named(format: Format, dtype: str) -> None:
    hardware = "gpu" if format is Format.TENSORRT else "cpu"
    reason = unservable(format, [tensor("x", dtype, "batch", 2)], batched=True, hardware=hardware)
    assert reason is not None and dtype in reason[0] and BACKENDS[format].name in reason[0]
    assert unservable(Format.ONNX, [tensor("x", dtype, "batch", 2)], batched=True) is None


def test_a_compiled_package_is_not_for_triton() -> None:
    with pytest.raises(Unsupported, match="aotinductor"):
        spec_of(Format.AOTINDUCTOR)


@pytest.mark.parametrize(
    ("names", "wrong"),
    [
        (("a", "b"), ()),
        (("a__0", "b__1"), ()),
        (("a__1", "b__0"), ("a__1", "b__0")),
        (("a__1", "b"), ()),
        (("x__last", "x__0"), ()),
    ],
)
def test_names_that_libtorchs_backend_would_read_as_other_positions_are_found(
    make_spec: MakeSpec, names: tuple[str, ...], wrong: tuple[str, ...]
) -> None:
    outputs = tuple(tensor(name, "float32", "batch", 2) for name in names)
    problems = check_config(parse_config(config_text(entry(make_spec, 1, Format.TORCHSCRIPT, outputs=outputs))))
    assert len(problems) == len(wrong) and all(f"'{name}'" in " ".join(problems) for name in wrong)
    assert check_config(parse_config(config_text(entry(make_spec, 1, Format.ONNX, outputs=outputs)))) == ()


def test_a_parameter_that_loads_a_library_is_refused(site: Any, make_spec: MakeSpec) -> None:
    spec = entry(make_spec, 1, Format.OPENVINO, parameters={"CPU_EXTENSION_PATH": "/tmp/evil.so"})
    with pytest.raises(ModeliumError, match="CPU_EXTENSION_PATH"):
        put(site, spec, "a")
    assert not (site.repository / "iris").exists()


@pytest.mark.parametrize("format", FILES)
def test_every_formats_manifest_satisfies_kserves_schema(make_spec: MakeSpec, format: Format) -> None:
    made = manifest(entry(make_spec, 1, format), model_bytes=1 << 20)
    jsonschema.Draft202012Validator(SCHEMA).validate(made)
    model = made["spec"]["predictor"]["model"]
    # The names that KServe's kserve-tritonserver runtime has; a format without one is plain triton.
    wanted = dict(zip(FILES, ("onnx", "triton", "pytorch", "tensorrt"), strict=True))
    assert model["modelFormat"]["name"] == wanted[format]
    assert ("nvidia.com/gpu" in model["resources"]["limits"]) == (format is Format.TENSORRT)


def engines(site: Any, content: str) -> Path:
    folder: Path = site.root / "store" / f"engines {content}"
    folder.mkdir(parents=True, exist_ok=True)
    import hashlib

    data = f"engine {content}".encode()
    (folder / "model.onnx").write_text(f"graph {content}")
    (folder / "model.engine.sm_86").write_bytes(data)
    (folder / "model.py").write_text("print()")
    sheet = EngineSheet.model_validate(
        {
            "builder": "tensorrt-rtx",
            "builder_version": "1.7",
            "graph_sha256": "0" * 64,
            "engines": [
                {
                    "file": "model.engine.sm_86",
                    "sm": "sm_86",
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "size_bytes": len(data),
                }
            ],
            "inputs": (),
            "outputs": (),
        }
    )
    (folder / "engines.json").write_text(sheet.model_dump_json())
    return folder


def publish_version(site: Any, version: int, content: str) -> Any:
    return publish_engines(
        "iris", version, engines(site, content), site.root / "engines", parity=parity(), created_at=datetime.now(UTC)
    )


def test_engines_are_published_with_a_manifest_of_what_was_not_shown(site: Any) -> None:
    published = publish_version(site, 1, "first")
    names = sorted(path.name for path in published.folder.iterdir())
    assert names == ["engines.json", "model.engine.sm_86", "model.onnx"]
    kept = EngineManifest.model_validate_json((site.root / "engines" / "iris" / "manifest.json").read_bytes())
    assert kept == published.manifest and kept.sheet.engines[0].sm == "sm_86"
    assert "onnxruntime on a CPU" in kept.proof
    assert any("No engine was loaded or run" in sentence for sentence in kept.not_shown)
    assert publish_version(site, 1, "first").manifest == kept
    with pytest.raises(Conflict):
        publish_version(site, 1, "other")


def test_engines_can_be_rolled_back_and_taken_away(site: Any) -> None:
    root = site.root / "engines"
    first = publish_version(site, 1, "first")
    publish_version(site, 2, "second")
    assert engine_versions("iris", root) == (1, 2)
    assert rollback_engines("iris", 1, root) == first
    assert EngineManifest.model_validate_json((root / "iris" / "manifest.json").read_bytes()).version == 1
    with pytest.raises(NotFound, match="Kept: 1, 2"):
        rollback_engines("iris", 3, root)
    undeploy_engines("iris", root)
    assert engine_versions("iris", root) == ()
    with pytest.raises(NotFound):
        undeploy_engines("iris", root)


def test_an_engine_that_is_not_the_one_that_was_built_is_not_published(site: Any) -> None:
    folder = engines(site, "first")
    (folder / "model.engine.sm_86").write_bytes(b"another")
    with pytest.raises(ModeliumError, match="not the one that was built"):
        publish_engines("iris", 1, folder, site.root / "engines", parity=parity(), created_at=datetime.now(UTC))
    assert engine_versions("iris", site.root / "engines") == ()
