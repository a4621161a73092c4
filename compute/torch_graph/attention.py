"""Attention and RotaryEmbedding, the operators that opset 23 brought.

Part of *execute*. Scores are products, their softmax is of float32 (``normalisation``).
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch.nn import functional

from shoal.compute.torch_graph.node import (
    Inputs,
    Node,
    Operator,
    Outputs,
    Run,
    Tensor,
    Width,
    fail,
    given,
)

_RAW, _CAPPED, _MASKED, _SOFTMAX = 0, 1, 2, 3
"""What the fourth output shows: scores at this place of their way."""


def _heads(x: Tensor, heads: int | None) -> Tensor:
    """(batch, tokens, heads * size) as (batch, heads, tokens, size)."""
    if x.ndim == 4:
        return x
    if not heads or x.ndim != 3 or x.shape[-1] % heads:
        fail("shape_mismatch", f"{list(x.shape)} does not make {heads} heads")
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _bias(node: Node, q: Tensor, keys: int, past: int, mask: Tensor | None) -> Tensor | None:
    """What is added to scores of (…, queries, keys): 0, or -inf where nothing is seen."""
    bias = None
    zero, hidden = torch.zeros((), device=q.device), torch.full((), -math.inf, device=q.device)
    if mask is not None:
        bias = torch.where(mask, zero, hidden) if mask.dtype == torch.bool else mask.float()
        if bias.shape[-1] < keys:
            bias = functional.pad(bias, (0, keys - bias.shape[-1]), value=-math.inf)
    if node.get("is_causal", 0):
        rows = torch.arange(q.shape[-2], device=q.device).unsqueeze(-1)
        later = torch.arange(keys, device=q.device) > rows + past
        causal = torch.where(later, hidden, zero)
        bias = causal if bias is None else bias + causal
    return bias


def _attention(node: Node, inputs: Inputs, _: Run) -> Outputs:
    q, k, v, mask, past_k, past_v = given(inputs, 6)
    flat = q.ndim == 3
    q = _heads(q, node.get("q_num_heads"))
    k = _heads(k, node.get("kv_num_heads"))
    v = _heads(v, node.get("kv_num_heads"))
    k = k if past_k is None else torch.cat([past_k.to(k.dtype), k], 2)
    v = v if past_v is None else torch.cat([past_v.to(v.dtype), v], 2)
    present_k, present_v = k, v
    if q.shape[1] != k.shape[1]:
        if not k.shape[1] or q.shape[1] % k.shape[1]:
            fail("shape_mismatch", f"{q.shape[1]} heads of queries, {k.shape[1]} of keys")
        times = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    scale = math.sqrt(node.get("scale") or 1 / math.sqrt(q.shape[-1]))
    dtype = q.dtype
    scores = torch.matmul(q * scale, (k * scale).transpose(-1, -2)).float()
    shown: dict[int, Tensor] = {_RAW: scores}
    if cap := node.get("softcap", 0.0):  # before the mask, whose -inf must stay
        scores = torch.tanh(scores / cap) * cap
    shown[_CAPPED] = scores
    bias = _bias(node, q, k.shape[-2], 0 if past_k is None else past_k.shape[2], mask)
    scores = scores if bias is None else scores + bias
    shown[_MASKED] = scores
    weights = torch.softmax(scores, -1)
    if bias is not None:  # a row that sees nothing gives zeros, not NaN
        blind = (bias == -math.inf).all(-1, keepdim=True)
        weights = torch.where(blind, torch.zeros_like(weights), weights)
    shown[_SOFTMAX] = weights
    y = torch.matmul(weights.to(dtype), v)
    if flat:
        y = y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1)
    return y, present_k, present_v, shown[node.get("qk_matmul_output_mode", 0)].to(dtype)


def _rotary(node: Node, inputs: Inputs, run: Run) -> Outputs:
    x, cos, sin, positions = given(inputs, 4)
    flat = x.ndim == 3
    x = _heads(x, node.get("num_heads")).transpose(1, 2)  # (batch, tokens, heads, size)
    turned = node.get("rotary_embedding_dim", 0) or x.shape[-1]
    if positions is not None:
        size = cos.shape[0]
        if not size or cos.shape != sin.shape:
            fail("shape_mismatch", f"{list(cos.shape)} and {list(sin.shape)} hold no positions")
        places = positions.to(torch.int64)
        held = ((places >= 0) & (places < size)).all()
        run.require(node, held, "out_of_range", "a position is out of range")
        places = places.clamp(0, max(size - 1, 0))
        cos, sin = cos[places], sin[places]
    if cos.ndim != 3 or cos.shape[-1] * 2 != turned:
        fail("shape_mismatch", f"{list(cos.shape)} does not turn {turned} elements")
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    head, rest = x[..., :turned], x[..., turned:]
    if node.get("interleaved", 0):
        a, b = head[..., 0::2], head[..., 1::2]
        head = torch.stack([cos * a - sin * b, sin * a + cos * b], -1).flatten(-2)
    else:
        a, b = head.chunk(2, -1)
        head = torch.cat([cos * a - sin * b, sin * a + cos * b], -1)
    y = torch.cat([head, rest.to(head.dtype)], -1)
    return (y.flatten(2) if flat else y.transpose(1, 2),)


def _refuses(node: Node) -> str | None:
    mode = node.get("qk_matmul_output_mode", 0)
    return None if _RAW <= mode <= _SOFTMAX else f"scores of the kind {mode}"


OPERATORS: Final[dict[str, Operator]] = {
    "Attention": Operator(_attention, width=Width.PRODUCT, refuses=_refuses),
    "RotaryEmbedding": Operator(_rotary, width=Width.WIDE),
}
