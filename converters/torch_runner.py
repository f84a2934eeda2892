"""Run an original that torch runs: TorchScript, ExportedProgram, a Hugging Face folder, weights with their class."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.arrays import Array, Arrays, cast
from converters.domain import Domain
from converters.model_errors import RAISED_BY_MODELS, first_line
from schemas.descriptor import KnownBy, TensorSpec
from schemas.errors import ModelFailed
from schemas.step_io import StepContext

if TYPE_CHECKING:
    import torch

    from converters.torch_source import TorchSource


_LIMITS = (
    ("input_ids", "vocab_size"),
    ("decoder_input_ids", "vocab_size"),
    ("token_type_ids", "type_vocab_size"),
    ("bbox", "max_2d_position_embeddings"),
)
"""Input to the setting of config.json that its integers stay below."""


def _reads_the_end(config: Mapping[str, Any]) -> bool:
    """Whether a classifier on an encoder and a decoder looks for the one end-of-text token of each row."""
    architecture = str(next(iter(config.get("architectures") or ()), ""))
    return bool(config.get("is_encoder_decoder")) and architecture.endswith("ForSequenceClassification")


class TorchRunner:
    """A torch original in eval mode on the CPU, without gradients."""

    runtime = "torch"

    def __init__(
        self,
        source: TorchSource,
        *,
        inputs: tuple[TensorSpec, ...] = (),
        outputs: tuple[TensorSpec, ...] = (),
        output_names: tuple[str, ...] = (),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Wrap ``source``. ``config`` is a Hugging Face config.json, which tells the size of the vocabulary."""
        self.source = source
        self.inputs, self.outputs = inputs, outputs
        self._specs = {spec.name: spec for spec in inputs}
        self._output_names = output_names
        self._config = dict(config or {})

    @classmethod
    def load(cls, context: StepContext) -> TorchRunner:
        """Load input ``model`` with as many threads as the request gives, and its seed."""
        import torch

        from converters import torch_source
        from converters.runners import descriptor_of

        torch.set_num_threads(context.request.threads)
        torch.manual_seed(context.request.seed)
        descriptor, sidecar = descriptor_of(context), context.request.sidecar
        if not descriptor.inputs and sidecar is not None and sidecar.inputs:
            # A person's names are for the model's own arguments, in their order.
            named = tuple(
                TensorSpec(name=item.name, dtype=item.dtype, shape=item.shape, known_by=KnownBy.SIDECAR)
                for item in sidecar.inputs
            )
            context = StepContext(
                context.request.model_copy(update={"descriptor": descriptor.model_copy(update={"inputs": named})}),
                context.workspace,
                context.options,
                context.progress,
            )
            descriptor = descriptor_of(context)
        names = sidecar.outputs if sidecar is not None and not descriptor.outputs else ()
        source = torch_source.load(context)
        return cls(
            source,
            inputs=descriptor.inputs,
            outputs=descriptor.outputs,
            output_names=names,
            config=read_config(context.input("model")) or own_config(source.inner),
        )

    @property
    def domains(self) -> Mapping[str, Domain]:
        """Bounds of integer inputs: the vocabulary a config names, else the smallest embedding of the model."""
        limits = {
            name: Domain(limit=limit)
            for name, key in _LIMITS
            if isinstance(limit := self._config.get(key), int) and limit > 0
        }
        end = self._config.get("eos_token_id")
        if "input_ids" in limits and isinstance(end, int) and _reads_the_end(self._config):
            limits["input_ids"] = Domain(limit=limits["input_ids"].limit, last=end)
        rows = [tensor.shape[0] for tensor in self._embeddings()]
        for name in self.source.input_names:
            if name not in limits and rows:
                limits[name] = Domain(limit=min(rows))
        return limits

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Return the outputs by name. Raises ModelFailed when the model refuses these inputs."""
        from converters.torch_source import name_outputs

        named = self._guarded(self.tensors(feeds))
        if self._output_names:
            named = name_outputs(named, self._output_names)
        return {name: _kept(tensor) for name, tensor in named.items()}

    def bind(self, feeds: Mapping[str, Array]) -> Callable[[], object]:
        """Return a call that runs ``feeds`` once, with tensors already made."""
        tensors = self.tensors(feeds)
        return lambda: self._guarded(tensors)

    def _guarded(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        try:
            return self.source.run(tensors)
        except RAISED_BY_MODELS as error:
            raise ModelFailed(
                f"The original could not run: {reason(error)}.",
                hint="The input's shape or dtype may not be what it takes; say it in the sidecar under 'inputs'.",
            ) from error

    def tensors(self, feeds: Mapping[str, Array]) -> dict[str, torch.Tensor]:
        """Return ``feeds`` as tensors of their own by input name. Raises ModelFailed for a missing input or strings."""
        import torch

        tensors: dict[str, torch.Tensor] = {}
        for name in self.source.input_names:
            if name not in feeds:
                raise ModelFailed(f"The model takes an input {name!r} that was not given.")
            array, spec = feeds[name], self._specs.get(name)
            if spec is not None and spec.dtype == "string":
                raise ModelFailed(f"Input {name!r} is declared as string, and torch has no strings.")
            if array.dtype.kind in "USO":
                raise ModelFailed(f"Input {name!r} was given strings, and torch has no strings.")
            # A copy, because a model may write into its inputs and the arrays are used again.
            tensor = torch.from_numpy(np.array(cast(array, spec) if spec else array))
            tensors[name] = tensor.to(torch.bfloat16) if spec and spec.dtype == "bfloat16" else tensor
        return tensors

    def _embeddings(self) -> list[Any]:
        import torch

        inner = self.source.inner
        if isinstance(inner, torch.export.ExportedProgram):
            return exported_embeddings(inner)
        if not isinstance(inner, torch.nn.Module):
            return []
        found = []
        for module in inner.modules():
            kind = getattr(module, "original_name", type(module).__name__)
            weight = getattr(module, "weight", None)
            if kind in ("Embedding", "EmbeddingBag") and isinstance(weight, torch.Tensor):
                found.append(weight)
        return found


def exported_embeddings(program: Any) -> list[Any]:
    """Return the embedding tables that an ExportedProgram's graph looks up."""
    names = {**program.graph_signature.inputs_to_parameters, **program.graph_signature.inputs_to_buffers}
    found = []
    for node in program.graph.nodes:
        if node.op == "call_function" and str(node.target).startswith("aten.embedding"):
            key = names.get(getattr(node.args[0], "name", ""))
            if key in program.state_dict:
                found.append(program.state_dict[key])
    return found


def read_config(path: Path) -> dict[str, Any]:
    """Return a folder's config.json, flattened by one level (text_config, vision_config); {} when there is none."""
    file = path / "config.json" if path.is_dir() else None
    if file is None or not file.is_file() or file.stat().st_size > 16 << 20:
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    if not isinstance(config, dict):
        return {}
    inner = {k: v for part in ("text_config", "vision_config") for k, v in (config.get(part) or {}).items()}
    return {**inner, **config}


def own_config(module: Any) -> dict[str, Any]:
    """Return the configuration of a transformers model that came without a folder; {} of any other."""
    config = getattr(module, "config", None)
    named = config.to_dict() if config is not None and hasattr(config, "to_dict") else None
    return {**named, "architectures": [type(module).__name__]} if isinstance(named, dict) else {}


def reason(error: BaseException) -> str:
    """Return the telling line of what a torch model raised: TorchScript puts it last, behind its own traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and "TorchScript" in lines[0]:
        return lines[-1].rstrip(".")[:300]
    return first_line(error).rstrip(".")


def _kept(tensor: torch.Tensor) -> Array:
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return np.array(tensor.contiguous().numpy())
