"""Families of image checkpoints, by the pipeline that their model_index.json names. No torch in this file.

To add one: write `gencli/image/prompts/NAME.py` with a `load` (see `prompts.base`), and add its rows here
or, with its relatives, in a file of this folder.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from gencli.image.families import checks
from gencli.image.families.base import PREVIOUS, TINY, Family, Stage, path_of, tiny_named
from gencli.image.families.stable_diffusion import (
    INSTRUCT,
    INSTRUCT_XL,
    LATENT_CONSISTENCY,
    REFINER,
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_XL,
)
from gencli.image.families.systems import (
    GLIDE,
    GLIDE_INPAINT,
    GLIDE_INPAINT_UPSAMPLE,
    GLIDE_UPSAMPLE,
    IMAGEN,
    IMAGEN_UPSCALER,
    KANDINSKY_DECODER,
    KANDINSKY_PRIOR,
    KANDINSKY_WHOLE,
    PRIORS,
    STABLE_UNCLIP,
    STABLE_UNCLIP_VARIATIONS,
    UNCLIP,
    UNCLIP_VARIATIONS,
    UPSCALER,
)
from gencli.image.families.transformers import (
    CHROMA,
    FLUX,
    FLUX2_KLEIN,
    FLUX_FILL,
    FLUX_KONTEXT,
    PIXART_ALPHA,
    PIXART_SIGMA,
    QWEN_IMAGE,
    QWEN_IMAGE_EDIT,
    QWEN_IMAGE_EDIT_PLUS,
    STABLE_DIFFUSION_3,
    Z_IMAGE,
)

__all__ = ["PRIORS", "TINY", "Family", "Stage", "path_of", "tiny_named"]

CLASSES = (Stage("classes:load"),)
UNCONDITIONAL = Family(CLASSES, {"unet": frozenset({"UNet2DModel"}), "scheduler": None}, "none", check=checks.pixels)

# Rombach et al. 2022, before Stable Diffusion: unconditional (ldm-celebahq-256), and of a text (ldm-text2im-large-256)
LATENT_DIFFUSION = Family(
    (Stage("latent_diffusion:load"),),
    {"unet": frozenset({"UNet2DModel"}), "scheduler": None, "vqvae": frozenset({"VQModel", "AutoencoderKL"})},
    "none",
    autoencoder="vqvae",
    check=checks.latent_diffusion,
)
LATENT_DIFFUSION_TEXT = Family(
    (Stage("latent_diffusion:load"),),
    {
        **LATENT_DIFFUSION.parts,
        "unet": frozenset({"UNet2DConditionModel"}),
        "bert": frozenset({"ldmbert"}),
        "tokenizer": None,
    },
    "text",
    autoencoder="vqvae",
    check=checks.latent_diffusion,
    defaults={"guidance": 6.0},  # of its model card; diffusers' own default, 1, draws little of the text
)

# Peebles & Xie 2023 (facebook/DiT-XL-2-256)
DIT = Family(
    (Stage("classes:load", network="transformer"),),
    {
        "transformer": frozenset({"DiTTransformer2DModel", "Transformer2DModel"}),
        "scheduler": None,
        "vae": frozenset({"AutoencoderKL"}),
    },
    "class",
    autoencoder="vae",
    check=checks.transformer,
    defaults={"negative": "", "guidance": 4.0, "guidance_rescale": 0.0},
    tiny="madebyollin/taesd",
)
# Dhariwal & Nichol 2021, in pixels; of a class where the UNet is told one
GUIDED_DIFFUSION = Family(CLASSES, {"unet": frozenset({"UNetModel"}), "scheduler": None}, "none", check=checks.pixels)

# `_class_name` of model_index.json → family
FAMILIES: dict[str, Family] = {
    "DDPMPipeline": UNCONDITIONAL,
    "DDIMPipeline": UNCONDITIONAL,
    "PNDMPipeline": UNCONDITIONAL,
    "DiTPipeline": DIT,
    "GuidedDiffusionPipeline": GUIDED_DIFFUSION,
    "GlidePipeline": GLIDE,
    "GlideInpaintPipeline": GLIDE_INPAINT,
    "GlideUpsamplePipeline": GLIDE_UPSAMPLE,
    "GlideInpaintUpsamplePipeline": GLIDE_INPAINT_UPSAMPLE,
    "LDMPipeline": LATENT_DIFFUSION,
    "LDMTextToImagePipeline": LATENT_DIFFUSION_TEXT,
    "StableDiffusionPipeline": STABLE_DIFFUSION,
    "StableDiffusionImg2ImgPipeline": STABLE_DIFFUSION,
    "StableDiffusionInpaintPipeline": STABLE_DIFFUSION,
    "StableDiffusionInpaintPipelineLegacy": STABLE_DIFFUSION,
    "StableDiffusionXLPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusionXLImg2ImgPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusionXLInpaintPipeline": STABLE_DIFFUSION_XL,
    "LatentConsistencyModelPipeline": LATENT_CONSISTENCY,
    "LatentConsistencyModelImg2ImgPipeline": LATENT_CONSISTENCY,
    "StableDiffusionInstructPix2PixPipeline": INSTRUCT,
    "StableDiffusionXLInstructPix2PixPipeline": INSTRUCT_XL,
    "StableDiffusionUpscalePipeline": UPSCALER,
    "UnCLIPPipeline": UNCLIP,
    "UnCLIPImageVariationPipeline": UNCLIP_VARIATIONS,
    "KandinskyV22PriorPipeline": KANDINSKY_PRIOR,
    "KandinskyV22Pipeline": KANDINSKY_DECODER,
    "KandinskyV22Img2ImgPipeline": KANDINSKY_DECODER,
    "KandinskyV22CombinedPipeline": KANDINSKY_WHOLE,
    "KandinskyV22Img2ImgCombinedPipeline": KANDINSKY_WHOLE,
    "StableUnCLIPPipeline": STABLE_UNCLIP,
    "StableUnCLIPImg2ImgPipeline": STABLE_UNCLIP_VARIATIONS,
    "IFPipeline": IMAGEN,
    "IFSuperResolutionPipeline": IMAGEN_UPSCALER,
    "PixArtAlphaPipeline": PIXART_ALPHA,
    "PixArtSigmaPipeline": PIXART_SIGMA,
    "QwenImagePipeline": QWEN_IMAGE,
    "QwenImageImg2ImgPipeline": QWEN_IMAGE,
    "QwenImageInpaintPipeline": QWEN_IMAGE,
    "QwenImageEditPipeline": QWEN_IMAGE_EDIT,
    "QwenImageEditPlusPipeline": QWEN_IMAGE_EDIT_PLUS,
    "ZImagePipeline": Z_IMAGE,
    "ZImageImg2ImgPipeline": Z_IMAGE,
    "StableDiffusion3Pipeline": STABLE_DIFFUSION_3,
    "StableDiffusion3Img2ImgPipeline": STABLE_DIFFUSION_3,
    "FluxPipeline": FLUX,
    "FluxImg2ImgPipeline": FLUX,
    "FluxInpaintPipeline": FLUX,
    "FluxFillPipeline": FLUX_FILL,
    "FluxKontextPipeline": FLUX_KONTEXT,
    "FluxKontextInpaintPipeline": FLUX_KONTEXT,
    "Flux2KleinPipeline": FLUX2_KLEIN,
    "ChromaPipeline": CHROMA,
    "ChromaImg2ImgPipeline": CHROMA,
    "ChromaInpaintPipeline": CHROMA,
}


def find_family(pipeline: str, parts: Collection[str]) -> Family | None:
    """The family of a pipeline that has these parts. SDXL without its first text encoder is the refiner."""
    family = FAMILIES.get(pipeline)
    return REFINER if family is STABLE_DIFFUSION_XL and "text_encoder" not in parts else family


def as_upscaler(family: Family, name: str) -> Family:
    """A family that enlarges images, as a stage that enlarges what the stage before draws."""
    [stage] = family.stages
    return replace(family, stages=(replace(stage, name=name, defaults=family.defaults),))


def as_refiner(family: Family) -> Family:
    """SDXL, base or refiner, as a stage that continues where another stops."""
    [stage] = family.stages
    return replace(family, stages=(replace(stage, name="refiner", start=PREVIOUS),))
