"""Read the head of a LightGBM text model: objective, features, trees."""

from __future__ import annotations

from analyzer.draft import Draft, clean, cut_short, listing
from analyzer.formats import Seen
from analyzer.xgboost_model import MAX_FEATURES, table_input, task_of
from schemas.descriptor import KnownBy
from schemas.errors import ModelFailed

_MAX_HEAD_BYTES = 64 << 20
_HINT = "Save it again with `booster.save_model('model.txt')`."


def read_lightgbm(draft: Draft, seen: Seen) -> None:
    """Fill ``draft`` from the ``key=value`` lines before the first tree. Raises ModelFailed without them."""
    facts: dict[str, str] = {}
    linear = False
    with draft.file.open("rb") as handle:
        head = handle.read(_MAX_HEAD_BYTES)
        for line in head.partition(b"\nTree=")[0].split(b"\n")[:200]:
            key, found, value = line.partition(b"=")
            if found:
                facts.setdefault(key.decode("utf-8", "replace")[:64], value.decode("utf-8", "replace"))
        handle.seek(max(0, draft.size_bytes - 65_536))
        tail = handle.read()
        linear = b"is_linear=1" in head
    last = facts.get("max_feature_idx", "")
    if not last.isdigit() or len(last) > 9 or not 0 < int(last) + 1 <= MAX_FEATURES:
        raise ModelFailed("This LightGBM model does not say how many features it takes.", hint=_HINT)
    if b"end of trees" not in tail and b"end of trees" not in head:
        raise cut_short("LightGBM model", "the line after its last tree is missing")
    width, trees = int(last) + 1, len(facts.get("tree_sizes", "").split())
    objective = (facts.get("objective", "").split() or [""])[0]
    draft.know(
        framework="lightgbm",
        framework_version=facts.get("version", ""),
        architecture=f"gbdt of {trees} trees",
        task=task_of(objective) if objective else None,
        toolchain="boosting",
    )
    draft.operators({"Tree": trees})
    draft.note(f"Its objective is {clean(facts.get('objective', 'not told'), 100)}.")
    if linear:
        draft.note("Its leaves hold linear models, which are not converted to ONNX.")
    draft.note(f"It takes {width} features: {listing(facts.get('feature_names', '').split(), most=20)}.")
    draft.know(KnownBy.GUESS, inputs=(table_input(width),))
