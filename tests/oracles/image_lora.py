"""LoRA files of image models by diffusers and peft: which modules they change, and to what."""

from __future__ import annotations

import copy
import re

import torch

from gencli.checkpoints.find import Source
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint

ATTENTION = re.compile(r".*(attn\d\.(to_[qkv]|to_out\.0)|self_attn\.(q|k|v|out)_proj)")
PROJECTIONS = re.compile(r".*(proj_in|proj_out|net\.0\.proj|net\.2|fc1|fc2)")
SCALE = 0.7


def opened(folder, *adapters, **more):
    return load(open_image_checkpoint(Source(folder.name, folder, "folder"), **more), device="cpu", loras=adapters)


def wanted(*patterns, even=False):
    """Modules of these names; `even`: in every second block alone. diffusers tells a file's kind by its `to_out`s."""

    def check(path):
        block = re.match(r".*?(?:layers|attentions|resnets)\.(\d+)", path)
        return any(pattern.fullmatch(path) for pattern in patterns) and not (even and block and int(block[1]) % 2)

    return check


def parts_of(pipe, names=("unet", "text_encoder")):
    return {name: getattr(pipe, name) for name in names}


def by_diffusers(pipe, *files, scales=(SCALE,)):
    """The pipeline with LoRA files loaded and fused."""
    made = copy.deepcopy(pipe)
    names = [str(i) for i in range(len(files))]
    for name, file in zip(names, files, strict=True):
        made.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    made.set_adapters(names, list(scales))
    made.fuse_lora(components=[name for name in made._lora_loadable_modules if name in made.components])
    made.unload_lora_weights()
    return made


def ours_of(pipeline):
    """Our modules by part."""
    conditioner = pipeline.main.conditioner
    encoders = dict(
        zip(("text_encoder", "text_encoder_2"), (encoder for _, encoder in conditioner.text_encoders), strict=False)
    )
    return {"unet": pipeline.main.network, **encoders}


def assert_same_weights(pipeline, pipe, base, changed):
    """Every weight of every part is theirs, and those that were to change did."""
    for part, model in ours_of(pipeline).items():
        theirs = {name.removeprefix("text_model."): value for name, value in getattr(pipe, part).state_dict().items()}
        before = {name.removeprefix("text_model."): value for name, value in getattr(base, part).state_dict().items()}
        ours = model.state_dict()
        assert set(ours) == {name for name in theirs if not name.endswith("position_ids")}
        for name, value in ours.items():
            torch.testing.assert_close(
                value, theirs[name], atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )
            touched = (part, name.removesuffix(".weight")) in changed
            assert touched == bool((value - before[name]).abs().max() > 1e-3), name


def changed_by(layers):
    return {(layer.part, layer.path.removeprefix("text_model.")) for layer in layers}


ALL = re.compile(r".*")
