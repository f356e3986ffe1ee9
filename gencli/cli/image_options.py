"""The options of `gencli image`, one name each; their groups are the headings of its help page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from gencli.cli import options
from gencli.image.diffusion.samplers import names
from gencli.image.request import BETAS, PREDICTIONS, SIDES, SPACINGS, STAGE_KEYS

FORMATS = ("png", "jpeg", "webp")
INPUT, PICTURE, SAMPLING, START = "Prompt", "Picture", "Sampling", "Starting from a picture"
PIXELS = "Models that draw pixel by pixel"


def _complete(known: Sequence[str]) -> Callable[[str], list[str]]:
    return lambda incomplete: [name for name in known if name.startswith(incomplete)]


def _option(panel: str, *names: str, metavar: str | None = None, help: str, **more: Any) -> Any:
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, **more)


Prompt = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PROMPT",
        help="What to draw, words joined by spaces; `-` stands for all of stdin, set off by newlines. Without any, an "
        "unprompted sample is drawn. `--` before one that begins with a dash.",
        rich_help_panel=INPUT,
    ),
]
Negative = Annotated[str | None, _option(INPUT, "-n", "--negative", metavar="TEXT", help="What not to draw.")]
Lines = Annotated[bool, _option(INPUT, "--lines", help="Every line of stdin is a prompt of its own.")]
From = Annotated[
    str | None,
    _option(
        INPUT,
        "--from",
        metavar="FILE",
        help="Make the picture in FILE again from what is written in it; what is given beside it overrides.",
    ),
]
Truncate = Annotated[
    str | None,
    _option(
        INPUT,
        "--truncate",
        metavar="SIDE",
        help="Leave out the left or right end of a prompt that is too long (otherwise it is an error).",
        autocompletion=_complete(SIDES),
    ),
]

Size = Annotated[
    str | None,
    _option(
        PICTURE,
        "--size",
        metavar="WxH",
        help="Width and height in pixels, as in 512x512 (default: the model's own, or near that of --init).",
    ),
]
Width = Annotated[int | None, _option(PICTURE, "-W", "--width", metavar="N", help="Width alone.")]
Height = Annotated[int | None, _option(PICTURE, "-H", "--height", metavar="N", help="Height alone.")]
Count = Annotated[
    int,
    _option(PICTURE, "--count", metavar="N", help="Make N pictures, from the seeds seed, seed + 1, … (default: 1)."),
]
Best = Annotated[
    int | None,
    _option(
        PICTURE,
        "--best",
        metavar="N",
        help="Make --count pictures and keep the N that fit the prompt best, by the model of --clip.",
    ),
]
Clip = Annotated[
    str | None,
    _option(
        PICTURE,
        "--clip",
        metavar="NAME",
        envvar="GENCLI_CLIP_MODEL",
        help="A CLIP for --best, such as openai/clip-vit-base-patch32 (default: none; environment: GENCLI_CLIP_MODEL).",
    ),
]
Grid = Annotated[bool, _option(PICTURE, "--grid/--no-grid", help="Put all pictures into one.")]
Batch = Annotated[
    int,
    _option(
        PICTURE,
        "--batch",
        metavar="N",
        help="Send N pictures through the model at once (default: 1). Noise is the same, rounding may differ.",
    ),
]

Steps = Annotated[
    int | None,
    _option(SAMPLING, "--steps", metavar="N", help="Denoising steps (default: 50; 4 for LCM and Turbo models)."),
]
Guidance = Annotated[
    float | None,
    _option(
        SAMPLING,
        "--cfg-scale",
        "--guidance",
        metavar="S",
        help="How closely to follow the prompt; 1 or less is the model's own prediction (default: 7.5; SDXL 5, "
        "LCM 8.5, Turbo 1).",
    ),
]
GuidanceRescale = Annotated[
    float | None,
    _option(
        SAMPLING,
        "--guidance-rescale",
        metavar="R",
        help="Against overexposure by guidance, 0 to 1 (default: 0, off).",
    ),
]
Sampler = Annotated[
    str | None,
    _option(
        SAMPLING,
        "--sampler",
        metavar="NAME",
        help=f"{', '.join(names())} (default: ddim; that of their own for LCM and Turbo models).",
        autocompletion=_complete(names()),
    ),
]
Eta = Annotated[
    float | None,
    _option(
        SAMPLING, "--eta", metavar="E", help="Fresh noise in ddim's steps: 0 none, 1 as much as DDPM (default: 0)."
    ),
]
Spacing = Annotated[
    str | None,
    _option(
        SAMPLING,
        "--spacing",
        metavar="NAME",
        help=f"How steps lie on the schedule: {', '.join(SPACINGS)} (default: the checkpoint's; lcm has its own).",
        autocompletion=_complete(SPACINGS),
    ),
]
Karras = Annotated[
    bool | None,
    _option(SAMPLING, "--karras/--no-karras", help="Karras noise levels, for euler and dpmpp_2m."),
]
SamplerOptions = Annotated[
    list[str] | None,
    _option(
        SAMPLING, "--sampler-option", metavar="NAME=VALUE", help="Any other option that the sampler has (repeatable)."
    ),
]

Init = Annotated[
    str | None, _option(START, "-i", "--init", metavar="FILE", help="Begin from this picture (`-`: from stdin).")
]
Strength = Annotated[
    float | None,
    _option(
        START,
        "--strength",
        metavar="S",
        help="How much of it to give up, above 0 and at most 1 (default: 0.8; with --mask 1).",
    ),
]
Mask = Annotated[
    str | None,
    _option(START, "--mask", metavar="FILE", help="Paint anew only where this picture is white."),
]
ImageGuidance = Annotated[
    float | None,
    _option(
        START,
        "--image-cfg-scale",
        metavar="S",
        help="How closely to keep to --init, for models that edit a picture (default: 1.5).",
    ),
]

KeepRows = Annotated[
    int | None,
    _option(PIXELS, "--keep-rows", metavar="N", help="Rows of --init to keep, from the top (default: half)."),
]
Temperature = Annotated[
    float | None,
    _option(
        PIXELS,
        "--temperature",
        "--temp",
        metavar="T",
        help="Lower is safer, higher is wilder, 0 always takes the likeliest colour (default: 1).",
    ),
]
TopK = Annotated[
    int | None, _option(PIXELS, "--top-k", metavar="K", help="Only the K likeliest colours; 0 is all (default: 0).")
]
TopP = Annotated[
    float | None,
    _option(PIXELS, "--top-p", metavar="P", help="Only the likeliest colours that together reach P (default: 1, off)."),
]

Output = Annotated[
    str | None,
    _option(
        options.OUTPUT,
        "-o",
        "--output",
        metavar="PATH",
        help="File to write, .png, .jpg or .webp; {seed}, {index} and {prompt} in it stand for the picture's own; `-` "
        "is stdout (default: stdout when it is no terminal, else a new gencli-SEED.png).",
    ),
]
Format = Annotated[
    str | None,
    _option(
        options.OUTPUT,
        "--format",
        metavar="NAME",
        help="png, jpeg or webp (default: as PATH ends, else png).",
        autocompletion=_complete(FORMATS),
    ),
]
NoMetadata = Annotated[
    bool, _option(options.OUTPUT, "--no-metadata", help="Do not write into the picture how it was made.")
]
Gif = Annotated[
    str | None, _option(options.OUTPUT, "--gif", metavar="FILE", help="Write the denoising as an animation too.")
]
SaveSteps = Annotated[
    str | None,
    _option(options.OUTPUT, "--save-steps", metavar="DIR", help="Save what the picture looks like after each step."),
]
Preview = Annotated[
    bool, _option(options.OUTPUT, "--preview", help="Show the picture on the terminal while it is made.")
]
Prediction = Annotated[
    str | None,
    _option(
        options.MODEL,
        "--prediction",
        metavar="NAME",
        help="What the model predicts, where its file does not say it: epsilon, v_prediction or sample.",
        autocompletion=_complete(PREDICTIONS),
    ),
]
Betas = Annotated[
    str | None,
    _option(
        options.MODEL,
        "--betas",
        metavar="NAME",
        help=f"The noise schedule that it was trained on, likewise: {', '.join(BETAS)}.",
        autocompletion=_complete(BETAS),
    ),
]
Vae = Annotated[
    str | None,
    _option(
        options.RUN,
        "--vae",
        metavar="NAME",
        help="An autoencoder in the place of the model's own: a folder, a .safetensors file or a Hugging Face id.",
    ),
]
VaeTiling = Annotated[
    bool,
    _option(
        options.RUN,
        "--vae-tiling/--no-vae-tiling",
        help="Decode in tiles: less memory for large pictures, slightly other pixels.",
    ),
]
Refiner = Annotated[
    str | None,
    _option(
        options.MODEL,
        "--refiner",
        metavar="NAME",
        help="A second model that finishes what SDXL began, such as SDXL's refiner: a folder, a single file or a "
        "Hugging Face id.",
    ),
]
RefinerStart = Annotated[
    float | None,
    _option(
        SAMPLING,
        "--refiner-start",
        metavar="F",
        help="The fraction of the denoising from which on the refiner works, 0 to 1 (default: 0.8).",
    ),
]
Stage = Annotated[
    list[str] | None,
    _option(
        SAMPLING,
        "--stage",
        metavar="NAME:KEY=VALUE",
        help="A setting of a model's further stage, as in refiner:steps=20 (repeatable); KEY is "
        f"{', '.join([*STAGE_KEYS][:-1])} or {[*STAGE_KEYS][-1]}.",
    ),
]
