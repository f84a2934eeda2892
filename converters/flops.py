"""What one row costs: operations, operators and the weights that matrices multiply by, counted while the model runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from converters.arrays import Arrays
from converters.model_errors import RAISED_BY_MODELS
from converters.torch_runner import TorchRunner

if TYPE_CHECKING:
    import torch

_MATRICES = frozenset({"mm", "addmm", "bmm", "baddbmm", "linear", "_addmm_activation", "mv", "addmv", "dot"})
_RECURRENT = frozenset({"mkldnn_rnn_layer", "lstm", "gru", "rnn_tanh", "rnn_relu", "quantized_lstm"})
_PLUMBING = frozenset({"detach", "alias", "lift_fresh", "is_same_size", "_local_scalar_dense", "empty", "empty_like"})
_MOST_OPERATORS = 1000


def torch_work(runner: object, feeds: Arrays, rows: int) -> dict[str, Any]:
    """Run a torch original once on ``feeds`` and return the descriptor fields ``flops`` (of one of its ``rows``),
    ``operators`` and ``matrix_bytes``; {} where torch cannot follow the run.

    Operations are those of matrix products, convolutions and attention, two for each multiply-add, by the formulas of
    torch.utils.flop_counter; what works element by element is left out, as everywhere in descriptors.
    """
    import torch

    if not isinstance(runner, TorchRunner):
        return {}
    counter = _counter(runner.source.inner)
    fused = torch.backends.mha.get_fastpath_enabled()
    # It hides a whole encoder layer behind one operator.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # Not in inference mode, where composite operators reach no dispatch mode in parts.
        with torch.no_grad(), counter:
            runner.source.module.named(*(runner.tensors(feeds)[name] for name in runner.source.input_names))  # type: ignore[operator]
    except RAISED_BY_MODELS:
        return {}
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    if not counter.operators:
        return {}
    ordered = counter.operators.most_common(_MOST_OPERATORS)
    return {
        "flops": counter.flops // max(rows, 1),
        "operators": {f"aten::{name}": count for name, count in ordered},
        "matrix_bytes": sum(counter.matrices.values()),
    }


def _counter(inner: Any) -> Any:
    """Return a dispatch mode that counts; ``matrices`` maps the storage of a weight to its bytes."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    weights = {tensor.untyped_storage().data_ptr(): tensor for tensor in _weights(inner)}

    class WorkCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.flops = 0
            self.operators: Counter[str] = Counter()
            self.matrices: dict[int, int] = {}

        def __torch_dispatch__(
            self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            kwargs = dict(kwargs or {})
            out = func(*args, **kwargs)
            name = func.overloadpacket.__name__
            if func.namespace == "aten" and name not in _PLUMBING:
                self.operators[name] += 1
            if func.overloadpacket in flop_registry:
                self.flops += int(flop_registry[func.overloadpacket](*args, **kwargs, out_val=out))
            elif name == "mkldnn_rnn_layer":
                self.flops += _recurrent(args)
            elif name == "_scaled_dot_product_flash_attention_for_cpu":
                self.flops += _attention(*args[:3])
            if name in _MATRICES or name in _RECURRENT:
                for value in args:
                    if isinstance(value, torch.Tensor) and not value.is_mkldnn:
                        key = value.untyped_storage().data_ptr()
                        weight = weights.get(key)
                        # A vector is a bias, which is added and not multiplied by.
                        if weight is not None and weight.dim() > 1:
                            self.matrices[key] = weight.numel() * weight.element_size()
            return out

    return WorkCounter()


def _attention(query: Any, key: Any, value: Any) -> int:
    """Return the operations of queries times keys and of weights times values; shapes (..., positions, features)."""
    scores = math.prod(query.shape[:-1]) * key.shape[-2]
    return int(2 * scores * (query.shape[-1] + value.shape[-1]))


def _recurrent(args: Sequence[Any]) -> int:
    """Return the operations of one recurrent layer: every step multiplies by both weight matrices."""
    steps_and_rows = args[0].shape[0] * args[0].shape[1]
    return int(2 * steps_and_rows * sum(math.prod(weight.shape) for weight in args[1:3]))


def _weights(inner: Any) -> list[torch.Tensor]:
    import torch

    if isinstance(inner, torch.export.ExportedProgram):
        return [value for value in inner.state_dict.values() if isinstance(value, torch.Tensor)]
    return list(inner.parameters()) if isinstance(inner, torch.nn.Module) else []
