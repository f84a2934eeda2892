"""The step as the child calls it, and which of several reasons a person is told."""

from __future__ import annotations

import bz2
import pickle
import tracemalloc

from analyzer import analyze, describe
from analyzer.draft import clean, cut_short
from analyzer.verdict import decide
from schemas.descriptor import AnalysisReport, SecurityFinding, Severity
from schemas.errors import NeedsInput, Unsupported
from schemas.step_io import StepContext, StepRequest
from schemas.step_options import AnalyzeOptions


def _finding(severity: Severity, code: str = "pickle-global") -> SecurityFinding:
    return SecurityFinding(code=code, severity=severity, message="This does harm.", subject="acme.Own")


def test_the_step_reports_what_describe_tells(onnx_file):
    request = StepRequest(kind="analyze", inputs={"model": onnx_file.name}, artifact_sha256="a" * 64)
    told: list[str] = []
    context = StepContext(
        request=request,
        workspace=onnx_file.parent,
        options=AnalyzeOptions(),
        progress=lambda fraction, message: told.append(message),
    )

    report = analyze(context).report
    assert isinstance(report, AnalysisReport)
    assert report.descriptor.artifact_sha256 == "a" * 64
    assert report.descriptor.size_bytes == onnx_file.stat().st_size
    assert told[0] == "Telling the format"


def test_danger_comes_before_everything_else():
    reason = decide(Unsupported("No.", hint="Do."), (_finding(Severity.DANGER),))

    assert reason is not None and reason.code == "quarantined"


def test_what_cannot_be_served_comes_before_a_question():
    refusal = Unsupported("No.", hint="Do.")

    assert decide(refusal, (_finding(Severity.UNKNOWN),)) is refusal


def test_an_unknown_name_comes_before_the_question_of_a_reader():
    reason = decide(NeedsInput("Which?", hint="This."), (_finding(Severity.UNKNOWN),))

    assert reason is not None and "acme.Own" in str(reason)


def test_a_cut_zip_is_damage_and_a_cut_file_with_a_dangerous_pickle_is_danger():
    cut = cut_short("zip archive", "its central directory is missing")

    assert decide(cut, (_finding(Severity.DANGER, "zip-mismatch"),)) is cut
    reason = decide(cut, (_finding(Severity.DANGER),))
    assert reason is not None and reason.code == "quarantined"


def test_no_findings_and_no_refusal_is_no_reason_to_stop():
    assert decide(None, (_finding(Severity.INFO),)) is None


def test_a_compressed_pickle_that_unpacks_to_much_costs_little_memory(tmp_path):
    path = tmp_path / "bomb.joblib"
    path.write_bytes(bz2.compress(pickle.dumps(bytes(200 << 20), protocol=4), 9))
    tracemalloc.start()

    describe(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size < 10_000
    assert peak < 64 << 20


def test_any_text_becomes_one_printable_line():
    assert clean("a\x00b\ud800\n c\u202e" + "x" * 500, 20) == "a b? c xxxxxxxxxxxx…"
