"""Transformers that denoise latents: PixArt, Stable Diffusion 3, FLUX.1, Chroma, Z-Image, FLUX.2 klein, Qwen-Image."""

from __future__ import annotations

from dataclasses import replace

from gencli.image.families import transformer_checks as checks
from gencli.image.families.base import Family, References, Stage

_TAESD = "madebyollin/taesd"

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
    tiny="madebyollin/taesdxl",
    one_at_a_time=True,
)
PIXART_ALPHA = replace(PIXART_SIGMA, stages=(Stage("t5:load_alpha", network="transformer"),), tiny=_TAESD)

# Esser et al. 2024: Stable Diffusion 3 and 3.5, which also run without T5
STABLE_DIFFUSION_3 = Family(
    (Stage("sd3:load", network="transformer", law="twice"),),
    {
        "transformer": frozenset({"SD3Transformer2DModel"}),
        "scheduler": None,
        "vae": frozenset({"AutoencoderKL"}),
        "text_encoder": frozenset({"clip_text_model"}),
        "tokenizer": None,
        "text_encoder_2": frozenset({"clip_text_model"}),
        "tokenizer_2": None,
        "text_encoder_3": frozenset({"t5"}),
        "tokenizer_3": None,
    },
    "text",
    autoencoder="vae",
    optional=frozenset({"text_encoder_3", "tokenizer_3"}),
    check=checks.stable_diffusion_3,
    defaults={"sampler": "euler", "steps": 28, "guidance": 7.0},
    tiny="madebyollin/taesd3",
    one_at_a_time=True,
    side=1024,
    distilled="turbo",
    few={"steps": 4, "guidance": 1.0},
)

# Black Forest Labs 2024: FLUX.1 dev, which is told its guidance as a number, and schnell
FLUX = Family(
    (Stage("flux:load", network="transformer"),),
    {
        "transformer": frozenset({"FluxTransformer2DModel"}),
        "scheduler": None,
        "vae": frozenset({"AutoencoderKL"}),
        "text_encoder": frozenset({"clip_text_model"}),
        "tokenizer": None,
        "text_encoder_2": frozenset({"t5"}),
        "tokenizer_2": None,
    },
    "text",
    autoencoder="vae",
    check=checks.flux,
    defaults={"sampler": "euler", "steps": 28, "guidance": 3.5},
    tiny="madebyollin/taef1",
    one_at_a_time=True,
    side=1024,
    distilled="schnell",
    few={"steps": 4, "guidance": 1.0},
)

# FLUX.1 Fill, which reads a mask and what it leaves of an image
FLUX_FILL = replace(
    FLUX, check=checks.flux_fill, defaults={"sampler": "euler", "steps": 50, "guidance": 30.0}, distilled=None
)
_LOW = ((672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184), (944, 1104))
# FLUX.1 Kontext (Labs et al. 2025, arXiv 2506.15742), which edits an image, seen at the sizes that it was trained with
FLUX_KONTEXT = replace(
    FLUX,
    reads_init="edits",
    references=References(1, sizes=(*_LOW, (1024, 1024), *((height, width) for width, height in reversed(_LOW)))),
    defaults={"sampler": "euler", "steps": 28, "guidance": 2.5},
    distilled=None,
)

# lodestone-rock 2025: made of FLUX.1 schnell, without CLIP, and with guidance
CHROMA = Family(
    (Stage("chroma:load", network="transformer"),),
    {
        "transformer": frozenset({"ChromaTransformer2DModel"}),
        "scheduler": None,
        "vae": frozenset({"AutoencoderKL"}),
        "text_encoder": frozenset({"t5"}),
        "tokenizer": None,
    },
    "text",
    autoencoder="vae",
    check=checks.chroma,
    defaults={"sampler": "euler", "steps": 35, "guidance": 5.0},
    tiny="madebyollin/taef1",
    one_at_a_time=True,
    side=1024,
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
    tiny="madebyollin/taef1",
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
    references=References(10, plane=10),
)

# Wu et al. 2025 (arXiv 2508.02324), with the text model of Qwen 2.5 VL; as its model card draws
QWEN_IMAGE = Family(
    (Stage("qwen_image:load", network="transformer", keeps_norms=2),),
    {
        "transformer": frozenset({"QwenImageTransformer2DModel"}),
        "scheduler": None,
        "vae": frozenset({"AutoencoderKLQwenImage"}),
        "text_encoder": frozenset({"qwen2_5_vl"}),
        "tokenizer": None,
    },
    "text",
    autoencoder="vae",
    check=checks.qwen_image,
    defaults={"sampler": "euler", "steps": 50, "guidance": 4.0, "negative": " "},
    one_at_a_time=True,
    side=1024,
    distilled="lightning",
    few={"steps": 8, "guidance": 1.0},
)

# Its editors, whose text encoder sees the images too; the first of them one, and at the size that the network sees
QWEN_IMAGE_EDIT = replace(
    QWEN_IMAGE,
    stages=(replace(QWEN_IMAGE.stages[0], conditioner="qwen_image_edit:load"),),
    check=checks.qwen_image_edit,
    reads={"text_encoder": "qwen2_5_vl_reader"},
    reads_init="edits",
    references=References(1, area=1024 * 1024, centred=True),
)
QWEN_IMAGE_EDIT_PLUS = replace(
    QWEN_IMAGE_EDIT,
    stages=(replace(QWEN_IMAGE.stages[0], conditioner="qwen_image_edit:load_plus"),),
    references=References(10, area=1024 * 1024, centred=True),
)
