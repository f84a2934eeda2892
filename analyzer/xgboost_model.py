"""Read an XGBoost model (.json, .ubj): objective, features, trees; nothing of it is given to XGBoost."""

from __future__ import annotations

import json
from typing import Any

from analyzer.draft import Draft, clean, listing
from analyzer.formats import Seen
from analyzer.ubjson import NumberArray, read_ubjson
from schemas.descriptor import KnownBy, TensorSpec
from schemas.errors import LimitExceeded, ModelFailed

MAX_JSON_BYTES = 1 << 29
_HINT = "Save it again with `booster.save_model('model.json')`."
MAX_FEATURES = 10_000_000


def read_xgboost(draft: Draft, seen: Seen) -> None:
    """Fill ``draft`` from an XGBoost model. Raises ModelFailed for one that contradicts itself."""
    with draft.file.open("rb") as handle:
        binary = handle.read(2)[1:] in (b"L", b"l", b"i", b"I", b"U", b"#", b"$")
        handle.seek(0)
        if binary:
            root: Any = read_ubjson(handle, draft.size_bytes)
        else:
            if draft.size_bytes > MAX_JSON_BYTES:
                raise LimitExceeded(
                    f"This XGBoost model takes {draft.size_bytes >> 20} MiB as JSON; at most {MAX_JSON_BYTES >> 20} "
                    "MiB are read.",
                    hint="Save it as UBJSON: `booster.save_model('model.ubj')`.",
                )
            root = _json(handle.read())
    learner = _part(root, "learner")
    booster = _part(learner, "gradient_booster")
    shape = _part(learner, "learner_model_param")
    objective = _part(learner, "objective").get("name")
    kind = booster.get("name")
    if not isinstance(kind, str) or not isinstance(objective, str):
        raise ModelFailed("This XGBoost model names no booster or no objective.", hint=_HINT)
    width = _number(shape.get("num_feature"))
    if not 0 < width <= MAX_FEATURES:
        raise ModelFailed(f"This XGBoost model says that it takes {width} features.", hint=_HINT)
    held = _part(booster, "gbtree") if kind == "dart" else booster
    trees = _trees(held) if kind in ("gbtree", "dart") else 0
    version = root.get("version")
    numbers = version.first if isinstance(version, NumberArray) else version if isinstance(version, list) else ()
    draft.know(
        framework="xgboost",
        framework_version=".".join(str(n) for n in list(numbers)[:3]),
        architecture=f"{kind} of {trees} trees" if trees else kind,
        task=task_of(objective),
        toolchain="boosting",
    )
    draft.operators({"Tree": trees} if trees else {"Linear": 1})
    base = shape.get("base_score")
    draft.note(f"Its objective is {clean(objective, 60)}, its base score {clean(str(base), 60)}.")
    classes = _number(shape.get("num_class"))
    if classes:
        draft.note(f"It tells {classes} classes apart, numbered from 0.")
    names = learner.get("feature_names")
    named = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    draft.note(f"It takes {width} features" + (f": {listing(named, most=20)}." if named else "."))
    draft.know(KnownBy.GUESS, inputs=(table_input(width),))


def table_input(width: int) -> TensorSpec:
    """Return the one input of a boosted model."""
    return TensorSpec(name="X", dtype="float32", shape=("batch", width), known_by=KnownBy.GUESS)


def task_of(objective: str) -> str:
    """Return the task's name for an objective of XGBoost or LightGBM."""
    if objective.startswith(("rank", "lambdarank")):
        return "tabular-ranking"
    if objective.startswith(("binary", "multi")) and objective not in ("binary:logitraw", "binary:hinge"):
        return "tabular-classification"
    return "tabular-regression"


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except RecursionError:
        raise ModelFailed("This JSON is nested deeper than any XGBoost model.", hint=_HINT) from None
    except ValueError as error:
        raise ModelFailed(
            f"This XGBoost model is no complete JSON ({clean(str(error), 120)}); it was probably cut off or edited.",
            hint="Copy it again and compare the size with the source's.",
        ) from error


def _part(value: Any, name: str) -> dict[str, Any]:
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, dict):
        raise ModelFailed(f"This XGBoost model has no part {name!r}.", hint=_HINT)
    return found


def _number(value: Any) -> int:
    try:
        return int(value if value is not None else 0)
    except (TypeError, ValueError, OverflowError):
        return -1


def _trees(booster: dict[str, Any]) -> int:
    model = _part(booster, "model")
    trees = model.get("trees")
    said = _number(_part(model, "gbtree_model_param").get("num_trees"))
    if not isinstance(trees, list) or len(trees) != said:
        held = len(trees) if isinstance(trees, list) else 0
        raise ModelFailed(f"This XGBoost model says that it has {said} trees and holds {held}.", hint=_HINT)
    return said
