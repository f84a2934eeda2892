"""Weights whose class a person named in the sidecar: import the file, build the class, load the weights."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from converters.library_module import build_from_library, is_transformers
from converters.model_errors import RAISED_BY_MODELS, first_line
from converters.torch_source import Call, TorchSource, flat_module, keyword_call, need_class
from schemas.descriptor import Format, ModelDescriptor
from schemas.errors import ModelFailed, ModeliumError, NeedsInput, Unsupported
from schemas.sidecar import ModuleSource
from schemas.step_io import StepContext

if TYPE_CHECKING:
    import torch

_NESTED_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "ema", "params")
"""Where training scripts put the weights inside a checkpoint."""
_GLOBAL = re.compile(r"GLOBAL ([\w.]+) was not an allowed global")
_PREFIX = "module."
"""What DataParallel and DistributedDataParallel put before every key."""
_COMPILED_PREFIX = "_orig_mod."
"""What torch.compile puts before every key."""


def load_module(context: StepContext, path: Path, descriptor: ModelDescriptor) -> TorchSource:
    """Build the sidecar's class and load the weights at ``path`` into it. Runs the person's code: in a sandbox only.

    Raises NeedsInput without a class, ModelFailed when the code fails or the weights don't fit.
    """
    sidecar = context.request.sidecar
    if sidecar is None or sidecar.module is None or not context.has("code"):
        raise need_class()
    source = sidecar.module
    module = build_from_library(source) if source.library else build(context.input("code"), source)
    state, notes = read_weights(path, descriptor)
    state, more = _fit_prefixes(state, module)
    _load_strictly(module, state, source)
    if is_transformers(module):
        from converters.huggingface_source import source_from

        return source_from(module, path.parent, descriptor, notes=(*notes, *more))
    return as_source(context, descriptor, module.eval(), source.class_name, (*notes, *more))


def as_source(
    context: StepContext, descriptor: ModelDescriptor, module: torch.nn.Module, name: str, notes: Sequence[str]
) -> TorchSource:
    """Return ``module``, whose class is called ``name``, as a source. Its inputs are the descriptor's, else the
    sidecar's, else what its forward takes without a default.
    """
    sidecar = context.request.sidecar
    arguments, required = _tensor_arguments(module, name)
    said = tuple(item.name for item in sidecar.inputs) if sidecar is not None else ()
    inputs = tuple(spec.name for spec in descriptor.inputs) or said or required
    outputs = tuple(spec.name for spec in descriptor.outputs) or (sidecar.outputs if sidecar is not None else ())
    if not inputs:
        raise NeedsInput(
            f"Which inputs does {name}.forward take? It names none that has no default.",
            hint="Declare them in <filename>.modelium.yaml, in their order:\n"
            "inputs:\n- {name: image, dtype: float32, shape: [batch, 3, 224, 224]}",
        )
    call = keyword_call(arguments, inputs, f"{name}.forward") if arguments else _positional
    flat = flat_module(module, _guarded(call, name), outputs, inputs)
    return TorchSource(flat, inputs, outputs, notes=tuple(notes), inner=module)


class PersonsCode:
    """Turns what a person's code raises and no framework does, such as its own exception classes, into ModelFailed."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, (*RAISED_BY_MODELS, ModeliumError, MemoryError, SystemExit)):
            return
        raise ModelFailed(
            f"{self.what} raised {type(error).__name__}: {first_line(error)}.", hint="Mend the class's own code."
        ) from error


def _guarded(call: Call, name: str) -> Call:
    def guarded(module: torch.nn.Module, tensors: Sequence[torch.Tensor]) -> Any:
        with PersonsCode(f"{name}.forward"):
            return call(module, tensors)

    return guarded


def _positional(module: torch.nn.Module, tensors: Any) -> Any:
    return module(*tensors)


