"""Optimizers and learning-rate schedule shared by the recipes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import overload

import torch
from torch import Tensor, nn

KINDS = ("muon", "adamw")
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic whose five-fold iteration pushes singular values towards 1


def orthogonalize(matrix: Tensor, iterations: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return roughly the nearest (semi-)orthogonal matrices to `matrix` (…, M, N), by Newton-Schulz (Jordan 2024).

    dtype: of the products; bfloat16 is precise enough.
    """
    a, b, c = NEWTON_SCHULZ
    x = (matrix / (matrix.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, for weight matrices and convolutions (Jordan et al. 2024).

    A convolution (out, in, h, w) counts as a matrix (out, in·h·w). The update is scaled to the size that AdamW's has
    (0.2·√max(M, N), Liu et al. 2025, arXiv:2502.16982), so both take the same `lr` and decoupled `weight_decay`.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype  # of the products in here

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            same: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}  # of one shape: orthogonalised together
            for param in group["params"]:
                if param.grad is not None:
                    same.setdefault(param.flatten(1).shape, []).append((param, param.grad))
            for shape, pairs in same.items():
                updates = []
                for param, grad in pairs:
                    buffer = self.state[param].setdefault("momentum", torch.zeros_like(param))
                    buffer.lerp_(grad, 1 - group["momentum"])
                    updates.append(grad.lerp(buffer, group["momentum"]).flatten(1))  # Nesterov
                made = orthogonalize(torch.stack(updates), dtype=self.dtype) * (0.2 * math.sqrt(max(shape)))
                for (param, _), update in zip(pairs, made, strict=True):
                    param.mul_(1 - group["lr"] * group["weight_decay"])
                    param.add_(update.view_as(param), alpha=-group["lr"])
        return loss


class Optimizers:
    """AdamW for all trained parameters, or Muon for the inner matrices, with one learning rate.

    kind: "muon" leaves embeddings, heads, norms and biases to AdamW; "adamw" leaves it everything. Weight decay falls
    on matrices only. `names_for_adam`: parts of parameter names that are kept out of Muon. dtype: of Muon's products.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: str = "muon",
        *,
        lr: float,
        weight_decay: float,
        names_for_adam: tuple[str, ...] = (),
        dtype: torch.dtype = torch.float32,
    ):
        inner, outer, vectors = [], [], []
        for name, param in model.named_parameters():
            if not param.requires_grad:
                continue
            if param.ndim < 2:
                vectors.append(param)
            elif kind == "adamw" or any(part in name for part in names_for_adam):
                outer.append(param)
            else:
                inner.append(param)
        adam_groups = [{"params": outer, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.lr = lr
        self.all: list[torch.optim.Optimizer] = [torch.optim.AdamW(adam_groups, lr=lr, betas=(0.9, 0.95), eps=1e-8)]
        if inner:
            self.all.append(Muon(inner, lr=lr, weight_decay=weight_decay, dtype=dtype))
        self.params = [*inner, *outer, *vectors]

    def step(self, factor: float, clip: float = 1.0) -> float:
        """Take a step at `factor` times the base learning rate. Clip and clear the gradients, and return their norm."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.params, clip))
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = self.lr * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> list[dict[str, object]]:
        return [optimizer.state_dict() for optimizer in self.all]

    def load_state_dict(self, states: list[dict[str, object]]) -> None:
        for optimizer, state in zip(self.all, states, strict=True):
            optimizer.load_state_dict(state)


def learning_rate_factor(step: int, steps: int, warmup: int, cooldown: float = 0.5) -> float:
    """Return the factor of linear warm-up, a constant phase, and linear decay over the last `cooldown` of the run."""
    if step < warmup:
        return (step + 1) / warmup
    left = (steps - step) / (steps * cooldown)
    return max(0.01, min(1.0, left))
