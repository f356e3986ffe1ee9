"""Families of image checkpoints, by the pipeline that their model_index.json names. No torch in this file.

To add one: write `gencli/image/prompts/NAME.py` with a `load` (see `prompts.base`), and add its rows here.
"""

from __future__ import annotations

import dataclasses
import pkgutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gencli.image.families import checks

NOISE, PREVIOUS = "gencli.image.latents:prepare_latents", "gencli.image.latents:continue_latents"
ENLARGED = "gencli.image.upscale:enlarge"


@dataclass(frozen=True)
class Stage:
    """One network with its noise schedule. Stages run in order, and the last hands to the autoencoder, if any.

    conditioner: "module:load" of what turns prompts into conditioning (a `prompts.base.Conditioner`), in
    `gencli.image.prompts` unless a package is named; stages with the same one and the same text encoders share it. None
    for a network without a prompt. network, scheduler: names of parts. name: as in `--stage NAME:…`.
    start: "module:function", what the stage begins from and what it reads of the stage before (see `latents`).
    steps: which of its steps it takes, of all that its settings make; follows: the stage whose settings it takes, where
    a second network finishes what the first began. scale: how many times larger its image is than the one that it
    enlarges; 1 where it enlarges none. shows: whether its x0 can be decoded to an image. defaults: values for
    `ImageRequest` that are not the main stage's. law: how the shift of a flow's noise levels grows with the image (see
    `diffusion.flow`).
    """

    conditioner: str | None
    network: str = "unet"
    scheduler: str = "scheduler"
    name: str = "base"
    start: str = NOISE
    steps: tuple[int | None, int | None] = (None, None)
    follows: str | None = None
    scale: int = 1
    shows: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict)
    law: str = "linear"


def import_name(name: str) -> Any:
    """The object that "module:name" names. Its module may import torch."""
    return pkgutil.resolve_name(name if name.split(":")[0].count(".") else f"gencli.image.prompts.{name}")


@dataclass(frozen=True)
class Family:
    """What a checkpoint of this kind holds.

    stages: see `Stage`; `main` is the index of the one that the request's own settings are for. parts: name of a part's
    folder → the architectures that may stand there, as its config names them (`_class_name` or `model_type`); None for
    tokenizers and schedulers. optional: parts that may be missing. prompt: what an image is asked for with.
    autoencoder: the part between images and latents, None where there are no latents. check: raises GencliError for
    configs that do not go together. defaults: values for `ImageRequest` that are not the built-in ones. needs_init:
    whether it draws nothing without an image. reads_init: what it does with that: strength and mask are of what it
    changes; it may also enlarge or vary the whole image, or take none. one_at_a_time: whether its parts are so large
    that each stage's are loaded when all images come to it, and let go before the next one's.
    """

    stages: tuple[Stage, ...]
    parts: Mapping[str, frozenset[str] | None]
    prompt: Literal["text", "class", "none"]
    autoencoder: str | None = None
    optional: frozenset[str] = frozenset()
    check: Callable[[checks.Described], None] = checks.nothing
    defaults: Mapping[str, Any] = field(default_factory=dict)
    needs_init: bool = False
    reads_init: Literal["changes", "enlarges", "varies", "none"] = "changes"
    one_at_a_time: bool = False
    main: int = 0
    side: int | None = None
    distilled: str | None = None
    few: Mapping[str, Any] = field(default_factory=dict)

    @property
    def network(self) -> str:
        """The part that is the main stage's network."""
        return self.stages[self.main].network

    @property
    def reads_clip(self) -> bool:
        """Whether CLIP reads its prompts: weights in brackets, chunks and embeddings are for such."""
        clip = any(kinds is not None and "clip_text_model" in kinds for kinds in self.parts.values())
        return clip and str(self.stages[self.main].conditioner).startswith("stable_diffusion")


