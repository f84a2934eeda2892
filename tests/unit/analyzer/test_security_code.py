"""User code, Python in folders, and paths in ONNX files: told from text and bytes, never run."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analyzer.onnx_locations import locations
from analyzer.security import scan
from analyzer.user_code import findings_of
from schemas.descriptor import SecurityFinding, Severity
from schemas.sidecar import ModuleSource, Sidecar

D, U = Severity.DANGER, Severity.UNKNOWN


def worst(found: list[SecurityFinding] | tuple[SecurityFinding, ...]) -> Severity | None:
    order = [Severity.INFO, U, D]
    return max((f.severity for f in found), key=order.index, default=None)


HARMLESS = """
from __future__ import annotations
import math, os
from dataclasses import dataclass
import torch
import torch.nn as nn
import torch.nn.functional as F
from typing import Optional
from .other import helper

class Net(nn.Module):
    def __init__(self, width: int = 8, act: str = "relu"):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width)])
        self.act = getattr(F, act)
        self.path = os.path.join("a", os.environ.get("B", "c"))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        vars = {}
        for layer in self.layers:
            input = self.act(layer(input))
        self.eval()
        return torch.compile(input)
"""


def test_the_code_of_a_usual_model_is_information_only() -> None:
    found = findings_of(HARMLESS.encode(), "model.py")
    assert worst(found) is Severity.INFO
    assert {f.subject for f in found} >= {"torch", "math", "os"}
    assert all(f.where.startswith("model.py line ") for f in found)


@pytest.mark.parametrize(
    "source",
    [
        "import subprocess",
        "import socket",
        "from ctypes import CDLL",
        "import urllib.request",
        "import requests",
        "import os\nos.system('x')",
        "import os as o\no.popen('x')",
        "from os import system\nsystem('x')",
        "from os import system as f\ng = f\ng('x')",
        "import os\nx = os\nx.system('x')",
        "from os import *\nsystem('x')",
        "import os\ngetattr(os, 'sys' + 'tem')('x')",
        "import os\ngetattr(os, 'system')('x')",
        "eval('1')",
        "exec('1')",
        "e = eval\ne('1')",
        "compile('1', '', 'eval')",
        "__import__('os')",
        "__builtins__['eval']('1')",
        "import builtins\nbuiltins.exec('1')",
        "().__class__.__bases__[0].__subclasses__()",
        "(lambda: 0).__globals__",
        "import importlib\nimportlib.import_module('os')",
        "from importlib import import_module",
        "import pickle\npickle.loads(b'')",
        "import marshal",
        "import torch\ntorch.hub.load('a', 'b')",
        "import torch\ntorch.ops.load_library('x.so')",
        "from torch.utils.cpp_extension import load",
        "import sys\nsys._getframe()",
        "import shutil\nshutil.rmtree('/')",
        "import os\nos.remove('x')",
        "import asyncio\nasyncio.create_subprocess_shell('x')",
        "import multiprocessing",
        "getattr(object, '__subclasses__')()",
        "def f():\n    import subprocess",
        "try:\n    import pty\nexcept ImportError: pass",
        "if 0:\n    exec('x')",
        "import os.path as p\np.os.system('x')",
        "import types\ntypes.FunctionType(None, {})",
    ],
)
def test_code_that_reaches_processes_network_or_code_is_danger(source: str) -> None:
    assert worst(findings_of(source.encode(), "model.py")) is D, source


@pytest.mark.parametrize(
    "source",
    [
        "open('x').read()",
        "import torch\ntorch.load('x')",
        "import numpy as np\nnp.load('x')",
        "import tempfile\ntempfile.mkdtemp()",
        "import sys\nsys.modules['x']",
        "globals()",
        "import os\nos.listdir('.')",
    ],
)
def test_code_that_reaches_files_is_unknown_and_can_be_allowed(source: str) -> None:
    found = [f for f in findings_of(source.encode(), "model.py") if f.severity is U]
    assert found
    lifted = findings_of(source.encode(), "model.py", allowed=frozenset(f.subject for f in found))
    assert worst(lifted) in (None, Severity.INFO)


@pytest.mark.parametrize(
    "source", [b"def f(:", b"print 'x'", b"\0", b"(" * 100_000, b"x = " + b"-" * 200_000 + b"1", b"\xff\xfe"]
)
def test_code_that_cannot_be_read_is_unknown(source: bytes) -> None:
    assert worst(findings_of(source, "model.py")) is U


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200))
def test_any_text_as_code_ends_in_findings(source: str) -> None:
    findings_of(source.encode("utf-8", "surrogatepass"), "model.py")


def model_and_code(tmp_path: Path, source: str) -> tuple[SecurityFinding, ...]:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "model.py").write_text(source)
    (tmp_path / "model.pth").write_bytes(b"\x80\x02}.")
    sidecar = Sidecar(module=ModuleSource(file="model.py", class_name="Net"))
    return scan(tmp_path / "model.pth", sidecar=sidecar, code=tmp_path / "code")


def test_the_sidecars_code_is_scanned(tmp_path: Path) -> None:
    assert worst(model_and_code(tmp_path, HARMLESS)) is Severity.INFO


def test_hostile_code_of_a_sidecar_is_danger(tmp_path: Path) -> None:
    assert worst(model_and_code(tmp_path, "import os\nos.system('id')\n")) is D


def folder_with(tmp_path: Path, files: dict[str, str | bytes]) -> Path:
    folder = tmp_path / "folder"
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_a_folder_with_auto_map_needs_a_person_and_python_that_is_not_run_is_told(tmp_path: Path) -> None:
    config = {"model_type": "x", "auto_map": {"AutoModel": "modeling_x.Net"}}
    found = scan(folder_with(tmp_path, {"config.json": json.dumps(config), "modeling_x.py": HARMLESS}))
    assert {f.code for f in found if f.severity is U} == {"hf-auto-map"}
    assert "python-in-folder" in {f.code for f in found if f.severity is Severity.INFO}
    assert worst(found) is U


def test_hostile_python_in_a_folder_is_danger(tmp_path: Path) -> None:
    found = scan(folder_with(tmp_path, {"deep/modeling_x.py": "import subprocess\nsubprocess.run('id')\n"}))
    assert worst(found) is D


def test_a_folder_whose_sidecar_names_the_code_is_judged_as_the_users_own(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"weights.pth": b"\x80\x02}.", "model.py": HARMLESS})
    sidecar = Sidecar(module=ModuleSource(file="model.py", class_name="Net"))
    assert worst(scan(folder, sidecar=sidecar)) is Severity.INFO
    assert "python-in-folder" in {f.code for f in scan(folder)}


def test_an_ordinary_folder_is_clean(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "config.json": '{"model_type": "bert"}',
        "vocab.txt": "[PAD]\ncat\n",
        "merges.txt": "a b\n",
        "README.md": "# os.system",
        "tokenizer_config.json": json.dumps({"chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"}),
        "model.safetensors": struct.pack("<Q", 2) + b"{}",
    }
    assert scan(folder_with(tmp_path, files)) == ()


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja", "chat_template.json"])
def test_a_template_that_leaves_its_sandbox_is_danger(tmp_path: Path, name: str) -> None:
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    text = template if name.endswith("jinja") else json.dumps({"chat_template": template}).replace("_c", "\\u005fc")
    assert [f.code for f in scan(folder_with(tmp_path, {name: text}))] == ["template-escape"]


def test_a_keras_lambda_layer_is_danger(tmp_path: Path) -> None:
    config = {"config": {"layers": [{"class_name": "Lambda", "config": {"function": ["4wEAAAA", None, None]}}]}}
    assert worst(scan(folder_with(tmp_path, {"config.json": json.dumps(config)}))) is D
    h5 = tmp_path / "m.h5"
    h5.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * ((1 << 20) - 30) + json.dumps(config).encode())
    assert worst(scan(h5)) is D


def test_compiled_code_in_a_folder_is_unknown(tmp_path: Path) -> None:
    found = scan(folder_with(tmp_path, {"ops.so": b"\x7fELF" + b"\0" * 60, "data.bin": b"\x7fELF" + b"\0" * 60}))
    assert {f.subject for f in found if f.severity is U} == {"ops.so", "data.bin"}


# ONNX, written as wire format here


def field(number: int, payload: bytes) -> bytes:
    size, out = len(payload), bytearray()
    while not out or size:
        out.append((size & 0x7F) | (0x80 if size > 0x7F else 0))
        size >>= 7
    return _tag(number) + bytes(out) + payload


def _tag(number: int) -> bytes:
    tag = number << 3 | 2
    return bytes([tag]) if tag < 0x80 else bytes([(tag & 0x7F) | 0x80, tag >> 7])


def tensor(location: str) -> bytes:
    return field(13, field(1, b"location") + field(2, location.encode())) + b"\x70\x01"


def onnx_file(tmp_path: Path, location: str, where: str = "initializer") -> Path:
    weights = tensor(location)
    subgraph = field(5, weights)
    graph = {
        "initializer": field(7, field(5, weights)),
        "attribute tensor": field(7, field(1, field(5, field(5, weights)))),
        "subgraph": field(7, field(1, field(5, field(6, subgraph)))),
        "subgraphs": field(7, field(1, field(5, field(11, subgraph)))),
        "sparse": field(7, field(15, field(1, weights))),
        "function": field(7, b"") + field(25, field(7, field(5, field(5, weights)))),
        "training": field(7, b"") + field(20, field(1, subgraph)),
    }[where]
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x08" + graph)
    return path


WHERES = ["initializer", "attribute tensor", "subgraph", "subgraphs", "sparse", "function", "training"]


@pytest.mark.parametrize("where", WHERES)
@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "a/../../b", "C:\\x", "a\\b", "http://host/x", "", "a\nb"]
)
def test_external_data_outside_the_folder_is_danger(tmp_path: Path, location: str, where: str) -> None:
    found = scan(onnx_file(tmp_path, location, where))
    assert [f.code for f in found] == ["onnx-external-path"]
    assert worst(found) is D


@pytest.mark.parametrize("where", WHERES)
def test_external_data_beside_the_model_is_clean(tmp_path: Path, where: str) -> None:
    path = onnx_file(tmp_path, "weights/model.bin", where)
    assert locations(path) == ("weights/model.bin",)
    assert scan(path) == ()


def test_external_data_behind_a_link_is_danger(tmp_path: Path) -> None:
    path = onnx_file(tmp_path, "weights/model.bin")
    (tmp_path / "weights").symlink_to("/etc")
    assert [f.code for f in scan(path)] == ["onnx-external-path"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_as_onnx_end_in_an_answer(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"\x08\x08\x3a" + data)
    locations(path)
