"""LoHa, LoKr and DoRA merged into image models, against peft where it has them and by their formulas else; and files in
the names of LyCORIS, ComfyUI and peft with adapters of other names.

Weights are equal within what two orders of a sum in float32 differ by.
"""

from __future__ import annotations

import copy
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from gencli.checkpoints.assets import LoraRef
from tests.oracles.image_lora import ATTENTION, SCALE, assert_same_weights, changed_by, opened, parts_of, wanted
from tests.oracles.libraries import peft
from tests.tiny.image import make_stable_diffusion
from tests.tiny.lora import diffusers_name, draw_layers, kohya_name, with_layers, write

TARGETS = ["to_q", "to_out.0", "conv1", "proj_in", "net.2"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lycoris") / "sd"
    return folder, make_stable_diffusion(folder)


CONFIGS = {
    "LoHa": lambda: peft.LoHaConfig(r=3, alpha=5, target_modules=TARGETS),
    "LoHa, effective": lambda: peft.LoHaConfig(r=3, alpha=5, target_modules=TARGETS, use_effective_conv2d=True),
    "LoKr": lambda: peft.LoKrConfig(r=2, alpha=5, target_modules=TARGETS),
    "LoKr, both": lambda: peft.LoKrConfig(
        r=1, alpha=5, target_modules=TARGETS, decompose_both=True, decompose_factor=4
    ),
    "LoKr, effective": lambda: peft.LoKrConfig(r=1, alpha=5, target_modules=TARGETS, use_effective_conv2d=True),
    "LoKr, whole": lambda: peft.LoKrConfig(r=64, alpha=5, target_modules=TARGETS),
    "DoRA": lambda: peft.LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, use_dora=True),
    "DoRA, rank-stabilised": lambda: peft.LoraConfig(r=3, target_modules=TARGETS, use_dora=True, use_rslora=True),
}


