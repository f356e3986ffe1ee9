"""Which model a file in the original layout is: told by its keys, or refused by what was seen."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from gencli.errors import GencliError

UNET, VAE = "model.diffusion_model.", "first_stage_model."


@dataclass(frozen=True)
class Family:
    """A family of files. key: what the names of its text encoder begin with, and no other's do. parts: part → prefix.

    latents: width and height of the images it was made for, in latents, by what the network predicts.
    """

    title: str
    pipeline: str
    key: str
    parts: Mapping[str, str]
    size: Mapping[str, int]
    scaling_factor: float
    head: int | None  # width of an attention head in the UNet; None: 8 heads everywhere
    index: Mapping[str, bool] = field(default_factory=dict)  # what its folder's model_index.json says


FAMILIES: dict[str, Family] = {
    "sd1": Family(
        "Stable Diffusion 1",
        "StableDiffusion",
        r"cond_stage_model\.transformer\.(text_model\.)?embeddings\.",
        {"unet": UNET, "vae": VAE, "text_encoder": "cond_stage_model.transformer."},
        {"epsilon": 64, "v_prediction": 64},
        0.18215,
        None,
    ),
    "sd2": Family(
        "Stable Diffusion 2",
        "StableDiffusion",
        r"cond_stage_model\.model\.(transformer\.resblocks|token_embedding)\.",
        {"unet": UNET, "vae": VAE, "text_encoder": "cond_stage_model.model."},
        {"epsilon": 64, "v_prediction": 96},
        0.18215,
        64,
    ),
    "sdxl": Family(
        "Stable Diffusion XL",
        "StableDiffusionXL",
        r"conditioner\.embedders\.1\.model\.",
        {
            "unet": UNET,
            "vae": VAE,
            "text_encoder": "conditioner.embedders.0.transformer.",
            "text_encoder_2": "conditioner.embedders.1.model.",
        },
        {"epsilon": 128, "v_prediction": 128},
        0.13025,
        64,
    ),
    "refiner": Family(
        "Stable Diffusion XL's refiner",
        "StableDiffusionXLImg2Img",
        r"conditioner\.embedders\.0\.model\.",
        {"unet": UNET, "vae": VAE, "text_encoder_2": "conditioner.embedders.0.model."},
        {"epsilon": 128, "v_prediction": 128},
        0.13025,
        64,
        {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False},
    ),
}
# in_channels → what diffusers calls the pipeline of such a UNet
PIPELINES = {4: "Pipeline", 8: "InstructPix2PixPipeline", 9: "InpaintPipeline"}

BUFFERS = """betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod
    log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance
    posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2 lvlb_weights logvar"""
# No weights of the model: pattern → what it is, for a note; empty where it is not worth one.
LEFT_OUT = {
    rf"(model\.)?({'|'.join(BUFFERS.split())})": "",  # of the noise schedule
    r"(denoiser|model_sampling|model\.model_sampling)\.(log_)?sigmas": "",
    r"v_pred|ztsnr": "",  # marks: see `stable_diffusion_schedule`
    r"(model_ema|first_stage_model\.model_ema)\..*": "its EMA weights go unused",
    r"first_stage_model\.loss\..*": "what its autoencoder was trained against goes unused",
    r"embedding_manager\..*": "",
    r"(cond_stage_model|conditioner\.embedders\.\d)\.(.*\.)?(position_ids|attn_mask|logit_scale)": "",
    # A projection to match images with: SDXL's first encoder and SD 1's are read before it.
    r"(cond_stage_model|conditioner\.embedders\.0)\.(transformer\.)?text_projection(\.weight)?": "",
}
# What other files are: pattern of a key → what it is, and what to do with it
OTHERS: tuple[tuple[str, str, str | None], ...] = (
    (r"lora_(unet|te\d?|prior)_.*|.*\.lora_(A|B|up|down|linear_layer)\..*|.*\.lora\.(up|down)\..*|.*\.(hada|lokr)_w.*",
     "a LoRA, which changes a model and is not one itself",
     "-m names the model it was trained on, and --lora this file"),
    (r"emb_params|clip_[gl]|string_to_param\..*|<[^>]*>",
     "a textual inversion embedding, which teaches a model a word and is not one itself",
     "-m names the model it was trained on, and --embedding this file"),
    (r"(control_model|controlnet_cond_embedding|input_hint_block)\..*", "a ControlNet, which steers a model",
     "-m names the model it was trained on, and --control a folder of the ControlNet"),
    *(
        (rf"((model\.)?diffusion_model\.|model\.)?({pattern}).*", f"{what}, which is not supported", None)
        for pattern, what in (
            (r"joint_blocks\.", "a Stable Diffusion 3"),
            (r"double_blocks\.\d+\.img_attn_qkv\.|txt_in\.individual_token_refiner\.", "a HunyuanVideo"),
            (r"(double|single)_stream_blocks\.", "a HiDream"),
            (r"(double|single)_blocks\.", "a FLUX.1, or one of its kind"),
            (r"blocks\.\d+\.self_attn\.norm_q\.|head\.modulation$", "a Wan"),
            (r"(noise|context)_refiner\.", "a Lumina 2"),
            (r"double_layers\.|register_tokens$", "an AuraFlow"),
            (r"patchify_proj\.", "an LTX-Video"),
            (r"blocks\.\d+\.cross_attn\.(q|kv)_linear\.", "a PixArt or Sana under its authors' names"),
        )
    ),
    (r"model\.diffusion_model\.(transformer_blocks|blocks|layers)\..*", "a transformer, which is not supported", None),
    (r"(text_model\.)?(embeddings\.token_embedding|encoder\.layers\.0\.self_attn\.q_proj)\..*",
     "a text encoder, one part of a model for images", None),
    (r"((transformer|model)\.)?(wte|embed_tokens|h\.0|layers\.0)\..*", "a text model", "`gencli text` runs those"),
    (r"(first_stage_model\.)?(encoder|decoder)\.(conv_in|mid|mid_block)\..*",
     "an autoencoder, one part of a model for images", "--vae gives it to a model in the place of its own"),
    (r"(down_blocks|up_blocks|mid_block)\..*", "one part of a model in diffusers' layout",
     "-m expects the folder with the model_index.json"),
)  # fmt: skip


def recognise(names: Collection[str]) -> str:
    """Return the key in FAMILIES of the file that has tensors of these names.

    Raise GencliError, without the file's name, for names that fit no family, or two.
    """
    seen = {key: name for key, family in FAMILIES.items() if (name := _first(family.key, names))}
    if len(seen) > 1:
        both = " and ".join(f"{FAMILIES[key].title} ({name})" for key, name in seen.items())
        raise GencliError(f"it has keys of {both}: it cannot be both")
    if block := _first(r"model\.diffusion_model\.input_blocks\.", names):
        if seen:
            return next(iter(seen))
        raise GencliError(
            f"it has a UNet ({block}), and no text encoder in it",
            "such a file is one part of a model; the whole one has cond_stage_model.* or conditioner.* too",
        )
    for pattern, what, hint in OTHERS:
        if name := _first(pattern, names, whole=True):
            raise GencliError(f"it is {what} ({name})", hint)
    if seen:
        raise GencliError(f"it has the text encoder of {FAMILIES[next(iter(seen))].title}, and no UNet ({UNET}*)")
    first = ", ".join(name[:60] for name in sorted(names)[:3]) or "none at all"
    raise GencliError(
        f"its keys are of no model for images that gencli knows ({first}{', …' if len(names) > 3 else ''})",
        "single files may be Stable Diffusion 1, 2 and XL, and the transformers of Stable Diffusion 3, Z-Image, "
        "Qwen-Image, FLUX.1, Chroma and FLUX.2 klein",
    )


def left_out(name: str) -> str | None:
    """Return what a tensor is that is not a weight of the model: words for a note, or "". None for others."""
    return next((words for pattern, words in LEFT_OUT.items() if re.fullmatch(pattern, name)), None)


def _first(pattern: str, names: Collection[str], *, whole: bool = False) -> str | None:
    compiled = re.compile(pattern)
    match = compiled.fullmatch if whole else compiled.match
    return next((name for name in names if match(name)), None)
