"""Families of picture checkpoints, by the pipeline that their model_index.json names. No torch in this file.

To add one: write `gencli/image/prompts/NAME.py` with `load` (see `prompts.base`), and add its rows here.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from gencli.image.families import checks

if TYPE_CHECKING:
    from gencli.image.checkpoint import Checkpoint


@dataclass(frozen=True)
class Family:
    """What a checkpoint of this kind holds.

    module: in `gencli.image.prompts`. parts: name of a part's folder → the architectures that may stand there, as its
    config names them (`_class_name` or `model_type`); None for tokenizers and schedulers. optional: may be missing.
    prompt: what a picture is asked for with. network: the part that denoises; autoencoder: the one between pictures and
    latents, None where there are no latents. check: raises GencliError for configs that do not go together.
    defaults: values for `ImageRequest` that are not the built-in ones.
    """

    module: str
    parts: Mapping[str, frozenset[str] | None]
    prompt: Literal["text", "class", "none"]
    network: str = "unet"
    autoencoder: str | None = None
    optional: frozenset[str] = frozenset()
    check: Callable[[Checkpoint], None] = checks.nothing
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reads_clip(self) -> bool:
        """Whether CLIP reads its prompts: weights in brackets, chunks and embeddings are for such."""
        return any(kinds is not None and "clip_text_model" in kinds for kinds in self.parts.values())

    def load_module(self) -> ModuleType:
        """The family's code, which imports torch."""
        return importlib.import_module(f"gencli.image.prompts.{self.module}")


UNCONDITIONAL = Family("classes", {"unet": frozenset({"UNet2DModel"}), "scheduler": None}, "none", check=checks.pixels)
STABLE_DIFFUSION = Family(
    "stable_diffusion",
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
# Brooks et al. 2023: the UNet reads the latents of the picture to edit beside those that it denoises
INSTRUCT = dataclasses.replace(STABLE_DIFFUSION, check=checks.edited_latents)
STABLE_DIFFUSION_XL = Family(
    "stable_diffusion_xl",
    {
        **STABLE_DIFFUSION.parts,
        "text_encoder_2": frozenset({"clip_text_model"}),
        "tokenizer_2": None,
    },
    "text",
    autoencoder="vae",
    optional=frozenset({"text_encoder", "tokenizer"}),  # which the refiner lacks; `check` says so
    check=checks.stable_diffusion_xl,
    defaults={"guidance": 5.0, "negative": None},
)
INSTRUCT_XL = dataclasses.replace(STABLE_DIFFUSION_XL, check=checks.edited_latents_xl)
LATENT_CONSISTENCY = dataclasses.replace(STABLE_DIFFUSION, defaults={"guidance": 8.5})

# Rombach et al. 2022, before Stable Diffusion: unconditional (ldm-celebahq-256), and of a text (ldm-text2im-large-256)
LATENT_DIFFUSION = Family(
    "latent_diffusion",
    {"unet": frozenset({"UNet2DModel"}), "scheduler": None, "vqvae": frozenset({"VQModel", "AutoencoderKL"})},
    "none",
    autoencoder="vqvae",
    check=checks.latent_diffusion,
)
LATENT_DIFFUSION_TEXT = Family(
    "latent_diffusion",
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
    "classes",
    {
        "transformer": frozenset({"DiTTransformer2DModel", "Transformer2DModel"}),
        "scheduler": None,
        "vae": frozenset({"AutoencoderKL"}),
    },
    "class",
    network="transformer",
    autoencoder="vae",
    check=checks.transformer,
    defaults={"negative": "", "guidance": 4.0, "guidance_rescale": 0.0},
)
# Dhariwal & Nichol 2021, in pixels; of a class where the UNet is told one
GUIDED_DIFFUSION = Family("classes", {"unet": frozenset({"UNetModel"}), "scheduler": None}, "none", check=checks.pixels)

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
}
