"""A small seeded discrete autoencoder in the layout of OpenAI's DALL·E: pickles of whole modules of a package that is
not there, and its formulas."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ENTRIES, WIDTH, FIRST, BLOCKS = 40, 8, 16, 2


def package(**classes: type) -> dict[str, ModuleType]:
    """Modules of `dall_e` with these classes, as pickles name them."""
    names = {"dall_e": {}, "dall_e.utils": {"Conv2d"}, "dall_e.encoder": {"Encoder", "EncoderBlock"},
             "dall_e.decoder": {"Decoder", "DecoderBlock"}}  # fmt: skip
    made = {name: ModuleType(name) for name in names}
    for name, inside in names.items():
        for one in inside:
            classes[one].__module__, classes[one].__qualname__ = name, one
            setattr(made[name], one, classes[one])
    return made


def layers(**inside: nn.Module) -> nn.Sequential:
    made = nn.Sequential()
    for name, one in inside.items():
        made.add_module(name, one)
    return made


def build() -> tuple[nn.Module, nn.Module, dict[str, ModuleType]]:
    """Encoder and decoder as the package makes them, but for their sizes."""

    class Conv2d(nn.Module):
        def __init__(self, into: int, out: int, kernel: int):
            super().__init__()
            self.device, self.use_float16 = torch.device("cpu"), True
            self.w = nn.Parameter(torch.randn(out, into, kernel, kernel) * 3 / (into * kernel**2) ** 0.5)
            self.b = nn.Parameter(0.02 * torch.randn(out))

    class EncoderBlock(nn.Module):
        kernels = (3, 3, 3, 1)

        def __init__(self, into: int, out: int):
            super().__init__()
            widths = [into, out // 4, out // 4, out // 4, out]
            self.id_path = Conv2d(into, out, 1) if into != out else nn.Identity()
            inside: dict[str, nn.Module] = {}
            for i in range(4):
                inside |= {
                    f"relu_{i + 1}": nn.ReLU(),
                    f"conv_{i + 1}": Conv2d(widths[i], widths[i + 1], self.kernels[i]),
                }
            self.res_path = layers(**inside)

    class DecoderBlock(EncoderBlock):
        kernels = (1, 3, 3, 3)

    def half(first: nn.Module, into: int, widths: list[int], out: int, block: Any, change: nn.Module) -> nn.Sequential:
        groups: dict[str, nn.Module] = {"input": first}
        for g, width in enumerate(widths, 1):
            made = {f"block_{i + 1}": block(width if i else into, width) for i in range(BLOCKS)}
            groups[f"group_{g}"], into = layers(**made, **({"change": change} if g < 4 else {})), width
        return layers(**groups, output=layers(relu=nn.ReLU(), conv=Conv2d(into, out, 1)))

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = [WIDTH * 2**i for i in range(4)]
            self.blocks = half(Conv2d(3, WIDTH, 7), WIDTH, widths, ENTRIES, EncoderBlock, nn.MaxPool2d(2))

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = [WIDTH * 2**i for i in (3, 2, 1, 0)]
            self.blocks = half(Conv2d(ENTRIES, FIRST, 1), FIRST, widths, 6, DecoderBlock, nn.Upsample(scale_factor=2))

    torch.manual_seed(93)
    classes = {one.__name__: one for one in (Conv2d, EncoderBlock, DecoderBlock, Encoder, Decoder)}
    return Encoder(), Decoder(), package(**classes)


def make_dvae(folder: Path) -> dict[str, Tensor]:
    """Write encoder.pkl and decoder.pkl; return their parameters with the file's name in front."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder, decoder, modules = build()
    before = set(sys.modules)
    sys.modules.update(modules)
    try:
        torch.save(encoder, folder / "encoder.pkl")
        torch.save(decoder, folder / "decoder.pkl")
    finally:
        for name in set(modules) - before:
            del sys.modules[name]
    both = {"encoder": encoder, "decoder": decoder}
    return {f"{half}.{name}": one.data for half, model in both.items() for name, one in model.named_parameters()}


def run(tensors: dict[str, Tensor], half: str, x: Tensor) -> Tensor:
    """The output of the last convolution, by the formulas."""

    def conv(name: str, x: Tensor) -> Tensor:
        w = tensors[f"{half}.blocks.{name}.w"]
        return F.conv2d(x, w, tensors[f"{half}.blocks.{name}.b"], padding=(w.shape[-1] - 1) // 2)

    x = conv("input", x)
    for g in range(1, 5):
        for i in range(1, BLOCKS + 1):
            name, y = f"group_{g}.block_{i}", x
            for k in range(1, 5):
                y = conv(f"{name}.res_path.conv_{k}", y.relu())
            x = (conv(f"{name}.id_path", x) if f"{half}.blocks.{name}.id_path.w" in tensors else x) + y / (
                4 * BLOCKS
            ) ** 2
        if g < 4:
            x = F.max_pool2d(x, 2) if half == "encoder" else x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return conv("output.conv", x.relu())
