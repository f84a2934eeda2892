"""Analyze: tell a model's format by content, scan it, read its headers; nothing in it is unpickled or run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from analyzer.catboost_model import read_catboost
from analyzer.draft import Draft
from analyzer.exported_program import read_exported_program
from analyzer.folder import files_of, recognise_folder
from analyzer.formats import Seen, recognise
from analyzer.gguf import read_gguf
from analyzer.hf_folder import read_huggingface
from analyzer.jax_export import read_jax_export, read_orbax, read_stablehlo
from analyzer.keras_file import read_keras_h5, read_keras_zip
from analyzer.licence import read_licence
from analyzer.lightgbm_model import read_lightgbm
from analyzer.onnx_graph import read_onnx
from analyzer.openvino_ir import read_openvino
from analyzer.pickled_module import which_classes, with_own_classes
from analyzer.refusals import refusal_of
from analyzer.safetensors_header import read_safetensors
from analyzer.saved_model import read_saved_model
from analyzer.sidecar_facts import merge
from analyzer.sklearn_pickle import read_pickled
from analyzer.skops_schema import read_skops
from analyzer.tflite_model import read_tflite
from analyzer.torch_archive import read_torch_zip, read_torchscript
from analyzer.torch_legacy import read_torch_legacy
from analyzer.verdict import archive_dangers, decide
from analyzer.xgboost_model import read_xgboost
from schemas.descriptor import AnalysisReport, Format, SecurityFinding
from schemas.errors import ModeliumError
from schemas.sidecar import Sidecar
from schemas.step_io import StepContext, StepOutcome
from schemas.step_options import AnalyzeOptions

READERS: dict[str, Callable[[Draft, Seen], None]] = {
    "torchscript": read_torchscript,
    "exported-program": read_exported_program,
    "exported-program-old": read_exported_program,
    "torch-zip": read_torch_zip,
    "torch-legacy": read_torch_legacy,
    "onnx": read_onnx,
    "openvino": read_openvino,
    "safetensors": read_safetensors,
    "huggingface": read_huggingface,
    "gguf": read_gguf,
    "pickle": read_pickled,
    "keras-zip": read_keras_zip,
    "keras-h5": read_keras_h5,
    "saved-model": read_saved_model,
    "tflite": read_tflite,
    "jax-export": read_jax_export,
    "stablehlo": read_stablehlo,
    "orbax": read_orbax,
    "skops": read_skops,
    "xgboost": read_xgboost,
    "lightgbm": read_lightgbm,
    "catboost": read_catboost,
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
    draft = Draft(path, Format.UNKNOWN, 0, sha256)
    if sidecar is not None:
        draft.has_module = sidecar.module is not None
        draft.told_inputs = frozenset(said.name for said in sidecar.inputs)
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
    if draft.format is Format.TORCH_MODULE:
        findings = with_own_classes(findings, sidecar, code)
        question = which_classes(findings)
        if question is not None:
            draft.refuse(question)
    # What unpack makes of an archive is analysed again, as what it then is; until then only danger counts.
    judged = archive_dangers(findings) if draft.format is Format.ARCHIVE and draft.refusal is None else findings
    refusal = decide(draft.refusal, judged)
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