def adapt(model, config):
    made = peft.get_peft_model(copy.deepcopy(model), config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in made.named_parameters():
        if re.search("lora_[AB]|hada_|lokr_", name):
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        elif "magnitude" in name:
            parameter.data *= 1 + 0.3 * torch.rand(parameter.shape, generator=generator)
    return made


@pytest.mark.parametrize("method", CONFIGS)
def test_folders_of_peft(base, tmp_path, method):
    folder, pipe = base
    adapted = adapt(pipe.unet, CONFIGS[method]())
    adapted.save_pretrained(tmp_path)
    theirs = copy.deepcopy(pipe)
    theirs.unet = adapted.merge_and_unload()
    names = load_file(tmp_path / "adapter_model.safetensors")
    changed = {("unet", re.sub(r"^base_model\.model\.|\.(lora|hada|lokr)_\w+(\.weight)?$", "", name)) for name in names}
    assert len(changed) > 5
    assert_same_weights(opened(folder, LoraRef(tmp_path)), theirs, pipe, changed)


def drawn(*shape, seed=0):
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def formula(method, weight, alpha, scale):
    """Tensors of a module by their sides, and the weight with them, written out after LyCORIS' modules."""
    out, into, *kernel = weight.shape
    size = into * (kernel[0] * kernel[1] if kernel else 1)
    if method == "LoHa":
        sides = {
            f"hada_w{i}_{ab}": drawn(*((out, 3) if ab == "a" else (3, size)), seed=len(ab) + 2 * i)
            for i in (1, 2)
            for ab in "ab"
        }
        delta = (sides["hada_w1_a"] @ sides["hada_w1_b"]) * (sides["hada_w2_a"] @ sides["hada_w2_b"]) * alpha / 3
    elif method == "LoHa, Tucker":
        sides = {f"hada_t{i}": drawn(3, 3, *kernel, seed=i) for i in (1, 2)}
        sides |= {f"hada_w{i}_a": drawn(3, out, seed=2 + i) for i in (1, 2)}
        sides |= {f"hada_w{i}_b": drawn(3, into, seed=4 + i) for i in (1, 2)}
        parts = [
            sum(torch.einsum("o,i,hw->oihw", sides[f"hada_w{i}_a"][p], sides[f"hada_w{i}_b"][q], core[p, q])
                for p in range(3) for q in range(3)) for i in (1, 2) for core in [sides[f"hada_t{i}"]]
        ]  # fmt: skip
        delta = parts[0] * parts[1] * alpha / 3
    elif method.startswith("LoKr"):
        sides = {
            "lokr_w1": drawn(4, 2),
            "lokr_w2_a": drawn(out // 4, 3, seed=1),
            "lokr_w2_b": drawn(3, size // 2, seed=2),
        }
        if method == "LoKr, whole":  # alpha counts for nothing there
            sides = {"lokr_w1": drawn(4, 2), "lokr_w2": drawn(out // 4, into // 2, *kernel, seed=1)}
        w2 = sides["lokr_w2"].flatten(1) if "lokr_w2" in sides else sides["lokr_w2_a"] @ sides["lokr_w2_b"]
        delta = torch.cat([torch.cat([w * w2 for w in row], 1) for row in sides["lokr_w1"]], 0)
        delta = delta * (1 if "lokr_w2" in sides else alpha / 3)
    elif method == "LoCon, Tucker":
        sides = {"lora_down.weight": drawn(3, into, 1, 1), "lora_mid.weight": drawn(3, 3, *kernel, seed=1),
                 "lora_up.weight": drawn(out, 3, 1, 1, seed=2)}  # fmt: skip
        convolved = torch.einsum("om,mnhw->onhw", sides["lora_up.weight"].flatten(1), sides["lora_mid.weight"])
        delta = torch.einsum("onhw,ni->oihw", convolved, sides["lora_down.weight"].flatten(1)) * alpha / 3
    else:
        sides = {
            "lora_down.weight": drawn(3, into, *kernel),
            "lora_up.weight": drawn(out, 3, *(1 for _ in kernel), seed=1),
        }
        delta = sides["lora_up.weight"].flatten(1) @ sides["lora_down.weight"].flatten(1) * alpha / 3
    new = weight + scale * delta.view_as(weight)
    if method == "DoRA by outputs":
        sides["dora_scale"] = 1 + drawn(out, *(1 for _ in weight.shape[1:]), seed=9).abs()
        new = sides["dora_scale"] * new / new.flatten(1).norm(dim=1).view(-1, *(1 for _ in weight.shape[1:]))
    if method == "DoRA by inputs":
        sides["dora_scale"] = 1 + drawn(1, into, *(1 for _ in kernel), seed=9).abs()
        new = sides["dora_scale"] * new / new.transpose(0, 1).flatten(1).norm(dim=1).view(1, -1, *(1 for _ in kernel))
    return sides | {"alpha": torch.tensor(alpha)}, new


METHODS = (
    "LoHa", "LoHa, Tucker", "LoKr", "LoKr, whole", "LoCon, Tucker", "DoRA by outputs", "DoRA by inputs",
)  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prefix", ["lora_unet_", "lycoris_"])
def test_files_of_lycoris(base, tmp_path, method, prefix):
    folder, pipe = base
    theirs, tensors, changed = copy.deepcopy(pipe), {}, set()
    for path in ("down_blocks.0.resnets.0.conv1", "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"):
        module = theirs.unet.get_submodule(path)
        if "Tucker" in method and module.weight.dim() < 4:
            continue
        sides, new = formula(method, module.weight.data.clone(), 2.0, SCALE)
        tensors |= {f"{prefix}{path.replace('.', '_')}.{side}": value for side, value in sides.items()}
        module.weight.data = new
        changed.add(("unet", path))
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "a.safetensors")
    assert_same_weights(opened(folder, LoraRef(tmp_path / "a.safetensors", SCALE)), theirs, pipe, changed)


ENDS = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}


def kohya_dotted(path):
    return path if path.startswith("text_model.") else f"text_model.{path}"


NAMES = {
    "adapters of other names": lambda part, path, side: (
        (name := diffusers_name(part, path, side)) and name.replace(".weight", ".default_0.weight")
    ),
    "peft's prefix inside": lambda part, path, side: (
        (name := diffusers_name(part, path, side)) and name.replace(f"{part}.", f"{part}.base_model.model.", 1)
    ),
    "LyCORIS": lambda part, path, side: re.sub(r"^lora_(unet|te)_", "lycoris_", kohya_name(part, path, side)),
    "ComfyUI, with diffusers' places": lambda part, path, side: (
        f"diffusion_model.{path}.{ENDS[side]}" if part == "unet"
        else f"text_encoders.clip_l.transformer.{kohya_dotted(path)}.{ENDS[side]}"
    ),
}  # fmt: skip


@pytest.mark.parametrize("naming", NAMES)
def test_names(base, tmp_path, naming):
    folder, pipe = base
    alpha = None if "ada" in naming or "peft" in naming else 2.0
    layers = draw_layers(parts_of(pipe), wanted(ATTENTION), alpha=alpha)
    file = write(tmp_path / "a.safetensors", layers, NAMES[naming])
    theirs = with_layers(pipe, layers, SCALE)
    assert_same_weights(opened(folder, LoraRef(file, SCALE)), theirs, pipe, changed_by(layers))


def test_names_of_comfyui_with_dots(base, tmp_path):
    """`diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_down.weight`."""
    folder, pipe = base
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    layers = draw_layers(parts_of(pipe, ["unet"]), lambda one: one == path)
    place = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    file = write(tmp_path / "a.safetensors", layers, lambda part, path, side: f"{place}.{ENDS[side]}")
    theirs = with_layers(pipe, layers, SCALE)
    assert_same_weights(opened(folder, LoraRef(file, SCALE)), theirs, pipe, changed_by(layers))
