"""`gencli train image`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from gencli import devices, stopping
from gencli.cli import options, train_options
from gencli.cli.console import Console
from gencli.cli.train_options import SIZES, START, recipe_option
from gencli.errors import UsageError

INIT_RATE = 1e-4
CAPTIONS = (
    'JSON lines: "file" and "label", or "file_name" and "text", and "tags" if there are any (default: metadata.jsonl '
    "among the pictures, or a .txt beside each)."
)

WORDS = "Given again: further labels and tags for the same pictures."


def image(
    ctx: typer.Context,
    pictures: Annotated[Path, typer.Argument(metavar="PICTURES", help="Zip or folder of pictures.")],
    out: train_options.Out,
    captions: Annotated[
        list[Path] | None, typer.Option("--captions", metavar="FILE", help=f"{CAPTIONS} {WORDS}")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="MODEL",
            help="Go on from this checkpoint in Stable Diffusion's layout; its autoencoder is kept.",
            rich_help_panel=START,
            autocompletion=options.complete_model,
        ),
    ] = None,
    keep_text_encoder: Annotated[
        bool,
        typer.Option("--keep-text-encoder", help="Train its UNet alone.", rich_help_panel=START),
    ] = False,
    size: Annotated[
        int | None,
        typer.Option(
            "--size",
            metavar="PIXELS",
            help="Width and height of pictures (default: 128, or what --init was trained with).",
            rich_help_panel=SIZES,
        ),
    ] = None,
    autoencoder_widths: Annotated[
        str | None,
        typer.Option(
            "--autoencoder-widths",
            metavar="N,N…",
            help="The autoencoder's channels; each but the last halves the picture (default: 24,48,96,128).",
            rich_help_panel=SIZES,
        ),
    ] = None,
    widths: Annotated[
        str | None,
        typer.Option(
            "--widths",
            metavar="N,N…",
            help="The UNet's channels, multiples of 16; each but the last halves the latents (default: 64,128,112).",
            rich_help_panel=SIZES,
        ),
    ] = None,
    text_width: Annotated[
        int | None, recipe_option("--text-width", "N", "Numbers a token of the text encoder (default: 128).", SIZES)
    ] = None,
    vocab: Annotated[int | None, recipe_option("--vocab", "N", "Its tokens (default: 4096).", SIZES)] = None,
    autoencoder_steps: Annotated[
        int | None, recipe_option("--autoencoder-steps", "N", "Steps of the first stage (default: 1000).")
    ] = None,
    steps: Annotated[int | None, recipe_option("--steps", "N", "Steps of the second (default: 4000).")] = None,
    decoder_steps: Annotated[
        int | None,
        recipe_option(
            "--decoder-steps", "N", "Steps of a third: the decoder learns to draw from inexact latents (default: 0)."
        ),
    ] = None,
    batch: Annotated[int | None, recipe_option("--batch", "N", "Pictures a step (default: 64).")] = None,
    lr: Annotated[
        float | None, recipe_option("--lr", "X", "Highest learning rate (default: 1.5e-3; with --init 1e-4).")
    ] = None,
    optimizer: train_options.Optimizer = None,
    weight_decay: Annotated[
        float | None, recipe_option("--weight-decay", "X", "Decoupled decay, of matrices only (default: 0.01).")
    ] = None,
    warmup: Annotated[
        int | None, recipe_option("--warmup", "N", "Steps until the rate is highest (default: 50).")
    ] = None,
    cooldown: Annotated[
        float | None,
        recipe_option("--cooldown", "P", "Last share of the steps, as the rate falls (default: 0.4)."),
    ] = None,
    ema: Annotated[
        float | None, recipe_option("--ema", "P", "Decay of the average of weights that is kept (default: 0.999).")
    ] = None,
    drop: Annotated[
        float | None, recipe_option("--drop", "P", "Share of captions left out, for guidance (default: 0.1).")
    ] = None,
    min_snr: Annotated[
        float | None,
        recipe_option("--min-snr", "X", "Let errors of x0 count min(SNR, X) times, often 5 (default: 0, all alike)."),
    ] = None,
    variants: Annotated[
        int, recipe_option("--variants", "N", "Copies a picture, turned, moved and tinted a little (default: 0).")
    ] = 0,
    copies: Annotated[int, recipe_option("--recolor", "N", "Repainted copies a picture (default: 0).")] = 0,
    pairs: Annotated[int, recipe_option("--pairs", "N", 'Pictures of "A and B" (default: 0).')] = 0,
    hold_out: Annotated[
        float | None, recipe_option("--hold-out", "P", "Share of pictures that is only scored (default: 0).")
    ] = None,
    evaluate_every: Annotated[
        int, recipe_option("--evaluate-every", "N", "Steps between two scores (default: 200).")
    ] = 200,
    save_every: train_options.SaveEvery = 180.0,
    seed: train_options.RunSeed = 0,
    changes: train_options.Changes = False,
    device: options.Device = "auto",
    dtype: train_options.Dtype = "auto",
    threads: options.Threads = None,
    offline: options.Offline = False,
    quiet: options.Quiet = False,
    color: options.Color = options.When.auto,
    debug: options.Debug = False,
) -> None:
    """Captioned pictures → an autoencoder, then a text-to-image checkpoint in Stable Diffusion's layout.

    What is made lies in DIR/checkpoint; loss.csv and loss.png grow beside it, and the like for the other stages.
    stdout gets a JSON line now and then: stage, step, loss, speed, and under "validation" the loss of the averaged
    weights on pictures and noise that stay the same.
    """
    first, *words = captions or [None]
    train_options.need(pictures, first, *words)
    train_options.check_running(device, dtype, threads)
    train_options.check_numbers({"--lr": lr}, 0, 1e6)
    train_options.check_numbers({"--cooldown": cooldown}, 0, 1)
    train_options.check_numbers({"--weight-decay": weight_decay, "--drop": drop}, -1e-9, 1)
    train_options.check_numbers({"--ema": ema, "--hold-out": hold_out}, -1e-9, 0.99999)
    train_options.check_numbers({"--save-every": save_every, "--min-snr": min_snr}, -1e-9, 1e9)
    counts = {"--steps": steps, "--batch": batch, "--autoencoder-steps": autoencoder_steps, "--size": size}
    counts |= {"--evaluate-every": evaluate_every, "--text-width": text_width, "--vocab": vocab}
    train_options.check_counts(counts, 1)
    train_options.check_counts(
        {
            "--warmup": warmup,
            "--variants": variants,
            "--recolor": copies,
            "--pairs": pairs,
            "--decoder-steps": decoder_steps,
        },
        0,
    )
    coder, unet = _widths("--autoencoder-widths", autoencoder_widths), _widths("--widths", widths)
    new = {"--autoencoder-widths": coder, "--widths": unet, "--text-width": text_width, "--vocab": vocab}
    new["--autoencoder-steps"] = autoencoder_steps
    _check_start(init, keep_text_encoder, new)
    if init is None:
        _check_sizes(size or 128, coder or (24, 48, 96, 128), unet or (64, 128, 112), text_width or 128, vocab or 4096)
    console: Console = ctx.obj
    if init is not None:
        from gencli.checkpoints.find import find
        from gencli.cli.download import show_download

        find(init, offline=offline, progress=show_download(console))
    with stopping.heeded():
        from gencli.train.autoencoder import AutoencoderRecipe
        from gencli.train.decoder import DecoderRecipe
        from gencli.train.diffusion import DiffusionRecipe
        from gencli.train.image import ImageRecipe, train
    devices.set_threads(threads)
    where: dict[str, Any] = {"out": str(out), "seed": seed, "save_every": save_every}
    computed = {**where, "device": device, "dtype": dtype}
    said = train_options.said
    given = {
        "init": init, "size": size, "widths": unet, "text_width": text_width, "vocabulary": vocab, "steps": steps,
        "batch": batch, "lr": INIT_RATE if init and lr is None else lr, "optimizer": optimizer, "ema": ema,
        "weight_decay": weight_decay, "warmup": warmup, "cooldown": cooldown, "drop": drop, "hold_out": hold_out,
        "min_snr": min_snr,
    }  # fmt: skip
    kept: dict[str, Any] = {
        "keep_text_encoder": keep_text_encoder,
        "variants": variants,
        "copies": copies,
        "pairs": pairs,
        "evaluate_every": evaluate_every,
    }
    recipe = ImageRecipe(
        AutoencoderRecipe(**computed, **said({"steps": autoencoder_steps, "size": size, "widths": coder})),
        DiffusionRecipe(**computed, **kept, **said(given)),
        DecoderRecipe(**computed, steps=decoder_steps or 0),
    )
    console.progress("reading pictures")
    with closing(train(pictures, first, recipe, words=words, changes=changes)) as run:
        for at in run:
            train_options.show(console, at, "pictures", "validation", stage=at.stage)
    train_options.write(console, {"made": str(out / "checkpoint")})


def _widths(option: str, text: str | None) -> tuple[int, ...] | None:
    """`24,48,96` as numbers. Raises UsageError."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not 1 <= len(words) <= 8 or not all(word.isdecimal() and 0 < int(word) <= 2**16 for word in words):
        raise UsageError(f"{option} {text!r}: numbers with commas between are wanted, such as 64,128")
    return tuple(int(word) for word in words)


