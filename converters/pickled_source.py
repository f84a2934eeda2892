"""Whole modules pickled by torch.save: built from the globals that the scan saw and allowed, and from no others."""

from __future__ import annotations

import contextlib
import importlib
import pickle
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from converters.model_errors import RAISED_BY_MODELS, first_line
from converters.module_source import PersonsCode, as_source, import_file, is_zip
from converters.torch_source import TorchSource
from schemas.descriptor import ModelDescriptor
from schemas.errors import ModelFailed
from schemas.step_io import StepContext

_KEYS = ("model", "module", "net", "network", "ema")
"""Where training scripts put the module inside a checkpoint."""
_REFUSED = re.compile(r"(?:GLOBAL|function|class|Type) ([\w.]+)")
_SAVE_PROGRAM = (
    "Save it as a program where it was trained: torch.export.save(torch.export.export(model.eval(), (example_input,)), "
    "'model.pt2')."
)


def load_pickled(context: StepContext, path: Path, descriptor: ModelDescriptor) -> TorchSource:
    """Unpickle the module at ``path`` and return it in eval mode; only what the descriptor names can be built.

    Runs the code of the classes it names: in a sandbox only. Raises ModelFailed when a class is not to be had or the
    pickle asks for more than the scan saw.
    """
    import torch

    if not is_zip(path):
        raise ModelFailed(
            "This whole module was pickled in torch's format before 1.6, which its restricted unpickler does not read.",
            hint="Load it once where it was made and save it again: torch.save(torch.load(path), path).",
        )
    with _importable(context):
        allowed: list[Any] = [
            (value, name) for name in descriptor.pickle_globals if (value := _find(context, name)) is not None
        ]
        try:
            with torch.serialization.safe_globals(allowed), PersonsCode("Loading the module"):
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            reason = " ".join(str(error).partition("WeightsUnpickler error:")[2].partition("Check the")[0].split())
            found = _REFUSED.search(reason)
            what = f"asks for {found[1]}" if found else f"does what weights do not ({reason[:200].rstrip('.')})"
            raise ModelFailed(
                f"This pickled module {what}, which torch's restricted unpickler does not build.", hint=_SAVE_PROGRAM
            ) from error
        except RAISED_BY_MODELS as error:
            raise ModelFailed(f"torch cannot load this module: {first_line(error)}.", hint=_SAVE_PROGRAM) from error
    module, notes = _unwrapped(loaded)
    notes = (*notes, "The whole module was unpickled in the sandbox, from globals that the scan allowed.")
    return as_source(context, descriptor, module.eval(), type(module).__name__, notes)


def _unwrapped(loaded: Any) -> tuple[Any, tuple[str, ...]]:
    import torch

    notes: tuple[str, ...] = ()
    if isinstance(loaded, Mapping):
        for key in _KEYS:
            if isinstance(loaded.get(key), torch.nn.Module):
                loaded, notes = loaded[key], (f"The module was found under {key!r} of a checkpoint.",)
                break
    if isinstance(loaded, torch.nn.DataParallel):
        loaded, notes = loaded.module, (*notes, "The module was taken out of its DataParallel.")
    if not isinstance(loaded, torch.nn.Module):
        raise ModelFailed(f"The file holds a {type(loaded).__name__}, not a torch.nn.Module.", hint=_SAVE_PROGRAM)
    return loaded, notes


@contextlib.contextmanager
def _importable(context: StepContext) -> Iterator[None]:
    """Make the folder of the sidecar's file importable for a while: a model's file often imports its neighbours."""
    folder = str(_file(context).parent) if _has_file(context) else ""
    if folder:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder:
            sys.path.remove(folder)


def _has_file(context: StepContext) -> bool:
    sidecar = context.request.sidecar
    return sidecar is not None and sidecar.module is not None and bool(sidecar.module.file) and context.has("code")


def _file(context: StepContext) -> Path:
    sidecar = context.request.sidecar
    assert sidecar is not None and sidecar.module is not None
    return context.input("code") / str(sidecar.module.file)


def _find(context: StepContext, name: str) -> Any | None:
    """Return the object that a pickled global stands for; None for one that torch itself has no more."""
    module_name, _, attribute = name.rpartition(".")
    if _has_file(context) and module_name.partition(".")[0] not in ("torch", "builtins", "collections", "numpy"):
        own = _own(context, module_name, attribute)
        if own is not None:
            return own
    try:
        with PersonsCode(f"Importing {module_name}"):
            return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        if module_name.partition(".")[0] == "torch":
            return None  # what torch writes and reads by itself, or its unpickler will name it
        package = module_name.partition(".")[0]
        raise ModelFailed(
            f"This pickled module is made of {name}, which is not there ({first_line(error)}).",
            hint=f"Install {package} where the torch toolchain is, or put the Python file that defines "
            f"{attribute} beside the model and name it in the sidecar: 'module: {{file: model.py, class_name: "
            f"{attribute}}}'.",
        ) from error


def _own(context: StepContext, module_name: str, attribute: str) -> Any | None:
    """Return the class from a file of the pickled module's name beside the sidecar's, else from the sidecar's file."""
    file = _file(context)
    beside = file.parent.joinpath(*module_name.split(".")).with_suffix(".py")
    imported: list[ModuleType] = []
    if beside.is_file() and beside != file:
        with PersonsCode(beside.name):
            imported.append(importlib.import_module(module_name))
    imported.append(import_file(file))
    for each in imported:
        found = vars(each).get(attribute)
        if isinstance(found, type):
            return found
    return None
