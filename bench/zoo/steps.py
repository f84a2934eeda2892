"""The step functions of the pipeline in one process: no sandbox, no measuring, nothing published.

For the hundreds of models of a single operator, whose sandboxes would take longer than they. Reads one JSON document a
line, ``{"path": ..., "root": ..., "keep": ..., "sidecar": ...}``, writes one line of what became of it; the reference
is copied to ``keep``. Only for models that we made ourselves.

usage: steps.py TOOLCHAIN...    those that this interpreter has
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

from schemas.catalog import CATALOG, parse_options  # noqa: E402
from schemas.descriptor import ModelDescriptor  # noqa: E402
from schemas.errors import ModeliumError, SizesFrozen  # noqa: E402
from schemas.evidence import ParityReport  # noqa: E402
from schemas.plan import Candidate, ConversionPlan, FindingLevel  # noqa: E402
from schemas.sidecar import Sidecar  # noqa: E402
from schemas.step_io import StepContext, StepOutcome, StepRequest  # noqa: E402
from schemas.target import TargetProfile  # noqa: E402


class Story:
    """One model's way through the steps, each in a folder of its own."""

    def __init__(self, model: Path, sidecar: dict[str, Any] | None, scratch: Path) -> None:
        self.model, self.scratch, self.count = model, scratch, 0
        self.descriptor: ModelDescriptor | None = None
        self.sidecar = Sidecar.model_validate(sidecar) if sidecar is not None else None
        self.reference: Path | None = None
        self.hint, self.frozen = "", False

    def step(self, kind: str, options: dict[str, Any], **inputs: Path) -> tuple[StepOutcome, Path]:
        """Run one catalogued step; return what it gives and the folder that its outputs are in."""
        self.count += 1
        workspace = self.scratch / f"{self.count}-{kind}"
        (workspace / "out").mkdir(parents=True)
        code = self.model if self.model.is_dir() else self.model.parent
        given = {**inputs, **({"code": code} if self.sidecar is not None else {})}
        request = StepRequest(
            kind=kind,
            options=options,
            inputs={name: str(path) for name, path in given.items()},
            descriptor=self.descriptor,
            sidecar=self.sidecar,
            target=TargetProfile(),
        )
        context = StepContext(request, workspace, parse_options(kind, options))
        module, _, name = CATALOG[kind].function.partition(":")
        outcome: StepOutcome = getattr(importlib.import_module(module), name)(context)
        return outcome, context.out

    def tell(self) -> dict[str, Any]:
        """Return what became of the model: ``proven`` with the candidates, or an error's code, message and hint."""
        from planner import rules
        from planner.fixed_sizes import fixed_sizes
        from validator import MachineBounds, check

        report: Any = self.step("analyze", {}, model=self.model)[0].report
        if report.refusal is not None:
            return dict(report.refusal.model_dump())
        self.descriptor = report.descriptor
        probed: Any = self.step("probe", {}, model=self.model)[0].report
        self.descriptor = probed.descriptor
        plan = rules.plan(probed.descriptor, TargetProfile(), frozenset(sys.argv[1:]))
        room = MachineBounds(memory_bytes=1 << 40, disk_bytes=1 << 40, cpus=2)
        found = check(plan, descriptor=probed.descriptor, target=TargetProfile(), machine=room)
        errors = [finding.message for finding in found if finding.level is FindingLevel.ERROR]
        if errors:
            return {"code": "conversion_failed", "message": f"No plan can be carried out: {errors[0]}", "hint": ""}
        proven, reasons = self._candidates(plan)
        first = reasons
        for choices in fixed_sizes(probed.descriptor):
            if proven or not self.frozen:
                break
            for self.descriptor in choices:
                with contextlib.suppress(ModeliumError):
                    proven, reasons = self._candidates(plan)
                    break
        if not proven:
            message = f"No candidate could be proven; {first[0] if first else 'none was planned'}"
            return {"code": "conversion_failed", "message": message, "hint": self.hint}
        return {"proven": proven, "dropped": reasons, "fixed": self.descriptor.notes[len(probed.descriptor.notes) :]}

    def _candidates(self, plan: ConversionPlan) -> tuple[list[str], list[str]]:
        """Return the candidates that are proven, and why the others are dropped."""
        outcome, out = self.step("reference", {}, model=self.model)
        reference = self.reference = out / outcome.outputs["reference"]
        self.frozen = False
        proven, reasons = [], []
        for candidate in plan.candidates:
            why = self._prove(candidate, reference)
            proven += [] if why else [candidate.id]
            reasons += [f"{candidate.id}: {why}"] if why else []
        return proven, reasons

    def _prove(self, candidate: Candidate, reference: Path) -> str:
        """Return why a candidate is dropped, '' when it is proven."""
        from deployer.entry import entry_spec

        assert self.descriptor is not None
        model, original = self.model, not candidate.steps
        for step in candidate.steps:
            for attempt in (step, *step.fallbacks):
                try:
                    outcome, out = self.step(attempt.kind, attempt.options, model=model, reference=reference)
                except ModeliumError as error:
                    why = f"{attempt.kind}: {error.args[0]}"
                    self.frozen |= isinstance(error, SizesFrozen)
                    self.hint = self.hint or error.hint
                    continue
                model, why = out / outcome.outputs["model"], ""
                break
            if why:
                return why
        options = {"precision": candidate.precision.value, "format": candidate.format.value, "original": original}
        report = self.step("parity", options, model=model, reference=reference)[0].report
        assert isinstance(report, ParityReport)
        if not report.passed:
            return report.reason
        try:
            entry_spec("zoo", 1, report, self.descriptor, TargetProfile(), format=candidate.format)
        except ModeliumError as error:
            self.hint = self.hint or error.hint
            return f"It cannot be served: {error.args[0]}"
        return ""


def _told(model: Path, root: Path, keep: str, sidecar: dict[str, Any] | None) -> dict[str, Any]:
    from agreement import disagreement

    with tempfile.TemporaryDirectory(prefix="zoo-") as scratch:
        story = Story(model, sidecar, Path(scratch))
        try:
            told = story.tell()
            if "proven" in told and story.reference is not None:
                told["disagreement"] = disagreement(root, model, story.reference)
        except ModeliumError as error:
            told = dict(error.document().model_dump())
        except Exception as error:  # noqa: BLE001 - a fault of ours is what is counted here
            told = {"code": "internal", "message": f"{type(error).__name__}: {error}", "hint": ""}
            told["traceback"] = traceback.format_exc()[-2000:]
        if keep and story.reference is not None:
            shutil.copytree(story.reference, keep, dirs_exist_ok=True)
            told |= {"reference": keep, "path": str(model)}
    return told


def main() -> None:
    """Answer lines until there are none."""
    warnings.simplefilter("ignore")
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is no answer
    for line in sys.stdin:
        asked = json.loads(line)
        print(
            json.dumps(_told(Path(asked["path"]), Path(asked["root"]), asked["keep"], asked.get("sidecar"))),
            file=answers,
            flush=True,
        )


if __name__ == "__main__":
    main()
