"""Stable Diffusion and those of its form."""

from __future__ import annotations

from dataclasses import replace

from gencli.image.families import checks
from gencli.image.families.base import Family, Stage

STABLE_DIFFUSION = Family(
    (Stage("stable_diffusion:load"),),
    {
        "unet": frozenset({"UNet2DConditionModel"}),
        "scheduler": None,
        "vae": frozenset({"AutoencoderKL"}),
        "text_encoder": frozenset({"clip_text_model"}),
        "tokenizer": None,
    },
    "text",
    autoencoder="vae",
    check=checks.latents,
    tiny="madebyollin/taesd",
)
# Brooks et al. 2023: the UNet reads the latents of the image to edit beside those that it denoises
INSTRUCT = replace(STABLE_DIFFUSION, check=checks.edited_latents)
STABLE_DIFFUSION_XL = Family(
    (Stage("stable_diffusion:load_xl"),),
    {
        **STABLE_DIFFUSION.parts,
        "text_encoder_2": frozenset({"clip_text_model"}),
        "tokenizer_2": None,
    },
    "text",
    autoencoder="vae",
    optional=frozenset({"text_encoder", "tokenizer"}),  # which the refiner lacks
    check=checks.stable_diffusion_xl,
    defaults={"guidance": 5.0, "negative": None},
    tiny="madebyollin/taesdxl",
)
REFINER = replace(STABLE_DIFFUSION_XL, needs_init=True)
INSTRUCT_XL = replace(STABLE_DIFFUSION_XL, check=checks.edited_latents_xl)
LATENT_CONSISTENCY = replace(STABLE_DIFFUSION, defaults={"guidance": 8.5})
