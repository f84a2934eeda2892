"""What is installed is ours, whole, and light; run against the checkout and, by ``make package``, against the wheel."""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PACKAGES = [
    "modelium", "schemas", "ingestion", "analyzer", "planner", "validator", "executor", "converters", "deployer",
]  # fmt: skip
HEAVY = {
    "torch",
    "tensorflow",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "sklearn",
    "transformers",
    "numpy",
    "analyzer",
    "converters",
    "docker",
    "kubernetes",
    "boto3",
    "botocore",
}
packaged = pytest.mark.skipif("MODELIUM_PACKAGED" not in os.environ, reason="only the installed wheel can show it")


@pytest.mark.parametrize("package", PACKAGES)
def test_no_other_distribution_installs_our_package_names(package: str) -> None:
    assert set(packages_distributions().get(package, [])) <= {"modelium"}  # editable installs list nothing


def imported_by(code: str) -> set[str]:
    code = f"import sys\n{code}\nprint(*(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_command_line_imports_no_ml_library() -> None:
    commands = [
        f"import modelium.cli.{m.name}" for m in pkgutil.iter_modules([str(package_folder("modelium") / "cli")])
    ]
    assert imported_by("\n".join(commands)) == set()


def test_the_workers_and_the_supervisor_import_no_ml_library() -> None:
    stages = "import modelium.celery_app, modelium.supervisor, modelium.account, modelium.report, modelium.doctor"
    packages = (
        "import ingestion.folder, ingestion.store, planner.rules, validator.verdict, executor, deployer.entry, "
        "modelium.stages.deploy, executor.find, executor.docker_sandbox"
    )
    assert imported_by(f"{stages}\n{packages}") == set()


def package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


@packaged
@pytest.mark.parametrize("package", PACKAGES)
def test_the_wheel_holds_the_whole_package(package: str) -> None:
    assert "site-packages" in str(package_folder(package))


@packaged
def test_the_wheel_holds_what_is_not_python() -> None:
    modelium, schemas = package_folder("modelium"), package_folder("schemas")
    assert list((modelium / "report" / "templates").glob("*.j2"))
    assert (modelium / "migrations" / "versions" / "0001_create_the_tables.py").exists()
    assert len(list((schemas / "v1").glob("*.schema.json"))) > 10


@packaged
def test_the_wheel_holds_no_tests_and_no_chart() -> None:
    site = package_folder("modelium").parent
    assert not [name for name in ("tests", "helm", "bench", "examples", "docs") if (site / name).exists()]


@packaged
def test_the_control_plane_installs_without_a_toolchain() -> None:
    assert [name for name in ("torch", "onnx", "onnxruntime", "sklearn") if importlib.util.find_spec(name)] == []


def test_help_starts_without_the_database_or_the_schemas() -> None:
    code = "import sys, modelium.cli\nprint(*({'sqlalchemy', 'pydantic', 'celery', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