def build(code: Path, source: ModuleSource) -> torch.nn.Module:
    """Import ``source.file`` below ``code`` and return an instance of its class, in eval mode."""
    import torch

    file = code / str(source.file)
    if not file.is_file():
        raise ModelFailed(
            f"The sidecar names {source.file}, which is not beside the model.",
            hint="Put the file there, or mend the path.",
        )
    # Its folder is importable, because a model's file often imports its neighbours.
    sys.path.insert(0, str(file.parent))
    try:
        imported = import_file(file)
        cls = getattr(imported, source.class_name, None)
        if cls is None:
            classes = [name for name, value in vars(imported).items() if inspect.isclass(value)]
            raise ModelFailed(
                f"{source.file} has no class {source.class_name}.",
                hint=f"It defines {', '.join(classes[:10])}." if classes else "It defines no class.",
            )
        with PersonsCode(source.class_name):
            module = cls(**source.args)
    except ModuleNotFoundError as error:
        raise ModelFailed(
            f"{source.file}{_line_in(error, file)} imports {error.name}, which is not there.",
            hint="Only torch, numpy, transformers and the standard library are. Put what the class needs of other "
            f"files into {source.file} itself, or export the model where those packages are, with torch.export.",
        ) from error
    except RAISED_BY_MODELS as error:
        line, text = _line_in(error, file), first_line(error)
        name = type(error).__name__
        raise ModelFailed(
            f"{source.class_name} could not be built from {source.file}{line}: "
            f"{text if text.startswith(name) else f'{name}: {text}'}.",
            hint="Check the file, and 'args' in the sidecar.",
        ) from error
    finally:
        sys.path.remove(str(file.parent))
    if not isinstance(module, torch.nn.Module):
        raise ModelFailed(
            f"{source.class_name} in {source.file} makes a {type(module).__name__}, not a torch.nn.Module.",
            hint="Name the module's class in the sidecar.",
        )
    return module.eval()


def import_file(file: Path) -> ModuleType:
    """Import the Python file a person named, once. Raises whatever it raises, or ModelFailed for no Python file."""
    name = "modelium_sidecar_module"
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(file):
        return known
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ModelFailed(
            f"{file.name} is no Python file.", hint="Name the .py file that defines the class in the sidecar."
        )
    imported = importlib.util.module_from_spec(spec)
    # Registered before it runs, because dataclasses and pickling look their module up.
    sys.modules[name] = imported
    try:
        with PersonsCode(file.name):
            spec.loader.exec_module(imported)
    except BaseException:
        del sys.modules[name]
        raise
    return imported


def _line_in(error: BaseException, file: Path) -> str:
    """Return ``" line N"`` of the person's own file where the error came through it."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f" line {error.lineno}"
    trace, line = error.__traceback__, ""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = f" line {trace.tb_lineno}"
        trace = trace.tb_next
    return line


def read_weights(path: Path, descriptor: ModelDescriptor) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Return the tensors by key, found inside a checkpoint where need be, and notes on what was done."""
    import pickle

    import torch

    if descriptor.format is Format.SAFETENSORS:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path, device="cpu")), ()
        except SafetensorError as error:
            raise ModelFailed(
                f"The safetensors file cannot be read: {first_line(error)}.", hint="Save or copy it again."
            ) from error
    try:
        with torch.serialization.safe_globals(_harmless()):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip(path))
    except pickle.UnpicklingError as error:
        found = _GLOBAL.search(str(error))
        what = f"{found[1]} beside its weights" if found else f"more than weights: {first_line(error)}"
        raise ModelFailed(
            f"The file holds {what}.", hint="Save model.state_dict() alone, or use safetensors."
        ) from error
    except RAISED_BY_MODELS as error:
        raise ModelFailed(
            f"torch cannot load these weights: {first_line(error)}.", hint="Save or copy the file again."
        ) from error
    return _unnest(loaded)


def is_zip(path: Path) -> bool:
    """Whether torch wrote ``path`` as a zip, which it can map into memory instead of reading it."""
    with path.open("rb") as handle:
        return handle.read(4) == b"PK\x03\x04"


def _harmless() -> list[Any]:
    """Return classes that training scripts leave in checkpoints and that can do nothing when they are loaded."""
    import argparse
    import types

    import numpy as np

    dtypes = [cls for name, cls in vars(np.dtypes).items() if name.endswith("DType")]
    scalar = np.float64(0).__reduce__()[0]
    array = np.zeros(1).__reduce__()[0]
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        (array, "numpy.core.multiarray._reconstruct"),
        (array, "numpy._core.multiarray._reconstruct"),
        np.dtype,
        np.ndarray,
        *dtypes,
        argparse.Namespace,
        types.SimpleNamespace,
    ]