def _check_start(init: str | None, keep_text_encoder: bool, new: dict[str, Any]) -> None:
    """Raises UsageError for options that contradict each other."""
    if init is None and keep_text_encoder:
        raise UsageError("--keep-text-encoder without --init", "a new text encoder has nothing to keep")
    if init is not None and (said := [name for name, value in new.items() if value is not None]):
        raise UsageError(f"{said[0]} with --init", "a checkpoint's own sizes, tokenizer and autoencoder hold")


def _check_sizes(size: int, coder: tuple[int, ...], unet: tuple[int, ...], text_width: int, vocab: int) -> None:
    """Raises UsageError for sizes that no model can have."""
    if wrong := [width for width in coder if width % 8]:
        raise UsageError(f"--autoencoder-widths: {wrong[0]} is no multiple of 8")
    if wrong := [width for width in unet if width % 16]:
        raise UsageError(f"--widths: {wrong[0]} is no multiple of 16")
    multiple = 2 ** (len(coder) - 1 + len(unet) - 1)
    if size % multiple:
        raise UsageError(f"--size {size}: with these widths it must be a multiple of {multiple}")
    if text_width % 4:
        raise UsageError(f"--text-width {text_width} is no multiple of 4, its attention heads")
    if vocab < 514:
        raise UsageError(f"--vocab {vocab}: 256 bytes, alone and at a word's end, and two marks need 514 tokens")
