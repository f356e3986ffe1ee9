"""guided-diffusion's networks once more, as plain functions of a table of tensors: the oracle of our modules.

Every tensor is made, seeded, when its name is first asked for, so that one run of a network writes its whole
checkpoint, under the original's names; names and shapes come from here and not from gencli. Attention runs head by
head. Written from the description in Dhariwal & Nichol 2021 (appendices A and H) and the original's flags.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Reference:
    """One network. channels: of the first level; mult, depth: levels and residual blocks in each; attended: by how much
    levels with attention are smaller than the picture. heads: their number, or `head` their width."""

    channels: int = 32
    mult: tuple[float, ...] = (1, 2)
    depth: int = 1
    attended: tuple[int, ...] = (2,)
    inputs: int = 3
    outputs: int = 6
    classes: int | None = None
    heads: int = 1
    head: int | None = None
    new_order: bool = False
    scale_shift: bool = True
    updown: bool = True
    pool: str | None = None  # of a classifier
    seed: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def p(self, name: str, *shape: int) -> Tensor:
        """The tensor of that name; made when there is none."""
        if name not in self.state:
            drawn = torch.randn(shape, generator=self.generator)
            if len(shape) > 1:
                drawn /= math.sqrt(math.prod(shape[1:]))
            elif name.endswith("weight"):
                drawn = 1 + 0.2 * drawn
            else:
                drawn *= 0.2
            self.state[name] = drawn
        assert self.state[name].shape == shape, name
        return self.state[name]

    def conv(self, name: str, x: Tensor, out: int, size: int = 3, **options: int) -> Tensor:
        weight = self.p(f"{name}.weight", out, x.shape[1], size, size)
        return F.conv2d(x, weight, self.p(f"{name}.bias", out), padding=size // 2, **options)

    def linear(self, name: str, x: Tensor, out: int) -> Tensor:
        return F.linear(x, self.p(f"{name}.weight", out, x.shape[1]), self.p(f"{name}.bias", out))

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Group norm of 32 groups, by its definition."""
        C = x.shape[1]
        grouped = x.reshape(x.shape[0], 32, -1)
        mean, var = grouped.mean(2, keepdim=True), grouped.var(2, keepdim=True, unbiased=False)
        flat = ((grouped - mean) / torch.sqrt(var + 1e-5)).reshape(x.shape)
        shape = (1, C, *[1] * (x.ndim - 2))
        return flat * self.p(f"{name}.weight", C).reshape(shape) + self.p(f"{name}.bias", C).reshape(shape)

    def resblock(self, name: str, x: Tensor, emb: Tensor, out: int, resize: str = "") -> Tensor:
        def sized(y: Tensor) -> Tensor:
            if resize == "down":
                return (y[..., ::2, ::2] + y[..., 1::2, ::2] + y[..., ::2, 1::2] + y[..., 1::2, 1::2]) / 4
            return y.repeat_interleave(2, 2).repeat_interleave(2, 3) if resize == "up" else y

        h = self.conv(f"{name}.in_layers.2", sized(F.silu(self.norm(f"{name}.in_layers.0", x))), out)
        told = self.linear(f"{name}.emb_layers.1", F.silu(emb), out * (2 if self.scale_shift else 1))[..., None, None]
        if self.scale_shift:
            h = self.norm(f"{name}.out_layers.0", h) * (1 + told[:, :out]) + told[:, out:]
        else:
            h = self.norm(f"{name}.out_layers.0", h + told)
        h = self.conv(f"{name}.out_layers.3", F.silu(h), out)
        return h + (sized(x) if x.shape[1] == out else self.conv(f"{name}.skip_connection", sized(x), out, 1))

    def heads_of(self, channels: int) -> int:
        return self.heads if self.head is None else channels // self.head

    def mixed(self, qkv: Tensor, new_order: bool) -> Tensor:
        """Attention over (B, 3 C, T), one head after the other."""
        C = qkv.shape[1] // 3
        heads = self.heads_of(C)
        width = C // heads
        parts = []
        for h in range(heads):
            if new_order:
                q, k, v = (qkv[:, i * C + h * width :][:, :width] for i in range(3))
            else:
                q, k, v = (qkv[:, (3 * h + i) * width :][:, :width] for i in range(3))
            weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(width), dim=-1)
            parts.append(v @ weights.transpose(1, 2))
        return torch.cat(parts, 1)

    def attention(self, name: str, x: Tensor) -> Tensor:
        C = x.shape[1]
        flat = self.norm(f"{name}.norm", x).flatten(2)
        qkv = F.conv1d(flat, self.p(f"{name}.qkv.weight", 3 * C, C, 1), self.p(f"{name}.qkv.bias", 3 * C))
        h = self.mixed(qkv, self.new_order)
        h = F.conv1d(h, self.p(f"{name}.proj_out.weight", C, C, 1), self.p(f"{name}.proj_out.bias", C))
        return x + h.reshape(x.shape)

    def embed(self, t: Tensor) -> Tensor:
        half = self.channels // 2
        angles = t[:, None] * torch.tensor([10000 ** (-i / half) for i in range(half)])
        h = self.linear("time_embed.0", torch.cat([angles.cos(), angles.sin()], 1), 4 * self.channels)
        return self.linear("time_embed.2", F.silu(h), 4 * self.channels)

    def down(self, x: Tensor, emb: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The way down and the middle: its end, and every state on the way."""
        widths = [int(mult * self.channels) for mult in self.mult]
        states = [self.conv("input_blocks.0.0", x, widths[0])]
        for level, width in enumerate(widths):
            for _ in range(self.depth):
                name = f"input_blocks.{len(states)}"
                h = self.resblock(f"{name}.0", states[-1], emb, width)
                states.append(self.attention(f"{name}.1", h) if 2**level in self.attended else h)
            if level < len(widths) - 1:
                name = f"input_blocks.{len(states)}.0"
                if self.updown:
                    states.append(self.resblock(name, states[-1], emb, width, "down"))
                else:
                    states.append(self.conv(f"{name}.op", states[-1], width, stride=2))
        h = self.resblock("middle_block.0", states[-1], emb, widths[-1])
        h = self.attention("middle_block.1", h)
        return self.resblock("middle_block.2", h, emb, widths[-1]), states

    def unet(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        emb = self.embed(t)
        if self.classes is not None:
            emb = emb + self.p("label_emb.weight", self.classes, 4 * self.channels)[y]
        h, states = self.down(x, emb)
        block = 0
        for level in reversed(range(len(self.mult))):
            width = int(self.mult[level] * self.channels)
            for i in range(self.depth + 1):
                name, inner = f"output_blocks.{block}", 1
                h = self.resblock(f"{name}.0", torch.cat([h, states.pop()], 1), emb, width)
                if 2**level in self.attended:
                    h, inner = self.attention(f"{name}.1", h), 2
                if level and i == self.depth:
                    if self.updown:
                        h = self.resblock(f"{name}.{inner}", h, emb, width, "up")
                    else:
                        large = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
                        h = self.conv(f"{name}.{inner}.conv", large, width)
                block += 1
        return self.conv("out.2", F.silu(self.norm("out.0", h)), self.outputs)

    def classifier(self, x: Tensor, t: Tensor) -> Tensor:
        """Logits (B, outputs)."""
        h, states = self.down(x, self.embed(t))
        C = h.shape[1]
        if self.pool == "attention":
            h = F.silu(self.norm("out.0", h)).flatten(2)
            h = torch.cat([h.mean(2, keepdim=True), h], 2)
            h = h + self.p("out.2.positional_embedding", C, h.shape[2])
            weight, bias = self.p("out.2.qkv_proj.weight", 3 * C, C, 1), self.p("out.2.qkv_proj.bias", 3 * C)
            h = self.mixed(F.conv1d(h, weight, bias), True)
            weight, bias = self.p("out.2.c_proj.weight", self.outputs, C, 1), self.p("out.2.c_proj.bias", self.outputs)
            return F.conv1d(h, weight, bias)[:, :, 0]
        if self.pool == "adaptive":
            h = F.silu(self.norm("out.0", h)).mean((2, 3), keepdim=True)
            return self.conv("out.3", h, self.outputs, 1)[:, :, 0, 0]
        h = torch.cat([state.mean((2, 3)) for state in [*states, h]], 1)
        h = self.linear("out.0", h, 2048)
        if self.pool == "spatial":
            return self.linear("out.2", F.relu(h), self.outputs)
        return self.linear("out.3", F.silu(self.norm("out.1", h)), self.outputs)