CLASSES = (Stage("classes:load"),)
UNCONDITIONAL = Family(CLASSES, {"unet": frozenset({"UNet2DModel"}), "scheduler": None}, "none", check=checks.pixels)
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
)
# Brooks et al. 2023: the UNet reads the latents of the image to edit beside those that it denoises
INSTRUCT = dataclasses.replace(STABLE_DIFFUSION, check=checks.edited_latents)
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
)
REFINER = dataclasses.replace(STABLE_DIFFUSION_XL, needs_init=True)
INSTRUCT_XL = dataclasses.replace(STABLE_DIFFUSION_XL, check=checks.edited_latents_xl)
LATENT_CONSISTENCY = dataclasses.replace(STABLE_DIFFUSION, defaults={"guidance": 8.5})

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
)
# Dhariwal & Nichol 2021, in pixels; of a class where the UNet is told one
GUIDED_DIFFUSION = Family(CLASSES, {"unet": frozenset({"UNetModel"}), "scheduler": None}, "none", check=checks.pixels)

# Chen et al. 2023 and 2024: a DiT that attends to the states of T5
PIXART_SIGMA = Family(
    (Stage("t5:load_sigma", network="transformer"),),
    {
        "transformer": frozenset({"PixArtTransformer2DModel"}),
        "scheduler": None,
        "vae": frozenset({"AutoencoderKL"}),
        "text_encoder": frozenset({"t5"}),
        "tokenizer": None,
    },
    "text",
    autoencoder="vae",
    check=checks.pixart,
    defaults={"sampler": "dpmpp_2m", "steps": 20, "guidance": 4.5},
    one_at_a_time=True,
)
PIXART_ALPHA = dataclasses.replace(PIXART_SIGMA, stages=(Stage("t5:load_alpha", network="transformer"),))

# Saharia et al. 2022 (Imagen), as DeepFloyd IF: 64 pixels a side, then a network that enlarges them four times
IMAGEN = Family(
    (Stage("t5:load"),),
    {
        "unet": frozenset({"UNet2DConditionModel"}),
        "scheduler": None,
        "text_encoder": frozenset({"t5"}),
        "tokenizer": None,
    },
    "text",
    check=checks.imagen,
    defaults={"sampler": "ddpm", "steps": 100, "guidance": 7.0},
    one_at_a_time=True,
)
IMAGEN_UPSCALER = Family(
    (Stage("t5:load", start=ENLARGED, scale=4),),
    {**IMAGEN.parts, "image_noising_scheduler": None},
    "text",
    optional=frozenset({"text_encoder", "tokenizer"}),  # which are those of the first stage
    check=checks.imagen_upscaler,
    defaults={"sampler": "ddpm", "steps": 50, "guidance": 4.0, "noise_level": 250},
    needs_init=True,
    reads_init="enlarges",
    one_at_a_time=True,
)

# Ramesh et al. 2022 (DALL·E 2), as Karlo: text → CLIP embedding of an image → 64 pixels a side → 256
_DDPM = {"sampler": "ddpm", "guidance": 1.0}
UNCLIP_VARIATIONS = Family(
    (
        Stage("unclip:load", "decoder", "decoder_scheduler", "decoder", "gencli.image.unclip:begin_decoder"),
        Stage(
            None,
            "super_res_first",
            "super_res_scheduler",
            "super_res",
            "gencli.image.unclip:begin_super_res",
            steps=(None, -1),
            defaults={**_DDPM, "steps": 7},
        ),
        Stage(
            None,
            "super_res_last",
            "super_res_scheduler",
            "super_res_last",
            "gencli.image.unclip:continue_super_res",
            steps=(-1, None),
            follows="super_res",
            defaults={**_DDPM, "steps": 7},
        ),
    ),
    {
        "decoder": frozenset({"UNet2DConditionModel"}),
        "text_proj": frozenset({"UnCLIPTextProjModel"}),
        "super_res_first": frozenset({"UNet2DModel"}),
        "super_res_last": frozenset({"UNet2DModel"}),
        "text_encoder": frozenset({"clip_text_model"}),
        "tokenizer": None,
        "image_encoder": frozenset({"clip_vision_model"}),
        "decoder_scheduler": None,
        "super_res_scheduler": None,
    },
    "text",
    check=checks.unclip,
    defaults={"sampler": "ddpm", "steps": 25, "guidance": 8.0},
    needs_init=True,
    reads_init="varies",
    one_at_a_time=True,
)
# Rombach et al. 2022: latents of the large image beside the pixels of the small one
UPSCALER = Family(
    (Stage("stable_diffusion:load", start="gencli.image.upscale:enlarge_latents", scale=4),),
    {**STABLE_DIFFUSION.parts, "low_res_scheduler": None},
    "text",
    autoencoder="vae",
    check=checks.upscaler,
    defaults={"sampler": "ddim", "steps": 75, "guidance": 9.0, "noise_level": 20},
    needs_init=True,
    reads_init="enlarges",
)
_PRIOR = {"prior": frozenset({"PriorTransformer"}), "prior_scheduler": None}
UNCLIP = dataclasses.replace(
    UNCLIP_VARIATIONS,
    stages=(
        Stage(
            "unclip:load",
            "prior",
            "prior_scheduler",
            "prior",
            "gencli.image.unclip:begin_prior",
            shows=False,
            defaults={"sampler": "ddpm", "steps": 25, "guidance": 4.0},
        ),
        *UNCLIP_VARIATIONS.stages,
    ),
    parts={**{k: v for k, v in UNCLIP_VARIATIONS.parts.items() if k != "image_encoder"}, **_PRIOR},
    needs_init=False,
    reads_init="none",
    main=1,
)

