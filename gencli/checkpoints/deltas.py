"""What adapters add to a weight W (out, in, …), by method, and DoRA's magnitudes around it.

LoRA (Hu et al. 2021): up · down, of a convolution up · mid · down where there is a mid (Tucker's form).
LoHa (Hyeon-Woo et al. 2022, FedPara): (w1_a · w1_b) ∘ (w2_a · w2_b), elementwise. LoKr (Yeh et al. 2024, LyCORIS,
arXiv 2309.14859): w1 ⊗ w2, Kronecker's product, each whole or a product. DoRA (Liu et al. 2024, arXiv 2402.09353):
m · (W + Δ) / ‖W + Δ‖, a norm for each output. All in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gencli.checkpoints.tensors import Tensors

MAGNITUDE, DORA_SCALE, ALPHA = "magnitude", "dora_scale", "alpha"  # sides that are no factors
Sides = Mapping[str, Tensor]


@dataclass(frozen=True)
class Method:
    """name: in messages. needs: sides that it cannot do without, each one of several. rank: sides whose first dimension
    is r. compute: sides → Δ, unscaled, (out, in, …) or (out, in·…)."""

    name: str
    needs: tuple[tuple[str, ...], ...]
    rank: tuple[str, ...]
    compute: Callable[[Sides], Tensor]


def _lora(sides: Sides) -> Tensor:
    down, up = sides["down"].flatten(1), sides["up"].flatten(1)
    if "mid" in sides:
        return torch.einsum("om,mnhw,ni->oihw", up, sides["mid"], down)
    return up @ down


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """core (p, q, h, w), a (p, out), b (q, in) → (out, in, h, w)."""
    return torch.einsum("pqhw,po,qi->oihw", core, a, b)


def _loha(sides: Sides) -> Tensor:
    factors = []
    for i in "12":
        a, b, core = sides[f"hada_w{i}_a"], sides[f"hada_w{i}_b"], sides.get(f"hada_t{i}")
        factors.append(a @ b if core is None else _tucker(core, a, b))
    return factors[0] * factors[1]


def _lokr(sides: Sides) -> Tensor:
    w1 = sides["lokr_w1"] if "lokr_w1" in sides else sides["lokr_w1_a"] @ sides["lokr_w1_b"]
    if "lokr_w2" in sides:
        w2 = sides["lokr_w2"]
    elif "lokr_t2" in sides:
        w2 = _tucker(sides["lokr_t2"], sides["lokr_w2_a"], sides["lokr_w2_b"])
    else:
        w2 = sides["lokr_w2_a"] @ sides["lokr_w2_b"]
    return torch.kron(w1, w2.flatten(1))


LORA = Method("LoRA", (("down",), ("up",)), ("down",), _lora)
LOHA = Method("LoHa", tuple((f"hada_w{i}_{ab}",) for i in "12" for ab in "ab"), ("hada_w1_b",), _loha)
LOKR = Method(
    "LoKr",
    (("lokr_w1", "lokr_w1_a"), ("lokr_w1", "lokr_w1_b"), ("lokr_w2", "lokr_w2_a"), ("lokr_w2", "lokr_w2_b")),
    ("lokr_w1_b", "lokr_w2_b"),
    _lokr,
)


def method_of(sides: Mapping[str, object]) -> Method:
    """Return the method that sides of these names are of."""
    return next((one for one in (LOHA, LOKR) if any(side.startswith(one.needs[0][0][:5]) for side in sides)), LORA)


@dataclass(frozen=True)
class Delta:
    """What one adapter does to one weight. names: side → name of its tensor; those that are no factors too. cut: the
    rows that are this weight's, of an adapter of several weights in one; None: all."""

    tensors: Tensors
    names: Mapping[str, str]
    scale: float
    cut: Callable[[Tensor], Tensor] | None = None

    def shape(self) -> tuple[int, ...]:
        """Return the shape of Δ before it is cut, from headers. Raise RuntimeError for sides that do not fit."""
        sides = {side: torch.empty(self.tensors.shape(name), device="meta") for side, name in self.names.items()}
        return tuple(method_of(sides).compute(sides).shape)

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Return (down, up), (r, in) and (out, r), of which the change is up · down; None for one of another form."""
        if method_of(self.names) is not LORA or self.names.keys() - {"down", "up", ALPHA}:
            return None
        down, up = (self.tensors.get(self.names[side]).float().flatten(1) for side in ("down", "up"))
        return down, self.scale * (up if self.cut is None else self.cut(up))

    def apply(self, weight: Tensor) -> Tensor:
        """Return the changed weight (out, in, …) of a weight in float32."""
        sides = {
            side: self.tensors.get(name).to(weight.device, torch.float32)
            for side, name in self.names.items()
            if side != ALPHA
        }
        delta, magnitude = method_of(sides).compute(sides), sides.get(MAGNITUDE, sides.get(DORA_SCALE))
        if self.cut is not None:
            delta = self.cut(delta)
            magnitude = None if magnitude is None else self.cut(magnitude.reshape(-1, 1))
        new = weight + (delta * self.scale).reshape(weight.shape)
        if magnitude is None:
            return new
        # kohya's and LyCORIS' may be one for each input instead, as (1, in, …).
        by_input = MAGNITUDE not in sides and magnitude.dim() > 1 and magnitude.shape[0] != weight.shape[0]
        axis = 1 if by_input else 0
        flat = new.transpose(0, axis).flatten(1)
        norms = flat.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        scaled = flat / norms * magnitude.flatten()[:, None]
        return scaled.view(new.transpose(0, axis).shape).transpose(0, axis)