def _unnest(loaded: Any) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    import torch

    if isinstance(loaded, Mapping):
        tensors = {str(key): value for key, value in loaded.items() if isinstance(value, torch.Tensor)}
        if tensors and len(tensors) == len(loaded):
            return tensors, ()
        others = [key for key in loaded if isinstance(key, str) and key not in _NESTED_KEYS]
        for key in (*_NESTED_KEYS, *([] if tensors else others)):
            nested = loaded.get(key)
            if isinstance(nested, Mapping) and any(isinstance(value, torch.Tensor) for value in nested.values()):
                inner, _ = _unnest(loaded[key])
                return inner, (f"The weights were found under {key!r} of a checkpoint.",)
        if tensors:
            return tensors, ()
    raise ModelFailed(
        f"The file holds a {type(loaded).__name__} without weights.", hint="Save model.state_dict() with torch.save."
    )


def _fit_prefixes(
    state: dict[str, torch.Tensor], module: torch.nn.Module
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Take away the prefixes of DataParallel and torch.compile when every key has them and the class doesn't."""
    notes = []
    wanted = set(module.state_dict())
    for prefix, origin in ((_COMPILED_PREFIX, "torch.compile"), (_PREFIX, "DataParallel")):
        if state and all(key.startswith(prefix) for key in state) and not any(key.startswith(prefix) for key in wanted):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
            notes.append(f"The prefix {prefix!r} that {origin} adds was taken off every key.")
    # A trainer that holds the model in an attribute, as Lightning's do, saves it below that attribute's name.
    first = next(iter(state), "").partition(".")[0] + "."
    if wanted and {key.removeprefix(first) for key in state} == wanted and all(key.startswith(first) for key in state):
        state = {key.removeprefix(first): value for key, value in state.items()}
        notes.append(f"The prefix {first!r} was taken off every key.")
    return state, tuple(notes)


def _load_strictly(module: torch.nn.Module, state: dict[str, torch.Tensor], source: ModuleSource) -> None:
    expected = module.state_dict()
    state = {**_tied(expected, state), **state}
    missing = sorted(set(expected) - set(state))
    unexpected = sorted(set(state) - set(expected))
    if missing or unexpected:
        parts = [f"{what}: {_some(keys)}" for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
        raise ModelFailed(
            f"The weights do not fit {source.class_name} ({'; '.join(parts)}).",
            hint="Check the class and its 'args' in the sidecar.",
        )
    for key, tensor in state.items():
        if expected[key].shape != tensor.shape:
            raise ModelFailed(
                f"The weights do not fit {source.class_name}: {key} is {tuple(tensor.shape)} in the file and "
                f"{tuple(expected[key].shape)} in the class.",
                hint="Check the class's 'args' in the sidecar.",
            )
    try:
        # The file's own tensors take the places of the class's: a copy would hold a mapped file in memory, twice.
        module.load_state_dict(_shared(expected, state), strict=True, assign=True)
    except RAISED_BY_MODELS as error:
        raise ModelFailed(f"The weights do not fit {source.class_name}: {first_line(error)}.") from error


def _shared(expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return ``state`` in the dtypes of the class, with one tensor for all names that the class gives one weight.

    As where weights are copied one after the other, the last name's values are those that stay.
    """
    last: dict[object, str] = {}
    for key, tensor in expected.items():
        last[_place(key, tensor)] = key
    cast = {key: state[key].to(expected[key].dtype) for key in last.values()}
    return {key: cast[last[_place(key, tensor)]] for key, tensor in expected.items()}


def _place(key: str, tensor: torch.Tensor) -> tuple[object, ...]:
    # What is empty, or on the meta device, has no place: all of it would be one tensor.
    return (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.data_ptr() else (key,)


def _tied(expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights that the file leaves out because the class shares them with others: safetensors does that."""
    places = {_place(key, tensor): key for key, tensor in expected.items() if key in state}
    return {
        key: state[places[_place(key, tensor)]]
        for key, tensor in expected.items()
        if key not in state and _place(key, tensor) in places
    }


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")


def _tensor_arguments(module: torch.nn.Module, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return forward's own arguments, and those without a default; both () when it takes ``*args``."""
    arguments: list[str] = []
    required: list[str] = []
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            return (), tuple(required)
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise Unsupported(
                f"{name}.forward takes {parameter.name!r} by position only.",
                hint="Take the '/' out of its signature.",
            )
        arguments.append(parameter.name)
        if parameter.default is inspect.Parameter.empty:
            required.append(parameter.name)
    return tuple(arguments), tuple(required)