# Cai et al. 2025 (Z-Image and its Turbo), and Black Forest Labs 2025 (FLUX.2 klein), by flow matching
_QWEN3 = {"scheduler": None, "text_encoder": frozenset({"qwen3"}), "tokenizer": None}
Z_IMAGE = Family(
    (Stage("qwen3:load_z_image", network="transformer"),),
    {"transformer": frozenset({"ZImageTransformer2DModel"}), "vae": frozenset({"AutoencoderKL"}), **_QWEN3},
    "text",
    autoencoder="vae",
    check=checks.z_image,
    defaults={"sampler": "euler", "steps": 50, "guidance": 5.0},
    one_at_a_time=True,
    side=1024,
    distilled="turbo",
    few={"steps": 8, "guidance": 1.0},
)
FLUX2_KLEIN = Family(
    (Stage("qwen3:load_flux2", network="transformer", law="steps"),),
    {"transformer": frozenset({"Flux2Transformer2DModel"}), "vae": frozenset({"AutoencoderKLFlux2"}), **_QWEN3},
    "text",
    autoencoder="vae",
    check=checks.flux2,
    defaults={"sampler": "euler", "steps": 50, "guidance": 4.0},
    one_at_a_time=True,
    side=1024,
    distilled="^(?!.*base)",
    few={"steps": 4, "guidance": 1.0},
)

# `_class_name` of model_index.json → family
FAMILIES: dict[str, Family] = {
    "DDPMPipeline": UNCONDITIONAL,
    "DDIMPipeline": UNCONDITIONAL,
    "PNDMPipeline": UNCONDITIONAL,
    "DiTPipeline": DIT,
    "GuidedDiffusionPipeline": GUIDED_DIFFUSION,
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
    "IFPipeline": IMAGEN,
    "IFSuperResolutionPipeline": IMAGEN_UPSCALER,
    "PixArtAlphaPipeline": PIXART_ALPHA,
    "PixArtSigmaPipeline": PIXART_SIGMA,
    "ZImagePipeline": Z_IMAGE,
    "ZImageImg2ImgPipeline": Z_IMAGE,
    "Flux2KleinPipeline": FLUX2_KLEIN,
}


def find_family(pipeline: str, parts: Collection[str]) -> Family | None:
    """The family of a pipeline that has these parts. SDXL without its first text encoder is the refiner."""
    family = FAMILIES.get(pipeline)
    return REFINER if family is STABLE_DIFFUSION_XL and "text_encoder" not in parts else family


def as_upscaler(family: Family, name: str) -> Family:
    """A family that enlarges images, as a stage that enlarges what the stage before draws."""
    [stage] = family.stages
    return dataclasses.replace(family, stages=(dataclasses.replace(stage, name=name, defaults=family.defaults),))


def as_refiner(family: Family) -> Family:
    """SDXL, base or refiner, as a stage that continues where another stops."""
    [stage] = family.stages
    return dataclasses.replace(family, stages=(dataclasses.replace(stage, name="refiner", start=PREVIOUS),))
