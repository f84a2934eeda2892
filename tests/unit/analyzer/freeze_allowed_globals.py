"""Write analyzer/allowed_globals.json from the installed libraries: run it when scikit-learn or torch is raised.

Exact names only. Of scikit-learn: estimators, the classes and constructors that fitted estimators' pickles were seen to
ask for, Cython's own losses, trees and metrics, and pure functions that people pass to estimators (scores, kernels). Of
torch: the layers. Names of the file that a newer library no longer has are kept: old models ask for them.
"""

from __future__ import annotations

import importlib
import inspect
import io
import json
import pickle
import pkgutil
import warnings
from pathlib import Path
from typing import Any

FROZEN = Path(__file__).parents[3] / "analyzer" / "allowed_globals.json"

_NO_CODE_IN = ("sklearn.externals", "sklearn.datasets", "sklearn.utils", "sklearn.conftest", "sklearn._build_utils")
_FUNCTIONS = ("sklearn.metrics", "sklearn.feature_selection", "sklearn.gaussian_process")
_WORDS = ("tests", "externals", "setup", "conftest")
_SPLITTERS = "sklearn.model_selection._split"
"""Plain objects that say how rows are split; a fitted search keeps the one it used."""
_SEEN_MODULES = ("sklearn", "scipy", "numpy")


def fitted_estimators() -> dict[str, Any]:
    """Return every estimator of scikit-learn that can be fitted on small data, by name."""
    import numpy as np
    from sklearn.exceptions import NotFittedError
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.utils import all_estimators

    rng = np.random.RandomState(0)
    x = np.abs(rng.rand(40, 4))
    y = np.arange(40) % 2
    special = {
        "estimator": LogisticRegression(),
        "base_estimator": LogisticRegression(),
        "estimators": [("a", Ridge()), ("b", Ridge())],
        "transformers": [("a", "passthrough", [0, 1])],
        "transformer_list": [("a", "passthrough")],
        "steps": [("a", LogisticRegression())],
        "param_grid": {"C": [0.1, 1.0]},
        "param_distributions": {"C": [0.1, 1.0]},
        "dictionary": np.eye(4),
        "n_components": 2,
    }
    fitted: dict[str, Any] = {}
    for name, cls in all_estimators():
        wanted = inspect.signature(cls.__init__).parameters
        arguments = {key: special[key] for key, p in wanted.items() if p.default is p.empty and key in special}
        if "estimators" in arguments and "Regress" not in name:
            arguments["estimators"] = [("a", LogisticRegression()), ("b", LogisticRegression())]
        if "n_estimators" in wanted:
            arguments["n_estimators"] = 3
        texts = ["aa bb cc", "bb cc dd"] * 20
        tries: tuple[tuple[Any, Any], ...] = (
            (x, y),
            (x, np.c_[y, 1 - y]),
            (x[:, 0], y),
            (texts, y),
            ([{"a": 1.0}, {"b": 2.0}] * 20, y),
            (y, None),
            (x, x),
            ([["a"], ["b"]] * 20, None),
        )
        for features, target in tries:
            try:
                fitted[name] = cls(**arguments).fit(*((features,) if target is None else (features, target)))
                break
            except (TypeError, ValueError, AttributeError, NotFittedError, IndexError, KeyError):
                continue
    return fitted


class _Recorder(pickle._Unpickler):  # type: ignore[name-defined,misc]
    """Loads only what this script pickled a moment before, and records what is asked for."""

    seen: set[tuple[str, str]]

    def find_class(self, module: str, name: str) -> Any:
        self.seen.add((module, name))
        return super().find_class(module, name)


def asked_for(thing: Any) -> set[tuple[str, str]]:
    """Return the globals of the pickles of ``thing``, which this process made."""
    seen: set[tuple[str, str]] = set()
    for protocol in (2, 4, 5):
        recorder = _Recorder(io.BytesIO(pickle.dumps(thing, protocol=protocol)))
        recorder.seen = seen
        recorder.load()
    return seen


