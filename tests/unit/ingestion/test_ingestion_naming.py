from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestion.naming import dns_label

LABEL = re.compile(r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")


@pytest.mark.parametrize(
    ("relative", "label"),
    [
        ("digits.pt", "digits"),
        ("teamA/model.onnx", "teama-model"),
        ("model.tar.gz", "model"),
        ("ResNet 50 (v2).pt2", "resnet-50-v2"),
        ("model-v1.5", "model-v1-5"),
        ("crème_brûlée.pkl", "creme-brulee"),
        ("straße.onnx", "strasse"),
    ],
)
def test_a_file_is_named_after_its_path_without_extension(relative: str, label: str) -> None:
    assert dns_label(relative) == label


def test_a_folder_keeps_its_whole_name() -> None:
    assert dns_label("Qwen2.5-0.5B.Instruct", folder=True) == "qwen2-5-0-5b-instruct"


def test_names_in_another_script_stay_apart() -> None:
    first, second = dns_label("模型.onnx"), dns_label("类型.onnx")
    assert first != second
    assert LABEL.match(first) and LABEL.match(second)


def test_long_names_stay_apart() -> None:
    first, second = dns_label("x" * 80 + "a"), dns_label("x" * 80 + "b")
    assert first != second and len(first) <= 63


@given(st.text(min_size=1), st.booleans())
def test_every_path_gives_a_dns_label(relative: str, folder: bool) -> None:
    assert LABEL.match(dns_label(relative, folder=folder))
