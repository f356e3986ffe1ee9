"""The gated delta rule (Yang, Kautz & Hatamizadeh 2024, "Gated Delta Networks", arXiv 2412.06464): a memory of one
matrix for each head, which forgets a little, and then learns the value of a key as far as it does not know it yet.

    S ← exp(g) S,  S ← S + k ⊗ β (v - Sᵀk),  y = Sᵀq

B: batch, H: heads, T: new positions, K: size of a key, V: size of a value. All numbers are float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64  # positions whose changes are solved for together
BLOCK = 16 * CHUNK  # positions in the products at once: bounds the memory of long prompts


def step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Read one position by the formula: the recurrent form.

    state (B, H, K, V), q and k (B, H, 1, K), v (B, H, 1, V), g and beta (B, H, 1) → y (B, H, 1, V) and the next state.
    """
    decay, rate = g.exp().unsqueeze(-1), beta.unsqueeze(-1)  # (B, H, 1, 1)
    known, asked = (torch.cat((k, q), dim=2) @ state * decay).split(1, dim=2)  # one walk through the state
    change = (v - known) * rate
    y = asked + (q * k).sum(-1, keepdim=True) * change
    return y, state * decay + k.transpose(-1, -2) * change


def read(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Read T positions by products of whole chunks: shapes as for `step`, with T in place of 1."""
    T, parts, start = q.shape[2], list[Tensor](), 0
    while start < T:
        left = min(T - start, BLOCK)
        stop = start + (left // CHUNK * CHUNK or left)
        some = (x[:, :, start:stop] for x in (q, k, v, g, beta))
        y, state = _chunks(state, *some)
        parts.append(y)
        start = stop
    return torch.cat(parts, dim=2), state


def _chunks(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Read whole chunks, or a single one that is shorter (arXiv 2412.06464, section 3.3).

    Within a chunk the change by position i is u_i - w_i S of the state S before the chunk. As each one depends on those
    before it, u and w are the solution of a triangular system.
    """
    size = min(CHUNK, q.shape[2])
    q, k, v, g, beta = (x.unflatten(2, (-1, size)) for x in (q, k, v, g, beta))  # (B, H, chunks, size, …)
    exact = g if g.device.type == "mps" else g.double()  # which has no such numbers
    total = exact.cumsum(-1)  # of heads that forget at once the sums are large, and their differences small
    since = (total.unsqueeze(-1) - total.unsqueeze(-2)).to(g.dtype).tril().exp().tril()  # (…, i, j): left of j at i
    whole, rest, rate = total.exp().to(g.dtype).unsqueeze(-1), since[..., -1, :, None], beta.unsqueeze(-1)
    among = k * rate @ k.transpose(-1, -2) * since
    both = torch.cat((v * rate, k * rate * whole), dim=-1)
    both = torch.linalg.solve_triangular(among, both, upper=False, unitriangular=True)
    u, w = both.split((v.shape[-1], k.shape[-1]), dim=-1)
    inside, q = q @ k.transpose(-1, -2) * since, q * whole
    k = (k * rest).transpose(-1, -2)
    found = []
    for i in range(q.shape[2]):
        change = u[:, :, i] - w[:, :, i] @ state
        found.append(q[:, :, i] @ state + inside[:, :, i] @ change)
        state = state * whole[:, :, i, -1:] + k[:, :, i] @ change
    return torch.cat(found, dim=2), state