def sklearn_names() -> set[tuple[str, str]]:
    """Return the names of scikit-learn's estimators, helpers and pure functions."""
    import sklearn
    from sklearn.base import BaseEstimator
    from sklearn.gaussian_process.kernels import Kernel

    names: set[tuple[str, str]] = set()
    for found in pkgutil.walk_packages(sklearn.__path__, "sklearn."):
        if any(word in found.name.split(".") for word in _WORDS) or found.name.startswith(_NO_CODE_IN):
            continue
        try:
            module = importlib.import_module(found.name)
        except ImportError:
            continue
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) != found.name or getattr(value, "__name__", None) != name:
                continue
            private_compiled = (module.__file__ or "").endswith(".so")
            if inspect.isclass(value):
                own = issubclass(value, BaseEstimator | Kernel) or private_compiled
                own = own or found.name.startswith(("sklearn._loss", "sklearn.ensemble._hist_gradient_boosting"))
                own = own or (found.name == _SPLITTERS and hasattr(value, "split"))
                if own and "Mock" not in name:
                    names.add((found.name, name))
            elif inspect.isfunction(value) and found.name.startswith(_FUNCTIONS) and not name.startswith("_"):
                pure = ("make_", "check_", "get_scorer", "fetch", "load")
                if not name.startswith(pure) and "display" not in found.name and "_plot" not in found.name:
                    names.add((found.name, name))
            elif private_compiled and name.startswith("__pyx_unpickle_"):
                names.add((found.name, name))
    return names


def torch_names() -> set[tuple[str, str]]:
    """Return torch's layers, and the activations they keep as functions."""
    import torch

    names: set[tuple[str, str]] = set()
    for found in pkgutil.walk_packages(torch.nn.modules.__path__, "torch.nn.modules."):
        module = importlib.import_module(found.name)
        for name, value in vars(module).items():
            if inspect.isclass(value) and issubclass(value, torch.nn.Module) and value.__module__ == found.name:
                names.add((found.name, name))
    for name in [
        "relu",
        "gelu",
        "silu",
        "elu",
        "selu",
        "leaky_relu",
        "tanh",
        "sigmoid",
        "softmax",
        "log_softmax",
        "mish",
        "hardswish",
        "relu6",
    ]:
        names.add(("torch.nn.functional", name))
    return names


def groups() -> dict[str, set[tuple[str, str]]]:
    """Return all names by reason."""
    import sklearn.metrics

    seen: set[tuple[str, str]] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for estimator in fitted_estimators().values():
            seen |= asked_for(estimator)
        for scorer in sklearn.metrics.get_scorer_names():
            seen |= asked_for(sklearn.metrics.get_scorer(scorer))
        listed = sklearn_names()
    taken = {(module, name) for module, name in seen if module.split(".")[0] in _SEEN_MODULES}
    return {
        "scikit-learn: estimators, their parts, scores and kernels": listed
        | {p for p in taken if p[0].startswith("sklearn")},
        "seen in fitted estimators": {p for p in taken if not p[0].startswith("sklearn")},
        "torch: layers": torch_names(),
    }


def main() -> None:
    """Merge what is installed into the frozen file."""
    old = json.loads(FROZEN.read_text(encoding="utf-8"))["groups"] if FROZEN.exists() else {}
    merged: dict[str, dict[str, list[str]]] = {}
    for reason, names in groups().items():
        kept = {(module, name) for module, some in old.get(reason, {}).items() for name in some}
        by_module: dict[str, list[str]] = {}
        for module, name in sorted(names | kept):
            by_module.setdefault(module, []).append(name)
        merged[reason] = by_module
    lines = []
    for reason, by_module in merged.items():
        rows = ",\n".join(f"   {json.dumps(module)}: {json.dumps(names)}" for module, names in by_module.items())
        lines.append(f"  {json.dumps(reason)}: {{\n{rows}\n  }}")
    FROZEN.write_text('{"groups": {\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
