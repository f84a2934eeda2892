"""A class that the sidecar names from a library: transformers, torchvision or timm, with weights of random numbers."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from converters.model_errors import RAISED_BY_MODELS, first_line
from schemas.errors import ModelFailed, Unsupported
from schemas.sidecar import ModuleSource

if TYPE_CHECKING:
    import torch

_FETCHES = frozenset({"weights", "weights_backbone", "pretrained", "pretrained_cfg", "checkpoint_path", "cache_dir"})
"""Arguments that would load other weights than the dropped ones; nothing can be fetched here."""


def build_from_library(source: ModuleSource) -> torch.nn.Module:
    """Return an instance of the class in eval mode, to load the dropped weights into.

    Raises Unsupported when the library is not installed or has no such class, ModelFailed when the arguments do not
    fit it.
    """
    library = source.library or ""
    fetches = sorted(_FETCHES & set(source.args))
    if fetches:
        raise ModelFailed(
            f"The sidecar gives {source.class_name} the argument {fetches[0]!r}, which fetches weights.",
            hint="Leave it out: the weights are those that were dropped.",
        )
    try:
        imported = importlib.import_module(library)
    except ImportError:
        raise Unsupported(
            f"{library} is not installed here, and the sidecar names {source.class_name} of it.",
            hint=f"Ask the operator for a torch toolchain with {library}; or put the class's Python file beside the "
            "model and name it: 'module: {file: model.py, class_name: Net}'.",
        ) from None
    make = _maker(imported, source)
    try:
        module: torch.nn.Module = make()
    except RAISED_BY_MODELS as error:
        raise ModelFailed(
            f"{library}'s {source.class_name} could not be built: {first_line(error)}.",
            hint="Check 'args' in the sidecar.",
        ) from error
    return module.eval()


def _maker(library: Any, source: ModuleSource) -> Any:
    name, args = source.class_name, source.args
    match source.library:
        case "transformers":
            model: Any = getattr(library, name, None)
            settings = getattr(model, "config_class", None)
            if settings is not None and _is_model(model, library):
                return lambda: model(settings(**args))
        case "torchvision":
            models = importlib.import_module("torchvision.models")
            if name in models.list_models():
                return lambda: models.get_model(name, weights=None, **args)
            cls = getattr(models, name, None)
            if inspect.isclass(cls):
                return lambda: cls(**args)
        case "timm":
            if library.is_model(name):
                return lambda: library.create_model(name, pretrained=False, **args)
    raise Unsupported(
        f"{source.library} {getattr(library, '__version__', '')} has no model {name!r}.",
        hint="Write the name as the library does, for example BertForSequenceClassification, resnet50 or "
        "vit_small_patch16_224.",
    )


def _is_model(value: Any, library: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, library.PreTrainedModel)


def is_transformers(module: Any) -> bool:
    """Whether ``module`` is one of transformers' models, which say themselves what they take."""
    return type(module).__module__.startswith("transformers.") and hasattr(module, "config")
