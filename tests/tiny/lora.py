"""LoRA files of picture models with drawn values, in the names that diffusers, kohya's trainer and peft write."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

Name = Callable[[str, str, str], str | None]  # part, path of the module, side (down, up, alpha) → key


@dataclass
class Layer:
    """One module's matrices: down (r, in, …), up (out, r, …); alpha None is r."""

    part: str
    path: str
    down: Tensor
    up: Tensor
    alpha: float | None

    @property
    def delta(self) -> Tensor:
        """(alpha / r) · up · down, a convolution's as the two convolutions it stands for."""
        rank = len(self.down)
        scale = 1.0 if self.alpha is None else self.alpha / rank
        if self.down.dim() == 2:
            return scale * self.up @ self.down
        return scale * torch.einsum("or,rihw->oihw", self.up.flatten(1), self.down)


def draw_layers(
    models: dict[str, nn.Module],
    wanted: Callable[[str], bool],
    *,
    alpha: float | None = 2.0,
    own: bool = False,
    seed: int = 0,
) -> list[Layer]:
    """A layer of rank 3 for every linear or convolutional module that is wanted; `own`: ranks and alphas vary.

    Not every one is given by diffusers its own alpha: where they vary, the formula is the oracle (`Layer.delta`).
    """
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for part, model in models.items():
        for path, module in model.named_modules():
            if not isinstance(module, nn.Linear | nn.Conv2d) or not wanted(path):
                continue
            out, into, *kernel = module.weight.shape
            rank = 3 + len(layers) % 2 if own else 3
            down = torch.randn(rank, into, *kernel, generator=generator) / into**0.5
            up = torch.randn(out, rank, *[1 for _ in kernel], generator=generator) / rank
            layers.append(Layer(part, path, 0.5 * down, up, float(1 + len(layers) % 3) if own else alpha))
    assert layers
    return layers


def write(file: Path, layers: list[Layer], name: Name, metadata: dict[str, str] | None = None) -> Path:
    """The layers in a file; alphas only where the naming has a key for them."""
    tensors = {}
    for layer in layers:
        for side, value in (("down", layer.down), ("up", layer.up), ("alpha", layer.alpha)):
            key = name(layer.part, layer.path, side)
            if key is not None and value is not None:
                assert key not in tensors
                tensors[key] = torch.as_tensor(value).contiguous()
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata)
    return file


def with_layers(pipe: Any, layers: list[Layer], scale: float) -> Any:
    """A copy of a pipeline of diffusers with W + scale · (alpha / r) · up · down, written out."""
    made = copy.deepcopy(pipe)
    for layer in layers:
        getattr(made, layer.part).get_submodule(layer.path).weight.data += scale * layer.delta
    return made


def with_text_model(part: str, path: str) -> str:
    """A text encoder's path as files have it, whatever the installed transformers calls it."""
    return path if part == "unet" or path.startswith(("text_model.", "text_projection")) else f"text_model.{path}"


def diffusers_name(part: str, path: str, side: str) -> str | None:
    """`unet.mid_block.….to_q.lora_A.weight`."""
    end = {"down": "lora_A.weight", "up": "lora_B.weight"}.get(side)
    return end and f"{part}.{with_text_model(part, path)}.{end}"


def dotted_name(part: str, path: str, side: str) -> str | None:
    """`unet.….to_q.lora.down.weight`, and `lora_linear_layer` in text encoders: diffusers 0.19 to 0.25."""
    if side == "alpha":
        return None
    middle = "lora" if part == "unet" else "lora_linear_layer"
    return f"{part}.{with_text_model(part, path)}.{middle}.{side}.weight"


def processor_name(part: str, path: str, side: str) -> str | None:
    """`….attn1.processor.to_q_lora.down.weight`: the first files of diffusers, whose attention alone was trained."""
    if side == "alpha":
        return None
    stem, last = with_text_model(part, path).removesuffix(".0").rsplit(".", 1)
    if part == "unet":
        return f"unet.{stem}.processor.{last}_lora.{side}.weight"
    return f"{part}.{stem}.to_{last.removesuffix('_proj')}_lora.{side}.weight"


def bare_processor_name(part: str, path: str, side: str) -> str | None:
    """The same without a prefix, of a UNet."""
    name = processor_name(part, path, side)
    return name and name.removeprefix("unet.")


KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
ENDS = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}


def kohya_name(part: str, path: str, side: str) -> str:
    """`lora_unet_mid_block_…_to_q.lora_down.weight` and its `.alpha`."""
    return f"{KOHYA[part]}_{with_text_model(part, path).replace('.', '_')}.{ENDS[side]}"


def kohya_xl_name(part: str, path: str, side: str) -> str:
    """The same, the first of two text encoders being `lora_te1`."""
    return kohya_name(part, path, side).replace("lora_te_", "lora_te1_")


INSIDE = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def original_path(path: str, layers: int, attended: dict[str, bool]) -> str:
    """A UNet module's path in the original layout, by counting. attended: whether `up_blocks.N` has attention."""
    words = path.split(".")
    fixed = {
        "conv_in": "input_blocks.0.0",
        "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
    }
    if path in fixed:
        return fixed[path]
    if words[0] == "mid_block":
        place = "middle_block.1" if words[1] == "attentions" else f"middle_block.{2 * int(words[2])}"
        kind, rest = words[1], words[3:]
    else:
        level, kind, number, rest = int(words[1]), words[2], int(words[3]), words[4:]
        if words[0] == "down_blocks":
            count = 1 + level * (layers + 1) + (layers if kind == "downsamplers" else number)
            place = f"input_blocks.{count}.{1 if kind == 'attentions' else 0}"
        else:
            count = level * (layers + 1) + (layers if kind == "upsamplers" else number)
            inner = {"resnets": 0, "attentions": 1}.get(kind, 2 if attended[f"up_blocks.{level}"] else 1)
            place = f"output_blocks.{count}.{inner}"
    if kind == "resnets":
        rest = [INSIDE[rest[0]]]
    if kind == "downsamplers":
        rest = ["op"]
    return ".".join([place, *rest])


def original_names(unet: nn.Module) -> Name:
    """`lora_unet_input_blocks_4_1_…`: kohya's SDXL files. Names for a UNet of these blocks."""
    layers = unet.config.layers_per_block
    attended = {f"up_blocks.{i}": hasattr(block, "attentions") for i, block in enumerate(unet.up_blocks)}

    def name(part: str, path: str, side: str) -> str:
        if part != "unet":
            return kohya_xl_name(part, path, side)
        return f"lora_unet_{original_path(path, layers, attended).replace('.', '_')}.{ENDS[side]}"

    return name
