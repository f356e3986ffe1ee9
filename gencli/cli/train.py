"""`gencli train`: the recipes that made the embedded checkpoints, for anyone's own texts and pictures. No torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from gencli import devices, signals
from gencli.cli.console import Console
from gencli.cli.help import SETTINGS, Group
from gencli.cli.options import Asked, Fetching, Reporting, command, model_option
from gencli.cli.train_output import follow, write
from gencli.errors import GencliError, UsageError, about
from gencli.options import Option, check, integer, make, number, rows, string
from gencli.spec import named_model
from gencli.train.recipe import INPUT, LEAD, SEED, THREADS, ImageRecipe, TextRecipe, at_least

INIT_RATE, LORA_RATE, IMAGE_INIT_RATE = 5e-4, 1e-3, 1e-4  # learning rates of runs that go on from a checkpoint
DATA = (
    'Plain text, or JSON lines with a key "text" (.jsonl, .ndjson, .json); a file, or a folder, read for .txt, .md, '
    ".rst, .jsonl and .ndjson. Any of them may be gzipped (.gz)."
)
CAPTIONS = (
    'JSON lines: "file" and "label", or "file_name" and "text", and "tags" if there are any (default: metadata.jsonl '
    "among the images, or a .txt beside each)."
)

DRAWN = "Drawing"

app = typer.Typer(cls=Group, context_settings=SETTINGS, add_completion=False, rich_markup_mode=None)


@dataclass(eq=False, repr=False)
class Machine:
    threads: int | None = THREADS.field(None)


@dataclass(eq=False, repr=False)
class Captions:
    captions: tuple[Path, ...] = Option(
        Path,
        "--captions FILE",
        f"{CAPTIONS} Given again: further captions and tags for the same images.",
        INPUT,
        several=True,
        after="out",
    ).field(())


@dataclass(eq=False, repr=False)
class Scored:
    """What is drawn, to be recognised."""

    # fmt: off
    captions: str | None = string(None, "--captions FILE", CAPTIONS, INPUT)
    count: int = integer(200, "--count N", "Captions to draw", DRAWN, valid=partial(at_least, 1), usual=200)
    steps: int | None = integer(None, "--steps N", "Steps (default: the model's).", DRAWN, valid=partial(at_least, 1))
    cfg_scale: float | None = number(None, "--cfg-scale X", "Guidance (default: the model's).", DRAWN)
    unseen_colors: int | None = integer(None, "--unseen-colors N",
        "Draw things in colours that neither the data nor `train image --recolor N` shows.", DRAWN,
        valid=partial(at_least, 0))
    synonyms: str | None = string(None, "--synonyms FILE",
        "Draw other words for captions: one line per word, CAPTION tab WORD.", DRAWN)
    pairs: int | None = integer(None, "--pairs N", 'Draw N times "a A and a B"; both must be recognised.', DRAWN,
        valid=partial(at_least, 1))
    seeds: int = integer(1, "--seeds N",
        "Draw everything N times, and report the mean difference of pixels so far, of 255", DRAWN,
        valid=partial(at_least, 1), usual=1)
    seed: int = replace(SEED, panel=DRAWN).field(0)
    model: str = named_model("GENCLI_IMAGE_MODEL", "emoji", "image", example="sdxl-turbo").field("emoji")
    # fmt: on

    def __post_init__(self) -> None:
        check(self)


@app.callback()
def train() -> None:
    """Train a small model from scratch or fine-tune one. Interrupted runs resume."""


@command(app, name="text", without=("stats",))
def text(
    ctx: typer.Context,
    data: Annotated[Path, typer.Argument(metavar="DATA", help=DATA)],
    asked: Asked[TextRecipe],
    machine: Machine,
    fetching: Fetching,
    reporting: Reporting,
) -> None:
    """Train a tokenizer and a GPT-2 model on your texts, or fine-tune an existing model (--init), fully or as LoRA
    (--lora-rank).

    The result is DIR/checkpoint (or DIR/adapter); loss.csv and loss.png are updated during training. Progress is
    printed as JSON lines: step, loss (nats per token), speed, and at each evaluation bits per byte of the first 40
    validation texts of each kind; `gencli train score-text` scores all.
    """
    recipe = asked.make(data=str(data))
    _need(data, *([Path(recipe.validation)] if recipe.validation else []))
    _check(recipe, machine)
    lora = _given(asked, "lora_rank", "lora_alpha", "lora_targets")
    if lora and recipe.lora_rank is None:
        raise UsageError(f"{lora[0]} without --lora-rank", "--lora-rank 8 is a common choice")
    if lora and not recipe.init:
        raise UsageError("--lora-rank without --init", "adapters belong to a model: name it")
    if recipe.init and (sizes := _given(asked, "n_layer", "n_embd", "n_head", "vocab_size")):
        raise UsageError(f"{sizes[0]} with --init", "a model's own sizes and tokenizer hold")
    recipe.check_sizes()
    usual: dict[str, object] = {"lr": INIT_RATE} if recipe.init else {}
    if recipe.lora_rank is not None:
        usual = {"lr": LORA_RATE, "optimizer": "adamw"}
    recipe = make(TextRecipe, {**vars(recipe), **{name: usual[name] for name in usual.keys() - asked.given}})
    console: Console = ctx.obj
    _fetch(console, recipe.init, fetching)
    with signals.raise_pending_signals():
        from gencli.train.text import train
    devices.set_threads(machine.threads)
    console.progress("reading texts")
    follow(console, recipe, train(recipe, console.note), "tokens", "bits_per_byte")
    write(console, {"made": str(Path(recipe.out) / ("adapter" if recipe.lora_rank else "checkpoint"))})


@command(app, name="image", without=("stats",))
def image(
    ctx: typer.Context,
    pictures: Annotated[Path, typer.Argument(metavar="IMAGES", help="Zip or folder of images.")],
    asked: Asked[ImageRecipe],
    captions: Captions,
    machine: Machine,
    fetching: Fetching,
    reporting: Reporting,
) -> None:
    """Train an autoencoder and a text-to-image model in Stable Diffusion's layout on your captioned images, or
    fine-tune an existing model (--init).

    The result is DIR/checkpoint; loss.csv and loss.png are updated during training. Progress is printed as JSON lines:
    stage, step, loss, speed, and under "validation" the loss of the averaged weights on fixed images and noise.
    """
    recipe = asked.make()
    _need(pictures)
    _need(*captions.captions, files=True)
    _check(recipe, machine)
    if not recipe.init and recipe.keep_text_encoder:
        raise UsageError("--keep-text-encoder without --init", "a new text encoder has nothing to keep")
    if recipe.words_steps and (recipe.keep_text_encoder or not recipe.init):
        raise UsageError("--words-steps needs --init, and no --keep-text-encoder", "the text encoder is what it trains")
    if recipe.whole_words and not recipe.words_steps:
        raise UsageError("--whole-words without --words-steps", "the text encoder must learn what the new tokens mean")
    if recipe.random_flip and not recipe.variants:
        raise UsageError("--random-flip without --variants", "it mirrors half of the varied copies")
    new = ("autoencoder_widths", "widths", "text_width", "vocabulary", "autoencoder_steps")
    if recipe.init and (said := _given(asked, *new)):
        raise UsageError(f"{said[0]} with --init", "a model's own sizes, tokenizer and autoencoder hold")
    if recipe.init and "lr" not in asked.given:
        recipe = dataclasses.replace(recipe, lr=IMAGE_INIT_RATE)
    if not recipe.init:
        recipe.check_sizes()
    console: Console = ctx.obj
    _fetch(console, recipe.init, fetching)
    with signals.raise_pending_signals():
        from gencli.train.image import train
    devices.set_threads(machine.threads)
    console.progress("reading images")
    follow(console, recipe, train(pictures, captions.captions, recipe, console.note), "pictures", "validation")
    write(console, {"made": str(Path(recipe.out) / "checkpoint")})


@command(app, name="score-text", without=("stats",))
def score_text(
    ctx: typer.Context,
    data: Annotated[Path, typer.Argument(metavar="DATA", help=DATA)],
    machine: Machine,
    reporting: Reporting,
    model: Annotated[str, model_option("GENCLI_TEXT_MODEL", "stories", "text")] = "stories",
    lead: Annotated[
        str,
        typer.Option(
            "--lead",
            metavar="PREFIX",
            help="Texts whose source or file name starts with PREFIX are the main corpus.",
            rich_help_panel=INPUT,
        ),
    ] = LEAD,
) -> None:
    """Evaluate a language model in bits per byte, as JSON (main corpus and rest separately)."""
    _need(data)
    devices.set_threads(machine.threads)
    from gencli.train.score import score_texts

    console: Console = ctx.obj
    console.progress("scoring")
    scores = score_texts(model, data, lead, console.note)
    write(console, {"bits_per_byte": {name: round(value, 4) for name, value in scores.items()}})


@command(app, name="score-image", without=("stats",))
def score_image(
    ctx: typer.Context,
    pictures: Annotated[Path, typer.Argument(metavar="IMAGES", help="Zip or folder of images.")],
    scored: Scored,
    machine: Machine,
    reporting: Reporting,
) -> None:
    """Recall: fraction of captions whose generated image is nearest to its own training image (JSON per caption)."""
    captions, synonyms = ([Path(file)] if file else [] for file in (scored.captions, scored.synonyms))
    _need(pictures)
    _need(*captions, *synonyms, files=True)
    devices.set_threads(machine.threads)
    from gencli.train.score import score_pictures

    console: Console = ctx.obj
    recognised, differences = 0, []
    drawings = score_pictures(
        scored.model,
        pictures,
        captions,
        count=scored.count,
        seed=scored.seed,
        steps=scored.steps,
        guidance=scored.cfg_scale,
        unseen_colors=scored.unseen_colors,
        synonyms=next(iter(synonyms), None),
        pairs=scored.pairs,
        seeds=scored.seeds,
    )
    for count, drawing in enumerate(drawings, 1):
        recognised += drawing.recognised
        task, nearest = drawing.task, drawing.nearest
        found: dict[str, object] = {"label": task.labels[0] if len(task.labels) == 1 else task.labels}
        found |= {"prompt": task.prompt} if task.prompt != found["label"] else {}
        found |= {"seed": drawing.seed, "recognised": drawing.recognised}
        found |= {"nearest": nearest[0] if len(nearest) == 1 else nearest, "share": round(recognised / count, 3)}
        if drawing.difference is not None:
            differences.append(drawing.difference)
            found["difference"] = round(sum(differences) / len(differences), 2)
        write(console, found)
        console.progress("drawing", count, (scored.pairs or scored.count) * scored.seeds)


def _need(*paths: Path, files: bool = False) -> None:
    """Raise GencliError for a file that is not there, and for a folder where only `files` will do."""
    for path in paths:
        if not path.exists():
            raise GencliError(f"no such file: {path}", "paths are relative to where gencli runs")
        if files and path.is_dir():
            raise GencliError(f"{path} is a folder", "name a file in it")


def _given(asked: Asked[TextRecipe] | Asked[ImageRecipe], *fields: str) -> list[str]:
    """Return what the command line calls those of the fields that it gives."""
    return [option.name(name) for name, option in rows(asked.record) if name in asked.given and name in fields]


def _check(recipe: TextRecipe | ImageRecipe, machine: Machine) -> None:
    """Raise UsageError for values that nothing can be trained with."""
    devices.check_names(recipe.device, recipe.dtype, machine.threads)
    if recipe.dtype == "float16":
        raise UsageError(
            "--dtype float16: too narrow a range for training without loss scaling", "bfloat16 is as quick"
        )
    check(recipe)
    out = Path(recipe.out)
    there = next((path for path in (out, *out.parents) if path.exists()), out)
    if there.exists() and not there.is_dir():
        raise UsageError(f"--out {out}: {there} is a file", "the result is a folder: choose another name")


def _fetch(console: Console, init: str, fetching: Fetching) -> None:
    """Have the checkpoint that a run begins with here."""
    if init:
        from gencli.checkpoints.find import find
        from gencli.cli.download import show_download

        with about("--init"):
            find(init, offline=fetching.offline, progress=show_download(console))
