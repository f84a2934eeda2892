"""The zoo's bookkeeping: what counts as what, what is kept between runs, and the page."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ZOO = Path(__file__).parents[2] / "bench/zoo"
sys.path.append(str(ZOO))

import onnx_models  # noqa: E402
import page  # noqa: E402
from result import Result, ResultFile, cause_of, outcome_of  # noqa: E402


def _result(name: str, outcome: str, message: str = "", *, sha256: str = "a", version: str = "1") -> Result:
    code = "" if outcome == "proven" else "unsupported"
    return Result("onnx", name, sha256, version, "steps", outcome, code=code, message=message, hint="Do this.")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "message", "traceback", "outcome"),
    [
        ("unsupported", "Operator Foo is unknown.", False, "refused"),
        ("needs_input", "What shape does input 'x' take?", False, "refused"),
        ("internal", "Modelium itself failed in this step: KeyError: 'x'", False, "unnamed"),
        ("sandbox_crashed", "The interpreter died.", False, "unnamed"),
        ("conversion_failed", "It broke.", True, "unnamed"),
        ("conversion_failed", "", False, "unnamed"),
        ("", "It ended.", False, "unnamed"),
    ],
)
def test_a_failure_without_a_named_cause_is_counted_on_its_own(
    code: str, message: str, traceback: bool, outcome: str
) -> None:
    assert outcome_of(code, message, traceback=traceback) == outcome


def test_equal_causes_count_together_whatever_the_names_and_numbers_in_them() -> None:
    one = cause_of("The input 'x' has an axis of size 0; shapes [1, 2] and opset 23. More follows.")
    other = cause_of("The input 'mask' has an axis of size 12; shapes [3] and opset 24. Nothing follows.")
    assert one == other == "The input … has an axis of size N; shapes […] and opset N"


def test_a_result_is_kept_for_the_same_bytes_and_sources_only(tmp_path: Path) -> None:
    kept = ResultFile(tmp_path / "results.jsonl")
    kept.keep(_result("abs", "refused", "First."))
    kept.keep(_result("abs", "proven"))
    again = ResultFile(tmp_path / "results.jsonl")
    found = again.find("onnx", "abs", "a", "1")
    assert found is not None and found.outcome == "proven", "the last result of a model counts"
    assert again.find("onnx", "abs", "other bytes", "1") is None
    assert again.find("onnx", "abs", "a", "2") is None
    assert again.find("onnx", "abs", "a", None) is not None
    assert again.find("onnx", "add", "a", "1") is None


def test_a_test_s_values_are_written_as_a_person_gives_them() -> None:
    import ml_dtypes

    small = np.array([0.5, 448], ml_dtypes.float8_e4m3fn)
    given = onnx_models.served(small)
    assert given is not None and (given.dtype, given.tolist()) == (np.float16, [0.5, 448.0])
    together = onnx_models.served([np.ones(3, np.float32), np.zeros(3, np.float32)])
    assert together is not None and together.tolist() == [[1, 1, 1], [0, 0, 0]]
    for other in ([np.ones(3), np.ones(2)], [], None, np.array([1], ml_dtypes.int4)):
        assert onnx_models.served(other) is None


def test_the_page_counts_by_family_and_names_causes_and_peers(tmp_path: Path) -> None:
    results = [
        _result("abs", "proven"),
        _result("sequence", "refused", "The input 'a' of this ONNX file is a sequence."),
        _result("list", "refused", "The input 'b' of this ONNX file is a sequence. Triton serves tensors."),
        _result("broken", "unnamed", "It | broke."),
        _result("training", "original", "onnxruntime does not load it"),
    ]
    said = {"onnx/abs": {"olive": {"ok": True, "cause": ""}}, "onnx/list": {"olive": {"ok": False, "cause": "refuses"}}}
    (tmp_path / "coverage-peers.json").write_text(json.dumps(said))
    page.write(tmp_path, results, {"boosting": "the toolchain boosting is not installed"})
    text = (tmp_path / "coverage.md").read_text()
    assert "| ONNX backend tests | 5 | 4 | 1 | **25.0%** | 3 | **33.3%** | 2 | 1 | 0 |" in text
    assert "| 2 | The input … of this ONNX file is a sequence | list | Do this. |" in text
    assert "without a named cause, or with a traceback: It \\| broke |" in text
    assert "the toolchain boosting is not installed" in text
    assert "| Modelium | 1 of 2 | |" in text and "| olive | 1 of 2 | refuses (1) |" in text
    rows = json.loads((tmp_path / "coverage.json").read_text())
    assert [row["peers"] for row in rows if row["name"] == "abs"] == [{"olive": True}]


def test_a_part_of_the_zoo_leaves_the_rest_on_the_page(tmp_path: Path) -> None:
    page.write(
        tmp_path, [_result("abs", "proven"), _result("gone", "refused", "A cause."), _result("add", "refused")], {}
    )
    first = (tmp_path / "coverage.md").read_text()
    page.write(tmp_path, [], {})
    assert (tmp_path / "coverage.md").read_text() == first
    page.write(tmp_path, [_result("add", "proven")], {})
    assert "| ONNX backend tests | 3 | 3 | 2 |" in (tmp_path / "coverage.md").read_text()
    page.write(tmp_path, [_result("abs", "proven"), _result("add", "proven")], {}, {"onnx"})
    assert "| ONNX backend tests | 2 | 2 | 2 |" in (tmp_path / "coverage.md").read_text()
