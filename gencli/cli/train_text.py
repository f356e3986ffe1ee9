"""`gencli train text`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from gencli import devices, stopping
from gencli.cli import options, train_options
from gencli.cli.console import Console
from gencli.cli.train_options import RECIPE, SIZES, START
from gencli.errors import UsageError

DATA = 'JSON lines with a key "text", or plain text; a file (.jsonl or .txt, also with .gz) or a folder of such.'
Size = int | None
LORA_RATE = 1e-3


def size(name: str, text: str) -> typer.models.OptionInfo:
    return typer.Option(f"--{name}", metavar="N", help=text, rich_help_panel=SIZES)


def text(
    ctx: typer.Context,
    data: Annotated[Path, typer.Argument(metavar="DATA", help=DATA)],
    out: train_options.Out,
    validation: Annotated[
        Path | None,
        typer.Option("--validation", metavar="DATA", help="Texts to score as training goes (default: every 50th)."),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="MODEL",
            help="Go on from this checkpoint, with its tokenizer: embedded name, folder or Hugging Face id.",
            rich_help_panel=START,
            autocompletion=options.complete_model,
        ),
    ] = None,
    lora_rank: Annotated[
        int | None,
        typer.Option(
            "--lora-rank",
            metavar="R",
            help="Train LoRA adapters of this rank on --init, and nothing else.",
            rich_help_panel=START,
        ),
    ] = None,
    lora_alpha: Annotated[
        float | None,
        typer.Option(
            "--lora-alpha",
            metavar="X",
            help="Updates count alpha / rank times (default: twice the rank).",
            rich_help_panel=START,
        ),
    ] = None,
    lora_targets: Annotated[
        str | None,
        typer.Option(
            "--lora-targets",
            metavar="NAMES",
            help="Layers that get one, with commas between (default: all linear ones but the head).",
            rich_help_panel=START,
        ),
    ] = None,
    layers: Annotated[Size, size("layers", "Layers of a new model (default: 6).")] = None,
    width: Annotated[Size, size("width", "Its numbers a token (default: 256).")] = None,
    heads: Annotated[Size, size("heads", "Its attention heads (default: 8).")] = None,
    context: Annotated[
        Size, size("context", "Its longest text, in tokens; with --init, of a row (default: 512).")
    ] = None,
    vocab: Annotated[Size, size("vocab", "Its tokens (default: 4096).")] = None,
    lead: Annotated[
        str,
        typer.Option(
            "--lead", metavar="PREFIX", help='Texts whose "source" or file begins so lead.', rich_help_panel=RECIPE
        ),
    ] = "tinystories:",
    lead_share: Annotated[
        float, typer.Option("--lead-share", metavar="P", help="Share of the leading texts.", rich_help_panel=RECIPE)
    ] = 0.85,
    steps: train_options.Steps = None,
    batch: train_options.Batch = None,
    lr: train_options.Rate = None,
    optimizer: train_options.Optimizer = None,
    weight_decay: train_options.Decay = None,
    dropout: Annotated[
        float | None,
        typer.Option("--dropout", metavar="P", help="Share that is dropped (default: 0).", rich_help_panel=RECIPE),
    ] = None,
    warmup: train_options.Warmup = None,
    cooldown: train_options.Cooldown = None,
    evaluate_every: Annotated[
        int,
        typer.Option("--evaluate-every", metavar="N", help="Steps between two scores.", rich_help_panel=RECIPE),
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
    """Texts → BPE and a GPT-2 checkpoint in the hub's layout, or on from any decoder's, or LoRA adapters of it.

    What is made lies in DIR/checkpoint, adapters in DIR/adapter; loss.csv and loss.png grow beside it. stdout gets a
    JSON line now and then: step, loss (nats a token), speed, and bits per byte where texts were scored.
    """
    train_options.need(data, validation)
    train_options.check_running(device, dtype, threads)
    train_options.check_numbers({"--lr": lr, "--lora-alpha": lora_alpha}, 0, 1e6)
    train_options.check_numbers({"--cooldown": cooldown}, 0, 1)
    train_options.check_numbers({"--weight-decay": weight_decay, "--lead-share": lead_share}, -1e-9, 1)
    train_options.check_numbers({"--dropout": dropout}, -1e-9, 0.99)
    train_options.check_numbers({"--save-every": save_every}, -1e-9, 1e9)
    counts = {"--steps": steps, "--batch": batch, "--evaluate-every": evaluate_every, "--lora-rank": lora_rank}
    counts |= {"--layers": layers, "--width": width, "--heads": heads, "--context": context}
    train_options.check_counts(counts, 1)
    train_options.check_counts({"--warmup": warmup}, 0)
    sizes = {"--layers": layers, "--width": width, "--heads": heads, "--vocab": vocab}
    _check_start(init, sizes, {"--lora-rank": lora_rank, "--lora-alpha": lora_alpha, "--lora-targets": lora_targets})
    targets = tuple(sorted(name.strip() for name in (lora_targets or "").split(",") if name.strip()))
    console: Console = ctx.obj
    if init is not None:
        from gencli.checkpoints.find import find
        from gencli.cli.download import show_download

        find(init, offline=offline, progress=show_download(console))
    with stopping.heeded():
        from gencli.train.lora import Adapters
        from gencli.train.text import TextRecipe, train
    devices.set_threads(threads)
    given: dict[str, Any] = {
        "init": init, "vocab_size": vocab, "n_positions": context, "n_embd": width, "n_layer": layers, "n_head": heads,
        "steps": steps, "batch": batch, "lr": lr, "optimizer": optimizer, "weight_decay": weight_decay,
        "warmup": warmup, "cooldown": cooldown, "dropout": dropout,
    }  # fmt: skip
    if lora_rank is not None:
        alpha = 2.0 * lora_rank if lora_alpha is None else lora_alpha
        given["lora"] = Adapters(lora_rank, alpha, targets, dropout or 0.0)
        given["lr"] = lr or LORA_RATE
        given["optimizer"] = optimizer or "adamw"
    recipe = TextRecipe(
        str(data), str(validation or ""), str(out), lead=lead, lead_share=lead_share, seed=seed, device=device,
        dtype=dtype, save_every=save_every, evaluate_every=evaluate_every, **train_options.said(given),
    )  # fmt: skip
    console.progress("reading texts")
    with closing(train(recipe, changes=changes)) as run:
        for at in run:
            train_options.show(console, at, "tokens", "bits_per_byte")
    train_options.write(console, {"made": str(out / ("adapter" if lora_rank else "checkpoint"))})


def _check_start(init: str | None, sizes: dict[str, int | None], lora: dict[str, object]) -> None:
    """Raises UsageError for options that contradict each other."""
    given = [name for name, value in lora.items() if value is not None]
    if given and lora["--lora-rank"] is None:
        raise UsageError(f"{given[0]} without --lora-rank", "--lora-rank 8 is a common choice")
    if given and init is None:
        raise UsageError("--lora-rank without --init", "adapters belong to a checkpoint: name it")
    if init is not None and (said := [name for name, value in sizes.items() if value is not None]):
        raise UsageError(f"{said[0]} with --init", "a checkpoint's own sizes and tokenizer hold")
    width, heads = sizes["--width"] or 256, sizes["--heads"] or 8
    if width % heads:
        raise UsageError(f"--width {width} is no multiple of --heads {heads}")
    if (sizes["--vocab"] or 4096) < 257:
        raise UsageError(f"--vocab {sizes['--vocab']}: 256 bytes and an end of text need 257 tokens")
