"""`gencli train text`."""

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

DATA = 'JSON lines with a key "text", or plain text; a file (.jsonl or .txt, also with .gz) or a folder of such.'
Size = int | None
INIT_RATE, LORA_RATE = 5e-4, 1e-3


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
        recipe_option("--lora-rank", "R", "Train LoRA adapters of this rank on --init, and nothing else.", START),
    ] = None,
    lora_alpha: Annotated[
        float | None,
        recipe_option("--lora-alpha", "X", "Updates count alpha / rank times (default: twice the rank).", START),
    ] = None,
    lora_targets: Annotated[
        str | None,
        recipe_option(
            "--lora-targets",
            "NAMES",
            "Layers that get one, with commas between (default: all linear ones but the head).",
            START,
        ),
    ] = None,
    layers: Annotated[Size, recipe_option("--layers", "N", "Layers of a new model (default: 6).", SIZES)] = None,
    width: Annotated[Size, recipe_option("--width", "N", "Its numbers a token (default: 256).", SIZES)] = None,
    heads: Annotated[Size, recipe_option("--heads", "N", "Its attention heads (default: 8).", SIZES)] = None,
    context: Annotated[
        Size,
        recipe_option("--context", "N", "Its longest text, in tokens; with --init, of a row (default: 512).", SIZES),
    ] = None,
    vocab: Annotated[Size, recipe_option("--vocab", "N", "Its tokens (default: 4096).", SIZES)] = None,
    lead: Annotated[
        str,
        recipe_option("--lead", "PREFIX", 'Texts whose "source" or file begins so lead (default: tinystories:).'),
    ] = "tinystories:",
    lead_share: Annotated[
        float, recipe_option("--lead-share", "P", "Share of the leading texts (default: 0.85).")
    ] = 0.85,
    steps: Annotated[int | None, recipe_option("--steps", "N", "Steps in all (default: 2000).")] = None,
    batch: Annotated[int | None, recipe_option("--batch", "N", "Rows of texts a step (default: 8).")] = None,
    lr: Annotated[
        float | None,
        recipe_option("--lr", "X", "Highest learning rate (default: 2e-3; with --init 5e-4, --lora-rank 1e-3)."),
    ] = None,
    optimizer: train_options.Optimizer = None,
    weight_decay: Annotated[
        float | None, recipe_option("--weight-decay", "X", "Decoupled decay, of matrices only (default: 0.05).")
    ] = None,
    dropout: Annotated[
        float | None,
        recipe_option("--dropout", "P", "Share that is dropped, against overfitting (default: 0)."),
    ] = None,
    warmup: Annotated[
        int | None, recipe_option("--warmup", "N", "Steps until the rate is highest (default: 50).")
    ] = None,
    cooldown: Annotated[
        float | None,
        recipe_option("--cooldown", "P", "Last share of the steps, in which the rate falls (default: 0.5)."),
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
        "steps": steps, "batch": batch, "lr": INIT_RATE if init and lr is None else lr,
        "optimizer": optimizer, "weight_decay": weight_decay, "warmup": warmup, "cooldown": cooldown,
        "dropout": dropout,
    }  # fmt: skip
    if lora_rank is not None:
        alpha = 2.0 * lora_rank if lora_alpha is None else lora_alpha
        given["lora"] = Adapters(lora_rank, alpha, targets, dropout or 0.0)
        given["lr"] = LORA_RATE if lr is None else lr
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
