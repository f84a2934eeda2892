"""Analyze: tell a model's format by content, scan it, read its headers; nothing in it is unpickled or run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from analyzer.draft import Draft
from analyzer.exported_program import read_exported_program
from analyzer.folder import files_of, recognise_folder
from analyzer.formats import Seen, recognise
from analyzer.hf_folder import read_huggingface
from analyzer.licence import read_licence
from analyzer.onnx_graph import read_onnx
from analyzer.refusals import refusal_of
from analyzer.safetensors_header import read_safetensors
from analyzer.sidecar_facts import merge
from analyzer.sklearn_pickle import read_pickled
from analyzer.torch_archive import read_torch_zip, read_torchscript
from analyzer.torch_legacy import read_torch_legacy
from analyzer.verdict import decide
from schemas.catalog import AnalyzeOptions
from schemas.descriptor import AnalysisReport, Format, SecurityFinding
from schemas.errors import ModeliumError
from schemas.sidecar import Sidecar
from schemas.step_io import StepContext, StepOutcome

READERS: dict[str, Callable[[Draft, Seen], None]] = {
    "torchscript": read_torchscript,
    "exported-program": read_exported_program,
    "exported-program-old": read_exported_program,
    "torch-zip": read_torch_zip,
    "torch-legacy": read_torch_legacy,
    "onnx": read_onnx,
    "safetensors": read_safetensors,
    "huggingface": read_huggingface,
    "pickle": read_pickled,
}
"""The reader of each kind of file or folder that has one."""


def analyze(context: StepContext) -> StepOutcome:
    """Describe the input ``model`` (a file or folder); takes ``code``, the sidecar's companions, where there is one.

    What is wrong with the model is the report's ``refusal``, not an exception; the descriptor then holds what could
    be told all the same.
    """
    options = context.options if isinstance(context.options, AnalyzeOptions) else AnalyzeOptions()
    code = context.input("code") if context.has("code") else None
    context.progress(0.0, "Telling the format")
    report = describe(
        context.input("model"),
        sha256=context.request.artifact_sha256,
        sidecar=context.request.sidecar,
        code=code,
        allowed_globals=options.allowed_globals,
        progress=context.progress,
    )
    return StepOutcome(report=report)


def describe(
    path: Path,
    *,
    sha256: str = "",
    sidecar: Sidecar | None = None,
    code: Path | None = None,
    allowed_globals: tuple[str, ...] = (),
    progress: Callable[[float, str], None] = lambda fraction, message: None,
) -> AnalysisReport:
    """Return the report on the file or folder at ``path``: recognise, scan, read headers, judge, in this order."""
    draft = Draft(path, Format.UNKNOWN, 0, sha256, has_module=sidecar is not None and sidecar.module is not None)
    seen: Seen | None = None
    try:
        draft.size_bytes = sum(f.stat().st_size for _, f in files_of(path)) if path.is_dir() else path.stat().st_size
        seen, entry = recognise_folder(path) if path.is_dir() else (recognise(path), None)
        draft.format = seen.format
        draft.know(entry=entry)
    except ModeliumError as error:
        draft.refuse(error)
    progress(0.2, "Scanning for danger")
    findings, scan_error = _scan(path, allowed_globals, sidecar, code)
    if seen is not None:
        progress(0.6, "Reading headers")
        _read(draft, seen)
    if path.is_dir() and "license" not in draft.facts:
        read_licence(draft, path)
    try:
        merge(draft, sidecar)
    except ModeliumError as error:
        draft.refuse(error)
    if scan_error is not None:
        draft.refuse(scan_error)
    refusal = decide(draft.refusal, findings)
    progress(1.0, f"{draft.format.value}, {len(findings)} findings")
    return AnalysisReport(
        descriptor=draft.descriptor(findings), refusal=refusal.document() if refusal is not None else None
    )


def _read(draft: Draft, seen: Seen) -> None:
    reader = READERS.get(seen.kind)
    refusal = refusal_of(seen)
    try:
        if refusal is not None:
            draft.refuse(refusal)
        elif reader is not None:
            reader(draft, seen)
    except ModeliumError as error:
        draft.refuse(error)


def _scan(
    path: Path, allowed_globals: tuple[str, ...], sidecar: Sidecar | None, code: Path | None
) -> tuple[tuple[SecurityFinding, ...], ModeliumError | None]:
    from analyzer.security import scan

    try:
        return scan(path, allowed_globals=allowed_globals, sidecar=sidecar, code=code), None
    except ModeliumError as error:
        return (), error
