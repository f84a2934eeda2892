"""The reference folder: cases of inputs with the original's outputs, as plain files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from converters.arrays import Array, Arrays, load, save
from schemas.errors import InvalidDocument
from schemas.evidence import ReferenceCase, ReferenceReport

CASES_FILE = "cases.json"
SAMPLES = "samples"
"""Id of the case that holds a person's own samples."""
TRACE = "trace"
"""Id of the case at the sizes that exporters trace with."""
REAL = ("sidecar", "sentences")


@dataclass(frozen=True)
class Reference:
    """A reference folder, read only. Arrays are read case by case, as all of them may be large."""

    folder: Path
    report: ReferenceReport

    @classmethod
    def open(cls, folder: Path) -> Reference:
        """Read ``cases.json``. Raises InvalidDocument when it is not there or not valid."""
        try:
            text = (folder / CASES_FILE).read_text(encoding="utf-8")
            return cls(folder, ReferenceReport.model_validate_json(text))
        except (OSError, ValidationError) as error:
            raise InvalidDocument(
                f"The reference folder has no valid {CASES_FILE}.", hint="Run the reference step again."
            ) from error

    def inputs(self, case: ReferenceCase) -> Arrays:
        """Return the case's inputs by name."""
        return load(self.folder / f"{case.id}.inputs.npz")

    def outputs(self, case: ReferenceCase) -> Arrays:
        """Return what the original gave, by name."""
        return load(self.folder / f"{case.id}.outputs.npz")

    def cases(self) -> Iterator[tuple[ReferenceCase, Arrays, Arrays]]:
        """Yield every case with its inputs and outputs."""
        for case in self.report.cases:
            yield case, self.inputs(case), self.outputs(case)

    def labels(self) -> Array | None:
        """Return the right answers of case ``samples``, or None."""
        file = self.folder / f"{SAMPLES}.labels.npz"
        return load(file).get("labels") if self.report.has_labels and file.is_file() else None


def write_case(folder: Path, case: ReferenceCase, inputs: Arrays, outputs: Arrays) -> None:
    """Write one case's two files."""
    save(folder / f"{case.id}.inputs.npz", inputs)
    save(folder / f"{case.id}.outputs.npz", outputs)


def write_report(folder: Path, report: ReferenceReport) -> None:
    """Write ``cases.json``."""
    text = json.dumps(report.model_dump(mode="json"), indent=1, ensure_ascii=False)
    (folder / CASES_FILE).write_text(text + "\n", encoding="utf-8")
