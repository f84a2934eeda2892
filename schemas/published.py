"""The published JSON Schemas (2020-12) of every document, and validation against them.

``python -P -m schemas.published`` writes ``schemas/v1/<name>.schema.json``; a test keeps the files in step.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from schemas.account import JobAccount
from schemas.artifact import Artifact
from schemas.deployment import Deployment
from schemas.descriptor import AnalysisReport, ModelDescriptor
from schemas.document import SCHEMA_VERSION, Document
from schemas.errors import ErrorDocument, InvalidDocument
from schemas.event import Event
from schemas.evidence import MeasureReport, ParityReport, ReferenceReport, Verdict
from schemas.job import Job
from schemas.plan import ConversionPlan, Step
from schemas.sidecar import Sidecar
from schemas.step_io import StepRequest, StepResult
from schemas.step_run import StepRun
from schemas.target import TargetProfile

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError as SchemaError

PUBLISHED: dict[str, type[Document]] = {
    "account": JobAccount,
    "analysis": AnalysisReport,
    "artifact": Artifact,
    "deployment": Deployment,
    "descriptor": ModelDescriptor,
    "error": ErrorDocument,
    "event": Event,
    "job": Job,
    "measure": MeasureReport,
    "parity": ParityReport,
    "plan": ConversionPlan,
    "reference": ReferenceReport,
    "sidecar": Sidecar,
    "step": Step,
    "step-request": StepRequest,
    "step-result": StepResult,
    "step-run": StepRun,
    "target": TargetProfile,
    "verdict": Verdict,
}
FOLDER = Path(__file__).parent / f"v{SCHEMA_VERSION}"
D = TypeVar("D", bound=Document)


def json_schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema of a published document, as JSON arrays are written: tuples are arrays."""
    schema = PUBLISHED[name].model_json_schema(mode="validation")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:modelium:schema:v{SCHEMA_VERSION}:{name}",
        **schema,
    }


@cache
def _validator(model: type[Document]) -> Draft202012Validator:
    from jsonschema import Draft202012Validator  # 0.1 s, which what only starts a sandbox does not have to wait for

    return Draft202012Validator(model.model_json_schema(mode="validation"))


def validate(model: type[D], data: object, *, what: str) -> D:
    """Return ``data``, as read from JSON or YAML, as a document.

    Args:
        what: How a person calls the document, for the message.

    Raises:
        InvalidDocument: Names the JSON pointer of the worst offence.
    """
    from jsonschema.exceptions import best_match

    offence = best_match(_validator(model).iter_errors(data))
    if offence is not None:
        raise _invalid(what, "/" + "/".join(str(part) for part in offence.absolute_path), _sentence(offence))
    try:
        return model.model_validate(data)
    except ValidationError as error:  # what JSON Schema cannot say
        first = error.errors()[0]
        raise _invalid(what, "/" + "/".join(str(part) for part in first["loc"]), _plain(first["msg"])) from None


def _sentence(offence: SchemaError) -> str:
    if offence.validator == "additionalProperties" and isinstance(offence.instance, dict):
        known = sorted(offence.schema.get("properties", {}) if isinstance(offence.schema, dict) else {})
        unknown = sorted(set(offence.instance) - set(known))
        return f"unknown {', '.join(map(repr, unknown))[:200]}; it may have: {', '.join(known)}"
    return str(offence.message)[:500]


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ").rstrip(".")


def _invalid(what: str, pointer: str, fact: str) -> InvalidDocument:
    place = "" if pointer == "/" else f" at {pointer}"
    return InvalidDocument(
        f"{what} is not valid{place}: {fact}.", hint="The schemas stand in schemas/v1.", pointer=pointer[:300]
    )


def write(folder: Path = FOLDER) -> None:
    """Write every schema's file."""
    folder.mkdir(exist_ok=True)
    for name in PUBLISHED:
        (folder / f"{name}.schema.json").write_text(json.dumps(json_schema(name), indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    write()
