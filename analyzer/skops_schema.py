"""Read a skops file: its schema names every class that loading it builds; they are judged as a pickle's globals are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from analyzer.draft import Draft
from analyzer.formats import Seen
from analyzer.pickle_allowlist import Judgement, judge
from analyzer.pickle_scan import printable
from analyzer.traced_values import Global
from analyzer.zip_members import open_zip
from schemas.descriptor import SecurityFinding, Severity
from schemas.errors import LimitExceeded, ModelFailed

MAX_SCHEMA_BYTES = 128 << 20
MAX_NODES = 2_000_000
_LOADERS_TEXT = (
    "CachedNode DictNode DefaultDictNode ListNode SetNode TupleNode BytesNode BytearrayNode SliceNode FunctionNode "
    "PartialNode TypeNode ConstructorFromReduceNode ObjectNode JsonNode NdArrayNode MaskedArrayNode DTypeNode "
    "RandomStateNode RandomGeneratorNode SparseMatrixNode LossNode TreeNode QuantileForestNode"
)
_LOADERS = frozenset(_LOADERS_TEXT.split())
"""skops' kinds of nodes without MethodNode and OperatorFuncNode, which hold bound methods and attribute getters."""
_PLAIN = frozenset({"JsonNode", "CachedNode"})
"""Nodes whose class is a label and builds nothing."""
_HINT = "Save it again with `skops.io.dump(model, 'model.skops')`."


def read_skops(draft: Draft, seen: Seen) -> None:
    """Fill ``draft`` from the schema."""
    schema = read_schema(draft.file)
    names = [(module, name) for module, name, _ in classes_of(schema)]
    root = schema.get("__class__")
    estimators = [
        name for module, name in names if module.startswith(("sklearn.", "xgboost.", "lightgbm.", "catboost."))
    ]
    draft.know(framework="scikit-learn", architecture=root if isinstance(root, str) else None, toolchain="boosting")
    draft.operators({name: estimators.count(name) for name in dict.fromkeys(estimators)})
    version = schema.get("_skops_version")
    if isinstance(version, str):
        draft.know(producer=f"skops {version}")


def skops_findings(path: Path, allowed_globals: frozenset[str]) -> list[SecurityFinding]:
    """Judge what the schema of the skops file at ``path`` names. Raises ModelFailed where it has none to be read."""
    found: dict[str, SecurityFinding] = {}
    for module, name, loader in classes_of(read_schema(path)):
        subject = f"{module}.{name}"
        if loader not in _LOADERS:
            message = f"This skops file uses a {printable(loader)[:80]}, which no plain estimator needs."
            found.setdefault(
                loader,
                SecurityFinding(code="skops-node", severity=Severity.DANGER, message=message, subject=subject[:300]),
            )
            continue
        if loader in _PLAIN or subject in found:
            continue
        judgement = judge(Global(module, name, 0, 4))
        if judgement is Judgement.ALLOWED or (judgement is Judgement.UNKNOWN and subject in allowed_globals):
            continue
        danger = judgement is Judgement.DANGER
        found[subject] = SecurityFinding(
            code="pickle-global",
            severity=Severity.DANGER if danger else Severity.UNKNOWN,
            message=f"This skops file asks for {printable(subject)[:300]}, "
            + ("which can run commands or code." if danger else "which is not on the list of known harmless names."),
            where="schema.json",
            subject=printable(subject)[:300],
        )
    return list(found.values())


def read_schema(path: Path) -> dict[str, Any]:
    """Return ``schema.json``. Raises ModelFailed for one that is no object, LimitExceeded for a huge one."""
    with open_zip(path) as members:
        data = members.read("schema.json", MAX_SCHEMA_BYTES)
    try:
        found = json.loads(data)
    except RecursionError:
        raise ModelFailed("The schema of this skops file is nested deeper than any estimator.", hint=_HINT) from None
    except ValueError as error:
        raise ModelFailed("The schema of this skops file is no readable JSON.", hint=_HINT) from error
    if not isinstance(found, dict):
        raise ModelFailed("The schema of this skops file is no JSON object.", hint=_HINT)
    return found


def classes_of(schema: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield module, class and loader of every node. Raises LimitExceeded for too many."""
    stack: list[Any] = [schema]
    number = 0
    while stack:
        value = stack.pop()
        number += 1
        if number > MAX_NODES:
            raise LimitExceeded(f"The schema of this skops file holds more than {MAX_NODES} values.", hint=_HINT)
        if isinstance(value, list):
            stack.extend(reversed(value))
        elif isinstance(value, dict):
            module, name, loader = (value.get(key) for key in ("__module__", "__class__", "__loader__"))
            if any(part is not None for part in (module, name, loader)):
                yield str(module), str(name), str(loader)
            if "module_path" in value and "function" in value:
                # How skops named functions before its protocol 2.
                yield str(value["module_path"]), str(value["function"]), "FunctionNode"
            stack.extend(reversed(list(value.values())))
