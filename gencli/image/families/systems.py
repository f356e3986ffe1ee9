"""Systems of several stages: GLIDE, Imagen, unCLIP and its relatives, and what enlarges images."""

from __future__ import annotations

from dataclasses import replace

from gencli.image.families import checks
from gencli.image.families.base import Family, Stage
from gencli.image.families.stable_diffusion import STABLE_DIFFUSION

ENLARGED, KANDINSKY = "gencli.image.upscale:enlarge", "gencli.image.kandinsky"

# Nichol et al. 2021 (GLIDE): 64 pixels a side, of a text; then four times as many. Both also in a form that paints
GLIDE = Family(
    (Stage("glide:load"),),
    {
        "unet": frozenset({"UNetModel"}),
        "scheduler": None,
        "text_encoder": frozenset({"GlideTextModel"}),
        "tokenizer": None,
    },
    "text",
    defaults={"sampler": "ddpm", "steps": 100, "guidance": 3.0},
)
GLIDE_INPAINT = replace(
    GLIDE,
    stages=(Stage("glide:load", start="gencli.image.glide:paint"),),
    defaults={**GLIDE.defaults, "guidance": 5.0},
)
GLIDE_UPSAMPLE = replace(
    GLIDE,
    stages=(Stage("glide:load", start="gencli.image.glide:enlarge", scale=4),),
    defaults={"sampler": "ddim", "guidance": 1.0, "steps": 27},
    needs_init=True,
    reads_init="enlarges",
)
GLIDE_INPAINT_UPSAMPLE = replace(GLIDE_UPSAMPLE, defaults={**GLIDE_UPSAMPLE.defaults, "sampler": "ddpm"})

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
UNCLIP = replace(
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
# Stable Diffusion 2.1 that is told the embedding of an image: its variations, or what Karlo's prior draws
STABLE_UNCLIP_VARIATIONS = replace(
    STABLE_DIFFUSION,
    stages=(Stage("stable_diffusion:load", start="gencli.image.unclip:begin_latents"),),
    parts={
        **STABLE_DIFFUSION.parts,
        "image_encoder": frozenset({"clip_vision_model"}),
        "image_normalizer": frozenset({"StableUnCLIPImageNormalizer"}),
        "image_noising_scheduler": None,
    },
    check=checks.stable_unclip,
    defaults={"steps": 20, "guidance": 10.0, "noise_level": 0},
    needs_init=True,
    reads_init="varies",
)
STABLE_UNCLIP = replace(
    STABLE_UNCLIP_VARIATIONS,
    stages=(
        replace(UNCLIP.stages[0], conditioner="unclip:load_prior"),
        *STABLE_UNCLIP_VARIATIONS.stages,
    ),
    parts={
        **{name: kind for name, kind in STABLE_UNCLIP_VARIATIONS.parts.items() if name != "image_encoder"},
        **_PRIOR,
        "prior_text_encoder": frozenset({"clip_text_model"}),
        "prior_tokenizer": None,
    },
    needs_init=False,
    reads_init="none",
    main=1,
)
# Kandinsky 2.2: unCLIP whose decoder draws latents, in two folders, or in one whose names tell the prior's parts
KANDINSKY_PRIOR = Family(
    (replace(UNCLIP.stages[0], conditioner="kandinsky:load", scheduler="scheduler", start=f"{KANDINSKY}:begin_prior"),),
    {
        "prior": _PRIOR["prior"],
        "scheduler": None,
        "image_encoder": frozenset({"clip_vision_model"}),
        "text_encoder": frozenset({"clip_text_model"}),
        "tokenizer": None,
    },
    "text",
    check=checks.kandinsky_prior,
    defaults=UNCLIP.stages[0].defaults,
    one_at_a_time=True,
)
KANDINSKY_DECODER = Family(
    (Stage("kandinsky:load_nothing", start=f"{KANDINSKY}:begin_decoder"),),
    {"unet": frozenset({"UNet2DConditionModel"}), "scheduler": None, "movq": frozenset({"VQModel"})},
    "text",
    autoencoder="movq",
    check=checks.kandinsky,
    defaults={"sampler": "ddpm", "steps": 100, "guidance": 4.0, "strength": 0.3},
    prior="kandinsky-community/kandinsky-2-2-prior",
    one_at_a_time=True,
)
KANDINSKY_WHOLE = replace(
    KANDINSKY_DECODER,
    stages=(
        replace(KANDINSKY_PRIOR.stages[0], network="prior_prior", scheduler="prior_scheduler"),
        *KANDINSKY_DECODER.stages,
    ),
    parts={
        **KANDINSKY_DECODER.parts,
        **{f"prior_{name}": kinds for name, kinds in KANDINSKY_PRIOR.parts.items()},
    },
    main=1,
)
# Repositories of decoders → of the prior that goes with them
PRIORS = {"kandinsky-community/kandinsky-2-2-decoder": KANDINSKY_DECODER.prior}
