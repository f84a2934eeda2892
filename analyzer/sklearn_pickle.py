"""Read a pickle: a scikit-learn estimator told by its globals, or something else and what it is."""

from __future__ import annotations

from analyzer.byte_source import open_bytes
from analyzer.draft import Draft, clean, cut_short, listing
from analyzer.formats import Seen
from analyzer.held_estimator import only_estimator
from analyzer.pickle_machine import Reading, read_pickle
from analyzer.pickle_values import Entries, Global, Instance, Value, as_array, elements, scalar, walk
from analyzer.questions import whole_module
from analyzer.torch_tensors import module_class
from schemas.descriptor import Format, KnownBy, TensorSpec
from schemas.errors import ModelFailed, Unsupported

MAX_STEPS = 100
_BOOSTING = {"xgboost": Format.XGBOOST, "lightgbm": Format.LIGHTGBM, "catboost": Format.CATBOOST}
_REGRESSORS = ("Regressor", "Regression", "SVR", "Ridge", "Lasso", "ElasticNet", "Lars", "NuSVR", "LinearSVR")


def read_pickled(draft: Draft, seen: Seen) -> None:
    """Fill ``draft`` from a pickle, compressed or not. Nothing in it is imported or called."""
    try:
        with open_bytes(draft.file) as source:
            reading = read_pickle(source)
    except EOFError:
        raise cut_short("pickle", f"it ends after {draft.size_bytes} bytes, before the pickle does") from None
    if not reading.complete:
        draft.note(f"Only the first {reading.opcodes} instructions of this pickle were read for its description.")
    modules = {found.module for found in reading.globals}
    boosting = {module.partition(".")[0] for module in modules} & _BOOSTING.keys()
    if boosting:
        # With scikit-learn or without it: these estimators are scikit-learn's by their methods.
        draft.know(toolchain="boosting")
        held = _class(reading.root)
        if held is not None and held.name == "Booster":
            _booster(draft, held)
            return
    if boosting or any(module == "sklearn" or module.startswith("sklearn.") for module in modules):
        draft.format = Format.SKLEARN
        _estimator(draft, reading)
        return
    draft.refuse(_other(reading))


def _booster(draft: Draft, held: Global) -> None:
    """A booster of its own, not in an estimator."""
    library = held.module.partition(".")[0]
    draft.format = _BOOSTING[library]
    draft.know(framework=library, architecture=held.name)


def _other(reading: Reading) -> ModelFailed:
    roots = sorted({found.module.partition(".")[0] for found in reading.globals})
    for library, how in (
        ("keras", "Export it with `model.export('model.onnx', format='onnx')` and drop that."),
        ("tensorflow", "Export it to ONNX with tf2onnx and drop that file."),
    ):
        if library in roots:
            return Unsupported(f"This pickle holds a {library} model, which is not converted from a pickle.", hint=how)
    module = module_class(reading.root)
    if module is not None:
        return whole_module(module)
    thing = listing(roots) if roots else "plain values"
    return Unsupported(
        f"This is a Python pickle that holds no scikit-learn or PyTorch model (it names: {thing})."
        if roots
        else "This is a Python pickle of plain values, not a model.",
        hint="Save the model in its framework's format: joblib for scikit-learn, torch.export for PyTorch, or ONNX.",
    )


def _class(value: Value) -> Global | None:
    return value.kind if isinstance(value, Instance) else None


def steps_of(root: Value) -> list[tuple[str, Instance]]:
    """Return a Pipeline's steps in order; of any other estimator, itself."""
    found: list[tuple[str, Instance]] = []
    stack: list[tuple[str, Value, int]] = [("", root, 0)]
    while stack and len(found) < MAX_STEPS:
        name, value, depth = stack.pop()
        if not isinstance(value, Instance):
            continue
        inner = value.attributes().get("steps")
        kind = value.kind
        if kind is not None and kind.name == "Pipeline" and isinstance(inner, list) and depth < 8:
            pairs = [pair for pair in inner[:MAX_STEPS] if isinstance(pair, tuple) and len(pair) == 2]
            stack.extend((pair[0] if isinstance(pair[0], str) else "", pair[1], depth + 1) for pair in reversed(pairs))
        else:
            found.append((name, value))
    return found


