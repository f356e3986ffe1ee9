"""Attention: to all positions, as of encoders and images, and causal, as of decoders (grouped queries, a cache before
the new positions, windows, soft-capping).

B: batch, T: new positions, S: all positions, H: query heads, K: key/value heads, D: size of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 512  # queries per product if a mask is needed: bounds the memory of long prompts


def multi_head_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Return attention of q (B, T, H * D) to k and v (B, S, H * D): (B, T, H * D). Softmax is in float32 for any dtype.

    mask (B or 1, 1 or H, 1 or T, S): true where attention goes, or numbers that are added to the scores. scale: the
    factor of the scores, by default D^-½.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, H, T, D)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)
    return y.transpose(1, 2).flatten(2)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    seen: int | None = None,
    visible: Tensor | None = None,
) -> Tensor:
    """Return causal attention: each of the last T of S positions attends to those up to itself.

    q (B, T, H, D), k and v (B, K, S, D) with H a multiple of K → (B, T, H * D), with v's D. window: how many positions
    a query attends to at most, its own included. softcap: scores become softcap * tanh(scores / softcap) (Gemma 2,
    arXiv 2408.00118). sinks (H,): a score of each head that has no value (gpt-oss, arXiv 2508.10925). visible (B, 1, 1,
    S), for T = 1: which positions each row attends to, in place of a window.
    """
    B, T, H, D = q.shape
    K, S = k.shape[1], k.shape[2]
    if T == 1:  # no mask: the query heads of a group become rows, so that no key is copied for them
        if window is not None and window < S and visible is None:
            k, v = k[:, :, S - window :], v[:, :, S - window :]
        sinks = None if sinks is None else sinks.view(1, K, H // K, 1)
        y = _scores(q.view(B, K, H // K, D), k, v, visible, scale, softcap, sinks)
        return y.reshape(B, 1, -1)
    q = q.transpose(1, 2)
    seen = S if seen is None else seen
    sinks = None if sinks is None else sinks.view(1, H, 1, 1)
    if T == S == seen and softcap is None and sinks is None and (window is None or window >= S):
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=K < H)
        return y.transpose(1, 2).reshape(B, T, -1)
    parts = []
    for low in range(S - T, S, BLOCK):  # absolute positions of the queries
        high = min(low + BLOCK, S)
        first = 0 if window is None else max(0, low - window + 1)
        last = min(high, seen)
        distance = torch.arange(low, high, device=q.device)[:, None] - torch.arange(first, last, device=q.device)
        mask = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        block = q[:, :, low - (S - T) : high - (S - T)]
        parts.append(_scores(block, k[:, :, first:last], v[:, :, first:last], mask, scale, softcap, sinks))
    return torch.cat(parts, dim=2).transpose(1, 2).reshape(B, T, -1)


def _scores(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Return attention of q (B, H, T, D) to k and v (B, K, S, D) where `mask` (…, T, S) is true, or everywhere.

    sinks: scores without a value, in a shape of q's with D = 1. They are those of one more key, whose value is 0: all
    vectors have one more number, in which that key has 1 and q the score.
    """
    if sinks is not None:
        q = torch.cat((q, (sinks / scale).to(q.dtype).expand(*q.shape[:-1], 1)), dim=-1)
        k, v = F.pad(k, (0, 1, 0, 1)), F.pad(v, (0, 1, 0, 1))
        k[..., -1, -1] = 1
        mask = None if mask is None else F.pad(mask, (0, 1), value=True)
        return _scores(q, k, v, mask, scale, softcap, None)[..., :-1]
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=k.shape[1] < q.shape[1])
    groups = (*k.shape[:2], -1, *q.shape[2:])  # (B, K, H / K, T, D)
    scores = q.reshape(groups) @ k.unsqueeze(2).transpose(-1, -2) * (scale / softcap)
    scores = torch.tanh(scores) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(-3), float("-inf"))
    weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
    return (weights @ v.unsqueeze(2)).reshape(q.shape)
