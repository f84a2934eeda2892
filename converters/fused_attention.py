"""Fused attention: an attention function for transformers that exports as one operator of onnxruntime.

``com.microsoft::MultiHeadAttention`` takes the place of about twenty operators a layer: two products, a softmax, and
the reshaping around them.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NAME = "modelium_fused"
"""What transformers calls it; see ``attn_implementation``."""
DOMAIN = "com.microsoft"
_OPERATOR = f"{DOMAIN}::MultiHeadAttention"
_UNKNOWN = ("softcap", "s_aux", "position_bias", "head_mask")
"""Arguments that change the result and that the operator does not have; with one of them attention stays plain."""


@cache
def register() -> str:
    """Make the function known to transformers and return its name. Masks come as numbers to add."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    return NAME


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Return the output, (batch, sequence, heads, width), as transformers' own attention functions do.

    Query is (batch, heads, sequence, width); key and value may have fewer heads, each for several of the query's.
    The mask is (batch or 1, heads or 1, sequence, keys), to be added to the scores.
    """
    import torch
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    if any(more.get(name) is not None for name in _UNKNOWN) or not torch.onnx.is_in_onnx_export():
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=0.0, scaling=scaling, is_causal=is_causal, **more
        )
        return result
    groups = int(getattr(module, "num_key_value_groups", 1) or 1)
    if groups > 1:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    heads, width = int(query.shape[1]), int(value.shape[-1])
    scale = float(scaling) if scaling is not None else int(query.shape[-1]) ** -0.5
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal) and attention_mask is None
    rows = [
        part.transpose(1, 2).reshape(part.shape[0], part.shape[2], heads * int(part.shape[3]))
        for part in (query, key, value)
    ]
    if torch.compiler.is_exporting():
        joined = torch.onnx.ops.symbolic(
            _OPERATOR,
            (*rows, None, None, attention_mask) if attention_mask is not None else rows,
            {"num_heads": heads, "scale": scale, "unidirectional": int(causal)},
            dtype=query.dtype,
            shape=(query.shape[0], query.shape[2], heads * width),
            version=1,
        )
    else:
        joined = _traced().apply(*rows, attention_mask, heads, scale, causal)
    # Sizes are taken from the query: those of an operator of our own are constants to the exporter that traces.
    return joined.view(query.shape[0], query.shape[2], heads, width), None


@cache
def _traced() -> Any:
    """Return the operator for the exporter that traces: it runs as plain attention and is written as one node."""
    import torch

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            mask: torch.Tensor | None,
            heads: int,
            scale: float,
            causal: bool,
        ) -> torch.Tensor:
            q, k, v = (part.view(*part.shape[:2], heads, -1).transpose(1, 2) for part in (query, key, value))
            output = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, scale=scale, is_causal=causal and mask is None
            )
            return output.transpose(1, 2).flatten(2)

        @staticmethod
        def symbolic(
            g: Any, query: Any, key: Any, value: Any, mask: Any, heads: int, scale: float, causal: bool
        ) -> Any:
            inputs = [query, key, value]
            if mask is not None and not mask.node().mustBeNone():
                nothing = g.op("prim::Constant")
                nothing.setType(torch._C.OptionalType.ofTensor())
                inputs += [nothing, nothing, mask]
            return g.op(_OPERATOR, *inputs, num_heads_i=heads, scale_f=scale, unidirectional_i=int(causal)).setType(
                query.type().with_sizes([None, None, None])
            )

    return Fused