def _estimator(draft: Draft, reading: Reading) -> None:
    root = reading.root
    kind = _class(root)
    if kind is None:
        held, only = _held(root), only_estimator(root)
        if only is None:
            draft.refuse(
                ModelFailed(
                    f"This pickle holds {held}, not one estimator.",
                    hint="Save the estimator alone, and what is done before it with it, as one pipeline: "
                    "`joblib.dump(make_pipeline(scaler, model), 'model.joblib')`.",
                )
            )
            return
        place, root = only
        kind = _class(root)
        assert kind is not None
        draft.note(f"This pickle holds {held}; the one estimator in it, {clean(place, 80)}, is the model.")
    steps = steps_of(root)
    names = [found.name for _, step in steps if (found := _class(step)) is not None]
    draft.know(
        framework="scikit-learn", architecture=f"Pipeline({', '.join(names)})" if kind.name == "Pipeline" else kind.name
    )
    draft.operators({name: names.count(name) for name in names})
    for value in walk(root, limit=20_000):
        if isinstance(value, Instance):
            version = value.attributes().get("_sklearn_version")
            if isinstance(version, str):
                draft.know(framework_version=version)
                break
    _classes(draft, root, steps)
    _features(draft, root, steps)
    draft.parameters(_arrays(root))


def _held(root: Value) -> str:
    if isinstance(root, Entries):
        keys = [key for key, _ in root.pairs if isinstance(key, str)]
        return f"a dict of {len(root.pairs)} entries ({listing(keys)})"
    if isinstance(root, (list, tuple)):
        return f"a {type(root).__name__} of {len(root)} values"
    return f"a {type(root).__name__}"


def _classes(draft: Draft, root: Instance, steps: list[tuple[str, Instance]]) -> None:
    for value in (steps[-1][1] if steps else root, root):
        raw = value.attributes().get("classes_")
        if raw is None:
            continue
        draft.know(task="tabular-classification")
        classes = elements(raw)
        if classes and all(isinstance(label, str) for label in classes):
            draft.know(labels=tuple(str(label) for label in classes))
        elif classes:
            draft.note(f"Its classes are {listing([str(label) for label in classes], most=20)}.")
        return
    last = _class(steps[-1][1]) if steps else None
    if last is not None and last.name.endswith(_REGRESSORS):
        draft.know(KnownBy.GUESS, task="tabular-regression")


def _features(draft: Draft, root: Instance, steps: list[tuple[str, Instance]]) -> None:
    for value in (root, *(step for _, step in steps[:1])):
        names = elements(value.attributes().get("feature_names_in_") or ())
        if names and all(isinstance(name, str) for name in names):
            draft.note(f"It takes {len(names)} features: {listing([str(name) for name in names], most=20)}.")
            return
        count = scalar(value.attributes().get("n_features_in_"))
        if isinstance(count, int) and 0 < count < 1 << 31:
            draft.note(f"It takes {count} features.")
            guess = TensorSpec(name="input", dtype="float32", shape=("batch", int(count)), known_by=KnownBy.GUESS)
            draft.know(KnownBy.GUESS, inputs=(guess,))
            return


def _arrays(root: Instance) -> list[tuple[str, int, int]]:
    found = []
    for value in walk(root):
        array = as_array(value)
        if array is None or array.items is not None:
            continue
        from analyzer.pickle_values import item_bytes

        size, count = item_bytes(array.dtype) or 0, 1
        for n in array.shape:
            count *= n
        found.append((_numpy_name(array.dtype), count, count * size))
    return found


def _numpy_name(dtype: str) -> str:
    kind, digits = dtype.lstrip("<>|=")[:1], dtype.lstrip("<>|=")[1:]
    stem = {"f": "float", "i": "int", "u": "uint"}.get(kind)
    if stem and digits.isdigit() and len(digits) < 3:
        return f"{stem}{int(digits) * 8}"
    return {"b": "bool", "U": "string", "S": "string", "V": "record"}.get(kind, clean(dtype, 16))
