"""Causal attention as decoders need it: grouped queries, a cache before the new positions, windows, soft-capping.

B: batch, T: new positions, S: all positions, H: query heads, K: key/value heads, D: size of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 512  # queries at once where a mask is needed: bounds the memory of long prompts


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None = None, softcap: float | None = None
) -> Tensor:
    """Each of the last T of S positions attends to those up to itself (at most `window` of them, itself included).

    q (B, T, H, D), k and v (B, K, S, D) with H a multiple of K → (B, T, H * D).
    softcap: scores become softcap * tanh(scores / softcap) (Gemma 2, arXiv 2408.00118).
    """
    B, T, H, D = q.shape
    K, S = k.shape[1], k.shape[2]
    if T == 1:  # one position sees everything: the heads of a group stand as rows, and no key is copied for them
        if window is not None and window < S:
            k, v = k[:, :, S - window :], v[:, :, S - window :]
        y = _scores(q.view(B, K, H // K, D), k, v, None, scale, softcap)
        return y.reshape(B, 1, H * D)
    q = q.transpose(1, 2)
    if T == S and softcap is None and (window is None or window >= S):
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=K < H)
        return y.transpose(1, 2).reshape(B, T, H * D)
    parts = []
    for low in range(S - T, S, BLOCK):  # absolute positions of the queries
        high = min(low + BLOCK, S)
        first = 0 if window is None else max(0, low - window + 1)
        distance = torch.arange(low, high, device=q.device)[:, None] - torch.arange(first, high, device=q.device)
        mask = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        block = q[:, :, low - (S - T) : high - (S - T)]
        parts.append(_scores(block, k[:, :, first:high], v[:, :, first:high], mask, scale, softcap))
    return torch.cat(parts, dim=2).transpose(1, 2).reshape(B, T, H * D)


def _scores(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """Attention of q (B, H, T, D) to all of k and v (B, K, S, D) that `mask` (T, S) lets through."""
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=k.shape[1] < q.shape[1])
    groups = (*k.shape[:2], -1, *q.shape[2:])  # (B, K, H / K, T, D)
    scores = q.reshape(groups) @ k.unsqueeze(2).transpose(-1, -2) * (scale / softcap)
    scores = torch.tanh(scores) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
    return (weights @ v.unsqueeze(2)).reshape(q.shape)
