"""A request for images, as plain values: checked when it is made, and written into the images.

The fields of `ImageRequest` are the one schema: their options, their limits, their names in JSON, and their keys in the
text that AUTOMATIC1111's web UI writes into its images ("infotext"). No torch in here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from gencli.errors import UsageError
from gencli.image.diffusion import samplers, spacings
from gencli.image.mix import check_mix
from gencli.image.stage_values import STAGE_KEYS, parse_stages
from gencli.image.values import (
    EMPHASIS_LABELS,
    SAMPLER_LABELS,
    SCHEDULE_LABELS,
    Control,
    check_hashes,
    check_refiner_start,
    check_sampler,
    check_sampler_options,
    check_strength,
    controls_of,
    named_sampler,
    parse_sampler_options,
)
from gencli.options import (
    MODEL,
    SEED,
    Bounds,
    Option,
    check,
    choice,
    flag,
    integer,
    make,
    number,
    rows,
    several,
    string,
)
from gencli.spec import DTYPE, QUANTIZE, ModelSpec, check_quantize, named_model

SIDES = ("left", "right")
DTYPES = ("float32", "bfloat16", "float16")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
BETAS = ("scaled_linear", "linear", "squaredcos_cap_v2")
SEED_LIMIT = 2**63  # above the largest seed
DEFAULT_MODEL = "emoji"
# What holds when neither the request nor the checkpoint says otherwise: diffusers' own defaults.
BUILT_IN: dict[str, object] = {"sampler": "ddim", "steps": 50}
GUIDANCE = {"--cfg-scale": "guidance", "--guidance-rescale": "guidance_rescale"}  # flag → field
GUIDANCE |= {"--guidance-start": "guidance_start", "--guidance-end": "guidance_end"}
BUILT_IN_TEXT: dict[str, object] = {"negative": "", "guidance": 7.5, "guidance_rescale": 0.0}
# Headings on the help page.
INPUT, PICTURE, SAMPLING, START = "Prompt", "Image", "Sampling", "Starting from an image"
CONTROL, DRAWERS = "ControlNets", "Models that do not denoise (GANs, and those that draw token by token)"


def _parse_stages(texts: Sequence[str]) -> dict[str, dict[str, object]]:
    return parse_stages(texts, dict(rows(ImageRequest)))


def _check_stages(name: str, values: Sequence[str]) -> None:
    Option(str, several=True).check(name, values)
    _parse_stages(values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSpec(ModelSpec):
    """What loading an image model depends on; see the fields of `ImageRequest`."""

    classifier: str | None = None
    control: tuple[str, ...] = ()
    embedding: tuple[str, ...] = ()
    vae: str | None = None
    refiner: str | None = None
    prior: str | None = None
    upscaler: tuple[str, ...] = ()
    prediction: str | None = None
    betas: str | None = None
    zero_snr: bool | None = None
    quantize: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """One image, or `count` of them from the seeds `seed`, `seed + 1`, …

    None leaves a value to the checkpoint and then to the built-in default; `resolve.resolve` fills it in.
    Raise UsageError for a value out of range and for values that exclude each other.

    sampler_options: further keyword arguments of the sampler. truncate: the side of a prompt that may be cut away when
    it is too long (None: that is an error). weighted: brackets in prompts are weights, and prompts may be of any length
    (`prompts.weighting`). lora, embedding: as their options name them, FILE[:SCALE] and FILE[:TOKEN]. batch: how many
    images go through the model at once. keep_rows, temperature, top_k, top_p, truncation: of models that do not
    denoise. best: how many of `count` to keep, by the similarity to the prompt that `clip` finds.
    prediction, betas: the checkpoint's `prediction_type` and `beta_schedule`, over what it says itself. vae: the name
    of what holds another autoencoder for it. refiner: the name of what continues the denoising from the fraction
    refiner_start on. prior: the name of what draws the embeddings that it is told. reference: images that the network
    looks at. mix: texts and images in place of the prompt (`mix`). upscaler: names of what enlarges the image, in this
    order. stage: settings of stages other than the main one, NAME:KEY=VALUE.
    hashes: name of a file or model → its fingerprint (see `files.inputs`), of those that the image was made with.
    control…: of several ControlNets, one value each; of scale, start and end one for all will do (see `controls`).
    """

    # fmt: off
    prompt: str = string("", called="the prompt")
    negative: str | None = string(None, "-n, --negative TEXT", "Negative prompt: what to avoid.", INPUT,
        after="prompt", also=("--negative-prompt", "--neg"))
    steps: int | None = integer(None, "--steps N", "Denoising steps (default: the model's, else 50).",
        SAMPLING, infotext="Steps", within=(1, 10_000), also=("--num-inference-steps", "--inference-steps"))
    sampler: str | None = string(None, "--sampler NAME",
        f"{', '.join(samplers.names())} (default: the model's if it needs its own, else ddim).", SAMPLING,
        after="guidance_rescale", complete=samplers.names(), valid=check_sampler, infotext="Sampler",
        labels=SAMPLER_LABELS, also=("--scheduler", "--sampling-method", "--sampler-name"))
    karras: bool | None = flag(None, "--karras/--no-karras",
        "Use Karras noise levels, with samplers that have them, such as euler.",
        SAMPLING, after="spacing", infotext="Schedule type", labels=SCHEDULE_LABELS)
    guidance: float | None = number(None, "--cfg-scale, --guidance S",
        "How closely to follow the prompt; 1 or less turns guidance off (default: the model's, else 7.5).",
        SAMPLING, infotext="CFG scale", within=(-1000, 1000),
        also=("--guidance-scale", "--cfg"))
    guidance_rescale: float | None = number(None, "--guidance-rescale R",
        "Reduces over-exposure from high guidance, 0 to 1 (default: 0, off).", SAMPLING, infotext="CFG rescale",
        within=(0, 1))
    guidance_start: float | None = number(None, "--guidance-start F",
        "Fraction of the steps at which guidance begins, 0 to 1; the later, the more seeds differ (default: 0).",
        SAMPLING, infotext="CFG start", within=(0, 1), also=("--cfg-start",))
    guidance_end: float | None = number(None, "--guidance-end F",
        "Fraction of the steps at which guidance ends, 0 (none) to 1; later steps compute half as much (default: 1).",
        SAMPLING, infotext="CFG end", within=(0, 1), also=("--cfg-end", "--guidance-stop"))
    seed: int | None = dataclasses.replace(SEED, within=(0, SEED_LIMIT - 1), infotext="Seed",
        read=lambda seed: None if seed == -1 else seed).field(None)
    width: int | None = integer(None, "-W, --width N", "Width in pixels.", PICTURE, within=(1, 2**14))
    height: int | None = integer(None, "-H, --height N", "Height in pixels.", PICTURE, within=(1, 2**14))
    eta: float | None = number(None, "--eta E",
        "Fresh noise in ddim's steps: 0 = none, 1 = as much as DDPM (default: 0).",
        SAMPLING, infotext="Eta", within=(0, 1))
    spacing: str | None = choice(spacings.ALL, "--spacing NAME",
        f"How timesteps are spaced: {', '.join(spacings.SPACINGS)}, or a list made for GLIDE or DeepFloyd IF: "
        f"{', '.join(spacings.SECTIONS)} (default: the model's; lcm has its own).", SAMPLING,
        infotext="Timestep spacing")
    sampler_options: Mapping[str, bool | float | str] = Option(Mapping, "--sampler-option NAME=VALUE",
        "Sampler-specific option (repeatable).", SAMPLING, called="--sampler-options", word=list[str],
        read=parse_sampler_options, valid=check_sampler_options,
        infotext="Sampler options").table()
    init: str | None = string(None, "-i, --init FILE",
        "Start from this image (img2img); `-` reads it from stdin.", START,
        infotext="Init image", names="file", also=("--init-image", "--init-img", "--image", "--image-path"))
    reference: tuple[str, ...] = several(str, "--reference FILE",
        "Look at this image while drawing, to edit it or to take from it what the prompt says (repeatable; for FLUX.1 "
        "Kontext and FLUX.2 klein).", START,
        after="init", infotext="Reference image", names="file", also=("--ref-image",))
    mask: str | None = string(None, "--mask FILE",
        "Repaint only the white areas of this mask; transparent areas count as black.", START,
        after="strength", infotext="Mask image", names="file")
    paste: bool = flag(True, "--paste/--no-paste",
        "Restore the original pixels where --mask is black, with a fade of 4 pixels (default: on; "
        "diffusers does not).", START,
        after="mask", infotext="Paste")
    strength: float | None = number(None, "--strength S",
        "How much to change the image: near 0 keeps it, 1 replaces it (default: the model's, else 0.8; with --mask 1).",
        START, valid=check_strength,
        infotext="Denoising strength", also=("--denoise", "--denoising-strength", "--image-strength"))
    keep_rows: int | None = integer(None, "--keep-rows N",
        "Rows of --init to keep, from the top (default: half).",
        DRAWERS, infotext="Keep rows", within=(1, 2**14))
    temperature: float | None = number(None, "--temperature, --temp T",
        "Lower is safer, higher is wilder; 0 always takes the most likely token (default: 1).", DRAWERS,
        infotext="Temperature", within=(0, 1000))
    top_k: int | None = integer(None, "--top-k K",
        "Sample from the K most likely tokens; 0 = all (default: 0).", DRAWERS,
        infotext="Top K", within=(0, 2**22))
    top_p: float | None = number(None, "--top-p P",
        "Sample from the most likely tokens that add up to probability P (default: 1, off).", DRAWERS,
        infotext="Top P", within=(0, 1))
    truncation: float | None = number(None, "--truncation T",
        "Truncation of a GAN's noise, above 0 and at most 1: lower values give better but more similar images "
        "(default: 0.4).", DRAWERS, infotext="Truncation", bounds=Bounds(0, 1, open_low=True))
    image_guidance: float | None = number(None, "--image-cfg-scale S",
        "How closely edit models follow --init (default: 1.5).", START,
        infotext="Image CFG scale", within=(0, 1000))
    classifier: str | None = string(None, "--classifier NAME",
        "Classifier guidance: a noisy-image classifier (for guided-diffusion models).", SAMPLING,
        infotext="Classifier", names="model", reload=True)
    classifier_scale: float | None = number(None, "--classifier-scale S",
        "Strength of the classifier (default: 1; use about 10 with unconditional models).", SAMPLING,
        infotext="Classifier scale", within=(0, 1000))
    control: tuple[str, ...] = several(str, "--control NAME",
        "A ControlNet to guide the image, such as lllyasviel/sd-controlnet-canny (repeatable, each with its "
        "--control-image).", CONTROL, infotext="ControlNet model", names="model", reload=True)
    control_image: tuple[str, ...] = several(str, "--control-image FILE",
        "Ready-made control image: edges, depth or pose (repeatable).", CONTROL,
        infotext="ControlNet image", names="file")
    control_scale: tuple[float, ...] = several(float, "--control-scale S",
        "Strength of the ControlNet: one for all, or one each (default: 1).", CONTROL, infotext="ControlNet scale",
        within=(-100, 100))
    control_start: tuple[float, ...] = several(float, "--control-start F",
        "Fraction of the steps at which the ControlNet begins, 0 to 1 (default: 0).", CONTROL,
        infotext="ControlNet start",
        within=(0, 1))
    control_end: tuple[float, ...] = several(float, "--control-end F",
        "Fraction of the steps at which the ControlNet ends, 0 to 1 (default: 1).", CONTROL, infotext="ControlNet end",
        within=(0, 1))
    count: int = integer(1, "--count N", "Generate N images, with the seeds seed, seed + 1, … (default: 1).", PICTURE,
        infotext="Count", within=(1, 1_000_000),
        also=("--num-images", "--num-images-per-prompt", "--batch-count", "--num-samples", "--n-samples", "--n",
        "--n-iter"))
    best: int | None = integer(None, "--best N",
        "Of the --count images, keep the N that match the prompt best according to --clip.", PICTURE,
        infotext="Best", within=(1, 1_000_000))
    clip: str | None = string(None, "--clip NAME",
        "A CLIP for --best, such as openai/clip-vit-base-patch32 (default: none).",
        PICTURE, env="GENCLI_CLIP_MODEL", infotext="CLIP", names="model")
    grid: bool = flag(False, "--grid/--no-grid", "Combine all images into one grid.", PICTURE, infotext="Grid")
    batch: int = integer(1, "--batch N",
        "Generate N images at a time (default: 1; tiny rounding differences are possible).", PICTURE,
        infotext="Batch", within=(1, 4096))
    truncate: str | None = choice(SIDES, "--truncate SIDE",
        "If the prompt is too long, cut off this end instead of failing: left or right.", INPUT,
        infotext="Truncate")
    mix: tuple[str, ...] = several(str, "--mix TEXT|FILE[:WEIGHT]",
        "Instead of a prompt, mix texts and images, each with a weight, as in --mix photo.png:0.3 --mix "
        "'a red cat:0.7' (repeatable; default weight: 1, negative ones lead away; for decoders whose prior can mix, "
        "such as Kandinsky 2.2).", INPUT,
        after="negative", valid=check_mix, infotext="Mix", names="mix")
    weighted: bool = flag(False, "--weighted/--no-weighted",
        "AUTOMATIC1111 prompt syntax: (word), ((word)), [word] and (word:1.2) set weights, \\( is a bracket, "
        "BREAK starts a new chunk, and prompts may have any length (default: brackets are text).", INPUT,
        infotext="Emphasis", labels=EMPHASIS_LABELS)
    lora: tuple[str, ...] = several(str, "--lora NAME[:SCALE]",
        "Apply a LoRA: a file or folder (diffusers, kohya or PEFT format), or a Hugging Face id, with /FILE if it "
        "has several (repeatable; default scale: 1).", MODEL, after="offline",
        infotext="Lora", names="asset", reload=True)
    clip_skip: int | None = integer(None, "--clip-skip N",
        "Use the text encoder's layer N from the end, as AUTOMATIC1111's web UI counts: 1 is the last (default: "
        "as the model was trained, 1; SDXL 2).", SAMPLING, after="guidance_rescale", infotext="Clip skip",
        within=(1, 64))
    embedding: tuple[str, ...] = several(str, "--embedding FILE[:WORD]",
        "Load a textual-inversion embedding. Use it in prompts as WORD (default: the name in the file, else the "
        "file's name; repeatable).", INPUT, infotext="Embeddings", names="asset", reload=True)
    vae: str | None = string(None, "--vae NAME",
        "Use this VAE instead of the model's own: a folder, a .safetensors file or a Hugging Face id.", MODEL,
        after="upscaler", infotext="VAE", names="model", reload=True)
    refiner: str | None = string(None, "--refiner NAME",
        "A second model for the last steps, such as SDXL's refiner: a folder, a file or a Hugging Face id.", MODEL,
        after="allow_pickle", infotext="Refiner", names="model", reload=True)
    refiner_start: float | None = number(None, "--refiner-start F",
        "Fraction of the steps at which the refiner takes over, above 0 and below 1 (default: 0.8).", SAMPLING,
        after="sampler_options", valid=check_refiner_start, infotext="Refiner switch at")
    prior: str | None = string(None, "--prior NAME",
        "The prior of a decoder such as Kandinsky 2.2's: a folder or a Hugging Face id (default: its "
        "counterpart on the Hub, for decoders from the Hub).", MODEL, after="refiner", infotext="Prior",
        names="model", reload=True)
    upscaler: tuple[str, ...] = several(str, "--upscaler NAME",
        "Enlarge the image four times with this model, such as x4-upscaler or DeepFloyd IF's second stage: a "
        "folder or a Hugging Face id (repeatable).", MODEL, after="prior",
        infotext="Upscaler", names="model", reload=True)
    noise_level: int | None = integer(None, "--noise-level N",
        "Noise that an upscaler adds to its input, as a timestep; more noise lets it invent more (default: the "
        "model's, such as 20 or 250).", SAMPLING, after="refiner_start", infotext="Noise level", within=(0, 999))
    stage: tuple[str, ...] = several(str, "--stage NAME:KEY=VALUE",
        "Change a setting of one stage (`gencli models show` lists them), as in prior:steps=20 (repeatable); --steps "
        "sets the main stage. KEY is "
        f"{', '.join([*STAGE_KEYS][:-1])} or {[*STAGE_KEYS][-1]}. A refiner's steps count all denoising steps.",
        SAMPLING, after="noise_level", valid=_check_stages, infotext="Stages")
    vae_tiling: bool = flag(False, "--vae-tiling/--no-vae-tiling",
        "Decode in tiles: less memory for large images, with slightly different pixels.", MODEL, after="vae",
        infotext="VAE tiling")
    dtype: str | None = dataclasses.replace(DTYPE, choices=DTYPES, valid=None, infotext="Dtype", reload=True,
        read=lambda word: None if word == "auto" else word).field(None)
    quantize: str | None = dataclasses.replace(QUANTIZE, infotext="Quantize", reload=True).field(None)
    prediction: str | None = choice(PREDICTIONS, "--prediction NAME",
        "Prediction type, if the model file does not specify it: epsilon, v_prediction or sample.", MODEL,
        after="model", infotext="Prediction", reload=True)
    betas: str | None = choice(BETAS, "--betas NAME",
        f"Noise schedule of the training, if the file does not specify it: {', '.join(BETAS)}.", MODEL,
        after="prediction",
        infotext="Betas", reload=True)
    zero_snr: bool | None = flag(None, "--zero-snr/--no-zero-snr",
        "Whether the noise schedule ends in pure noise (zero terminal SNR), if the file does not specify it.", MODEL,
        after="betas",
        infotext="Zero SNR", reload=True)
    hashes: Mapping[str, str] = Option(Mapping, called="hashes", valid=check_hashes).table()
    model: str = dataclasses.replace(named_model("GENCLI_IMAGE_MODEL", DEFAULT_MODEL, "image",
        example="sdxl-turbo"), infotext="Model", names="model",
        reload=True).field(DEFAULT_MODEL)
    # fmt: on

    def __post_init__(self) -> None:
        check(self)
        for name, value in named_sampler(vars(self)).items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "quantize", check_quantize(self.quantize, self.dtype))
        list(self.controls)  # raises
        start, end = self.guidance_interval
        if start > end:
            raise UsageError(f"--guidance-start {start:g} is behind --guidance-end {end:g}")
        if self.refiner_start is not None and self.refiner is None:
            raise UsageError("--refiner-start without a refiner", "name one with --refiner")
        if self.seed is not None and self.seed + self.count > SEED_LIMIT:
            raise UsageError(f"--seed {self.seed} with --count {self.count}: the last seed is above {SEED_LIMIT - 1}")
        if self.init is None and (self.mask is not None or self.strength is not None):
            what = "mask" if self.mask is not None else "strength"
            raise UsageError(f"--{what} without an image to start from", "name one with -i/--init FILE")
        if self.init is None and self.keep_rows is not None:
            raise UsageError("--keep-rows needs --init", "name one with -i/--init FILE")
        if self.best is not None and self.best > self.count:
            raise UsageError(f"--best {self.best} of --count {self.count}: there are not that many", "raise --count")

    @property
    def stages(self) -> dict[str, dict[str, object]]:
        """The values of --stage: name of a stage → fields of this class → values."""
        return _parse_stages(self.stage)

    @property
    def guidance_interval(self) -> tuple[float, float]:
        """The fractions of the steps at which guidance begins and ends."""
        return self.guidance_start or 0.0, 1.0 if self.guidance_end is None else self.guidance_end

    def guided_steps(self, count: int) -> range:
        """Return the indices of the steps that are guided, of so many, as diffusers' guiders count them."""
        start, end = self.guidance_interval
        return range(int(start * count), int(end * count))

    @property
    def controls(self) -> list[Control]:
        """The ControlNets, each with its own values. Raise UsageError for values that do not fit each other."""
        options = {"scale": self.control_scale, "start": self.control_start, "end": self.control_end}
        return controls_of(self.control, self.control_image, options)

    def replace(self, **changes: object) -> ImageRequest:
        """Return a copy with other values, checked again."""
        return make(type(self), {**vars(self), **changes})

    def item(self, index: int, **changes: object) -> ImageRequest:
        """Return the request that makes image `index` of `count` again, alone, with other values if need be."""
        seed = None if self.seed is None else self.seed + index
        alone: dict[str, object] = {"seed": seed, "count": 1, "best": None, "clip": None, "grid": False, "batch": 1}
        packed = {} if self.quantize is None else {"dtype": None}
        return self.replace(**{**alone, **changes, **packed})

    def spec(self, where: ModelSpec) -> ImageSpec:
        """Return what has to be loaded for this request, with the device, threads and pickles of `where`."""
        own = {name: getattr(self, name) for name, option in rows(self) if option.reload}
        return make(ImageSpec, {**vars(where), **own, "dtype": self.dtype or "auto"})
