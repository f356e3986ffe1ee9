"""A step of training, forward and back, in bfloat16 against float32: `python -m benchmarks.bench_train`.

The UNet with its text encoder behind `weights/emoji` (64 captions) and the GPT-2 behind `weights/stories` (8 × 256
tokens), side by side: one step of each precision after the other, medians of 9.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gencli.checkpoints.find import find
from gencli.spec import ModelSpec
from gencli.text.load import open_model as open_text_model
from gencli.train.precision import make_trainable, pick_precision
from gencli.train.text_to_image import open_model

ROUNDS, WARM = 11, 2


def unet() -> tuple[nn.Module, Callable[[], Tensor]]:
    model = open_model("emoji", pick_precision("cpu", "float32"), 128)
    ids = torch.tensor([model.encode_prompt("a cat and a dog")] * 64)
    latents = torch.randn(64, 4, 16, 16).contiguous(memory_format=torch.channels_last)
    timesteps = torch.randint(0, 1000, (64,)).float()
    return model.network, lambda: model.network(ids, latents, timesteps)


def decoder() -> tuple[nn.Module, Callable[[], Tensor]]:
    module = open_text_model(find("stories"), ModelSpec(dtype="float32")).module
    make_trainable(module)
    ids = torch.randint(0, 1000, (8, 256))

    def forward() -> Tensor:
        made = module(ids)
        return made if isinstance(made, Tensor) else made[0]

    return module, forward


def main() -> None:
    precisions = {name: pick_precision("cpu", name) for name in ("float32", "bfloat16")}
    for name, make in (("emoji", unet), ("stories", decoder)):
        module, forward = make()
        took: dict[str, list[float]] = {kind: [] for kind in precisions}
        for number in range(ROUNDS):
            for kind, precision in precisions.items():
                begun = time.perf_counter()
                with precision.autocast():
                    made = forward()
                made.float().square().mean().backward()
                module.zero_grad(set_to_none=True)
                if number >= WARM:
                    took[kind].append(time.perf_counter() - begun)
        middle = {kind: statistics.median(some) for kind, some in took.items()}
        print(f"{name}: {middle['float32']:.3f} s a step in float32, {middle['bfloat16']:.3f} in bfloat16, "
              f"{middle['bfloat16'] / middle['float32']:.2f} of it")  # fmt: skip


if __name__ == "__main__":
    main()
