"""Read the head of a CatBoost model (.cbm): a flatbuffer, read by hand and within its bounds."""

from __future__ import annotations

import json
import struct
from typing import Any

from analyzer.draft import Draft, clean, cut_short
from analyzer.formats import Seen
from analyzer.xgboost_model import MAX_FEATURES, table_input
from schemas.descriptor import KnownBy
from schemas.errors import ModelFailed, Unsupported

MAX_CORE_BYTES = 1 << 31
_TREES, _INFO = 1, 2
"""Fields of TModelCore: 0 FormatVersion, 1 ModelTrees, 2 InfoMap."""
_DIMENSION, _SIZES, _CATEGORICAL, _FLOATS, _TEXTS = 0, 2, 4, 5, 12
"""Fields of TModelTrees that are told; TextFeatures came last."""
_MAX_INFO = 200
_CLASSES = frozenset(
    {"Logloss", "CrossEntropy", "MultiClass", "MultiClassOneVsAll", "MultiLogloss", "MultiCrossEntropy"}
)
_RANKING = ("YetiRank", "PairLogit", "Query", "StochasticRank", "LambdaMart")


def read_catboost(draft: Draft, seen: Seen) -> None:
    """Fill ``draft`` from the model's tables. Raises ModelFailed for a broken one, Unsupported for features that are
    no numbers.
    """
    with draft.file.open("rb") as handle:
        head = handle.read(8)
        size = struct.unpack("<I", head[4:8])[0] if len(head) == 8 else 0
        if len(head) < 8 or size > draft.size_bytes - 8:
            raise cut_short("CatBoost model", f"its core takes {size} bytes")
        core = _Table.root(handle.read(min(size, MAX_CORE_BYTES)))
    trees = core.table(_TREES)
    info = _info(core)
    params = _parsed(info.get("params", ""))
    loss = params.get("loss_function")
    loss_name = str(loss.get("type", "") if isinstance(loss, dict) else loss or "")
    width, categorical, texts = trees.length(_FLOATS), trees.length(_CATEGORICAL), trees.length(_TEXTS)
    number = trees.length(_SIZES)
    task = "tabular-classification" if loss_name in _CLASSES else "tabular-regression"
    draft.know(
        framework="catboost",
        framework_version=_version(info.get("catboost_version_info", "")),
        architecture=f"CatBoost of {number} trees",
        task="tabular-ranking" if loss_name.startswith(_RANKING) else task if loss_name else None,
        toolchain="boosting",
    )
    draft.operators({"Tree": number})
    labels = _parsed(info.get("class_params", "")).get("class_names")
    if isinstance(labels, list) and labels and all(isinstance(label, str | int | float | bool) for label in labels):
        draft.know(labels=tuple(str(label) for label in labels))
    if loss_name:
        draft.note(f"Its loss is {clean(loss_name, 60)}.")
    if categorical or texts:
        kind, many = ("categorical", categorical) if categorical else ("text", texts)
        raise Unsupported(
            f"This CatBoost model was trained with {many} {kind} features, whose hashes and statistics ONNX has no "
            "operator for; only models of numeric features are converted.",
            hint="Encode them as numbers in a pipeline before the model (for example with OrdinalEncoder), or serve "
            "the .cbm file with CatBoost itself.",
        )
    if not 0 < width <= MAX_FEATURES:
        raise ModelFailed(f"This CatBoost model says that it takes {width} numeric features.", hint="Save it again.")
    draft.note(f"It takes {width} numeric features.")
    draft.know(KnownBy.GUESS, inputs=(table_input(width),))


class _Table:
    """A flatbuffer table: fields by number, through a table of offsets."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at
        self.fields = at - self._int("<i", at)
        self.size = self._int("<H", self.fields)

    @classmethod
    def root(cls, data: bytes) -> _Table:
        start = cls._read(data, "<I", 0)
        return cls(data, start)

    @staticmethod
    def _read(data: bytes, form: str, at: int) -> int:
        if at < 0 or at + struct.calcsize(form) > len(data):
            raise ModelFailed(
                "This CatBoost model is broken: an offset leads out of the file.",
                hint="Copy it again, or save it again with `model.save_model('model.cbm')`.",
            )
        found: int = struct.unpack_from(form, data, at)[0]
        return found

    def _int(self, form: str, at: int) -> int:
        return self._read(self.data, form, at)

    def place(self, field: int) -> int | None:
        """Return where field number ``field`` lies, None where it is left out."""
        entry = 4 + 2 * field
        if entry + 2 > self.size:
            return None
        offset = self._int("<H", self.fields + entry)
        return self.at + offset if offset else None

    def _target(self, field: int) -> int | None:
        place = self.place(field)
        return place + self._int("<I", place) if place is not None else None

    def table(self, field: int) -> _Table:
        target = self._target(field)
        if target is None:
            raise ModelFailed("This CatBoost model holds no trees.", hint="Save it again.")
        return _Table(self.data, target)

    def length(self, field: int) -> int:
        target = self._target(field)
        return self._int("<I", target) if target is not None else 0

    def tables(self, field: int, most: int) -> list[_Table]:
        target = self._target(field)
        if target is None:
            return []
        places = [target + 4 + 4 * n for n in range(min(self._int("<I", target), most))]
        return [_Table(self.data, place + self._int("<I", place)) for place in places]

    def text(self, field: int) -> str:
        target = self._target(field)
        if target is None:
            return ""
        length = self._int("<I", target)
        return self.data[target + 4 : target + 4 + min(length, 1 << 20)].decode("utf-8", "replace")


def _info(core: _Table) -> dict[str, str]:
    return {pair.text(0): pair.text(1) for pair in core.tables(_INFO, _MAX_INFO)}


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _version(text: str) -> str:
    for line in text.splitlines():
        name, _, value = line.strip().partition(":")
        if name == "Branch" and "v" in value:
            return value.rpartition("v")[2].strip()
    return ""
