"""How far Stable Diffusion, SDXL and few-step models are from diffusers, for the README's table: `measure(folder)`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gencli.checkpoints.find import Source
from gencli.image import stages
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.image.pipeline import Pipeline
from gencli.image.request import ImageRequest
from tests.oracles.ldm_parity import Measured, draw, open_pipeline
from tests.oracles.libraries import diffusers
from tests.tiny.image import make_stable_diffusion
from tests.tiny.sdxl import as_kind, make_lcm, make_refiner, make_sd_turbo, make_sdxl

PROMPT, NEGATIVE = "a red apple on the sun", "blue dog"
SIZE: dict[str, Any] = {"width": 96, "height": 64}
STABLE_DIFFUSION = (
    ("sd15", "Stable Diffusion 1.x", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    ("sd21", "Stable Diffusion 2.x", "stabilityai/stable-diffusion-2-1"),
)


def measure(root: Path) -> Iterator[Measured]:
    """Every family, its checkpoint made under `root`."""
    guided = {"guidance": 5.0, "negative": NEGATIVE, "steps": 4}
    for kind, family, example in STABLE_DIFFUSION:
        pipe = as_kind(made := make_stable_diffusion(root / kind, kind), type(made), scheduler=_ddim(made))
        yield _row(family, example, root / kind, pipe, guided)
    pipe = make_sdxl(root / "sdxl")
    pipe = as_kind(pipe, type(pipe), scheduler=_ddim(pipe))
    yield _row("Stable Diffusion XL", "stabilityai/stable-diffusion-xl-base-1.0", root / "sdxl", pipe, guided)
    yield _refined(root, pipe, guided)
    turbo = {"guidance": 0.0, "steps": 4}
    pipe = make_sdxl(root / "turbo", "sdxl-turbo")
    yield _row("SDXL Turbo", "stabilityai/sdxl-turbo", root / "turbo", pipe, turbo)
    yield _row("SD Turbo", "stabilityai/sd-turbo", root / "sd", make_sd_turbo(root / "sd"), turbo)
    lcm = {"guidance": 8.5, "steps": 8}
    yield _row("latent consistency", "SimianLuo/LCM_Dreamshaper_v7", root / "lcm", make_lcm(root / "lcm"), lcm)


def _row(family: str, example: str, folder: Path, pipe: Any, values: dict[str, Any]) -> Measured:
    """The UNet's output and the texts that it is told, and a picture."""
    ours = open_pipeline(folder)
    call = {"num_inference_steps": values["steps"], "guidance_scale": values["guidance"], **SIZE}
    call |= {"negative_prompt": values["negative"]} if "negative" in values else {}
    drawn = pipe(PROMPT, generator=torch.Generator().manual_seed(3), **call).images[0]
    apart = _pixels_apart(draw(ours, prompt=PROMPT, **values, **SIZE), drawn)
    return Measured(family, f"`{example}`", _part(ours, pipe, values), apart)


def _refined(root: Path, base: Any, values: dict[str, Any]) -> Measured:
    """The refiner's UNet, and a picture of which it draws the second half."""
    refiner = make_refiner(root / "refiner", root / "sdxl", base)
    refiner.scheduler = _ddim(refiner)
    opened = (open_image_checkpoint(Source(name, root / name, "folder")) for name in ("sdxl", "refiner"))
    ours = load(stages.add_refiner(*opened), device="cpu")
    call = {"num_inference_steps": values["steps"], "guidance_scale": values["guidance"]}
    call |= {"negative_prompt": values["negative"], "generator": torch.Generator().manual_seed(3)}
    halfway = base(PROMPT, denoising_end=0.5, output_type="latent", **call, **SIZE).images
    size = (SIZE["height"], SIZE["width"])
    drawn = refiner(PROMPT, image=halfway, denoising_start=0.5, original_size=size, target_size=size, **call).images[0]
    apart = _pixels_apart(draw(ours, prompt=PROMPT, refiner="refiner", refiner_start=0.5, **values, **SIZE), drawn)
    part = _part(open_pipeline(root / "refiner"), refiner, values)
    return Measured("SDXL with its refiner", "`stabilityai/stable-diffusion-xl-refiner-1.0`", part, apart)


def _part(ours: Pipeline, pipe: Any, values: dict[str, Any]) -> float:
    """The largest difference of a UNet's output and of the texts that it is told."""
    request = ImageRequest(prompt=PROMPT, guidance=values["guidance"], **SIZE)
    with torch.no_grad():
        told = ours.main.conditioner.encode([PROMPT], request)
        xl = "text_embeds" in told.inputs
        encoded = pipe.encode_prompt(PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
        component = _apart(told["encoder_hidden_states"], encoded[0])
        more: dict[str, Any] = {}
        if xl:
            component = max(component, _apart(told["text_embeds"], encoded[2]))
            more = {"added_cond_kwargs": {"text_embeds": told["text_embeds"], "time_ids": told["time_ids"]}}
        if ours.main.reads_guidance:
            told = told.with_inputs(**ours.main.told_guidance(values["guidance"]))
            w = torch.tensor([values["guidance"] - 1])
            more["timestep_cond"] = pipe.get_guidance_scale_embedding(w, embedding_dim=told["timestep_cond"].shape[1])
        x, t = torch.randn((1, 4, 8, 12), generator=torch.Generator().manual_seed(1)), torch.tensor([759.0])
        theirs = pipe.unet(x, t, encoder_hidden_states=told["encoder_hidden_states"], **more).sample
        return max(component, _apart(ours.main.predict(x, t, told), theirs))


def _pixels_apart(ours: Any, theirs: Any) -> int:
    return int(np.abs(np.asarray(ours).astype(int) - np.asarray(theirs).astype(int)).max())


def _ddim(pipe: Any) -> diffusers.DDIMScheduler:
    return diffusers.DDIMScheduler.from_config(pipe.scheduler.config)


def _apart(ours: Tensor, theirs: Tensor) -> float:
    return (ours - theirs).abs().max().item()
