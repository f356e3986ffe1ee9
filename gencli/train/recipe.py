"""What makes a training run, as rows of options (see `gencli.options`). No torch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from enum import Enum
from functools import partial

from gencli.devices import check_dtype
from gencli.errors import UsageError
from gencli.options import MODEL, RUN, Option, flag, integer, number, rows, string
from gencli.spec import ModelSpec, completing

INPUT, START, SIZES, RECIPE = "Data", "Start", "Sizes", "Recipe"  # headings on the help pages

COUNT_LIMIT = 10**9  # of steps and images; far larger numbers overflow where torch reads them
LAYERS, HEADS, WIDTH, LENGTH = 1024, 1024, 2**16, 2**20  # what GPT-2's config allows at most
TEXT_LAYERS, CHANNELS = 128, 2**14  # what those of a text encoder and a UNet allow
SEED_LIMIT = 2**32 - 1  # times a million, and with a step, it still is a seed of torch's
VOCABULARY_LIMIT = 2**20  # tokens; the largest vocabularies of published models have a quarter of that


class OptimizerKind(str, Enum):
    muon = "muon"
    adamw = "adamw"


def _within(
    low: float, high: float, name: str, value: float, *, open_low: bool = False, open_high: bool = False
) -> None:
    """Raise UsageError for a number outside; an open end is outside itself."""
    above = value > low if open_low else value >= low
    below = value < high if open_high else value <= high
    if not (math.isfinite(value) and above and below):
        least = f"{'above' if open_low else 'at least'} {low:.12g}"
        most = f"{'below' if open_high else 'at most'} {high:.12g}"
        raise UsageError(f"{name} {str(value).removesuffix('.0')}: must be {least} and {most}")


def at_least(least: int, name: str, value: int, *, most: int = COUNT_LIMIT) -> None:
    """Raise UsageError for a number below `least` or above `most`."""
    if value < least:
        raise UsageError(f"{name} {value}: must be at least {least}")
    if value > most:
        raise UsageError(f"{name} {value}: must be at most {most}")


def _check_vocabulary(size: int, least: int) -> None:
    """Raise UsageError for a size that no tokenizer has; far larger ones are what its trainer crashes at."""
    if not least <= size <= VOCABULARY_LIMIT:
        raise UsageError(f"--vocab {size}: must be at least {least} and at most {VOCABULARY_LIMIT}")


def _channels(default: tuple[int, ...], name: str, help: str) -> tuple[int, ...]:
    """Return a field for a network's channels, read from `24,48,96`. Reading raises UsageError for anything else."""

    def read(words: str | None) -> tuple[int, ...]:
        if words is None:
            return default
        parts = [word.strip() for word in words.split(",")]
        if not 1 <= len(parts) <= 8 or not all(word.isdecimal() and 0 < int(word) <= CHANNELS for word in parts):
            raise UsageError(f"{name} {words!r}: expected comma-separated numbers up to {CHANNELS}, such as 64,128")
        return tuple(int(word) for word in parts)

    return Option(tuple, f"{name} N,N…", help, SIZES, word=str, read=read).field(default)


def _count(default: int, usage: str, help: str, panel: str = RECIPE, least: int = 1, most: int = COUNT_LIMIT) -> int:
    """Return a field for a whole number."""
    return integer(default, usage, help, panel, valid=partial(at_least, least, most=most), usual=default)


def _fraction(default: float, usage: str, help: str, most: float = 1.0, *, below: bool = False) -> float:
    """Return a field for a number from 0 to `most`, or `below` it."""
    return number(default, usage, help, RECIPE, valid=partial(_within, 0, most, open_high=below), usual=default)


RATE, COOLDOWN = partial(_within, 0, 1e6, open_low=True), partial(_within, 0, 1, open_low=True)

# Rows that both recipes have.
LEAD = "tinystories:"  # sources of the main corpus of the embedded model
OUT = Option(str, "-o, --out DIR", "Folder for the result, the training state and the loss curve.", "")
OPTIMIZER = Option(
    str, "--optimizer KIND", "muon or adamw (default: muon).", RECIPE,
    word=OptimizerKind, read=lambda kind: OptimizerKind(kind or "muon").value,
)  # fmt: skip
SEED = Option(
    int, "-s, --seed N", "Seed of the run (default: 0).", RECIPE, valid=partial(at_least, -SEED_LIMIT, most=SEED_LIMIT)
)
CHANGES = Option(bool, "--allow-changes", "Continue even if the settings differ from the original run's.", RUN)
DTYPE = Option(
    str,
    "--dtype NAME",
    "Compute precision: float32 or bfloat16, which is faster on CPUs with instructions for it too (default: auto, "
    "bfloat16 on CUDA, else float32).",
    MODEL,
    after="device",
    valid=check_dtype,
)
DEVICE, THREADS = (dict(rows(ModelSpec))[name] for name in ("device", "threads"))


@dataclass(frozen=True)
class Adapters:
    """LoRA adapters. The update is alpha / rank times B A; `dropout` comes before A.

    targets: the last names of the layers that get one. None: all linear layers but the head.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = ()
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TextRecipe:
    """What makes a text run; lengths in tokens.

    data, validation: see `texts.read_texts`; without validation every 50th text of `data` is held out. out: folder for
    state, curve and the finished checkpoint. lead: the source prefix that gets `lead_share` of the documents seen.

    init: a checkpoint to go on from, whose tokenizer and sizes hold instead of those here; n_positions is then the
    length of a row, by default 512 or what the model reads. lora_rank: train adapters of `init` and nothing else.
    """

    # fmt: off
    data: str
    out: str = dataclasses.field(metadata={"option": OUT})
    validation: str = string("", "--validation DATA",
        "Validation texts (default: every 50th text is held out, or the end of a single one).", INPUT)
    init: str = string("", "--init MODEL",
        "Fine-tune this model, with its tokenizer: short name, folder or Hugging Face id.", START,
        complete=completing("text"))
    lora_rank: int | None = integer(None, "--lora-rank R",
        "Train a LoRA adapter of this rank for --init, and not its own weights.", START, valid=partial(at_least, 1))
    lora_alpha: float | None = number(None, "--lora-alpha X",
        "LoRA alpha; the adapter's scale is alpha / rank (default: twice the rank).", START, valid=RATE)
    lora_targets: str = string("", "--lora-targets NAMES",
        "Layers to adapt, comma-separated (default: all linear layers but the head).", START)
    n_layer: int = _count(6, "--layers N", "Layers of a new model", SIZES, most=LAYERS)
    n_embd: int = _count(256, "--width N", "Hidden size of a new model", SIZES, most=WIDTH)
    n_head: int = _count(8, "--heads N", "Attention heads of a new model", SIZES, most=HEADS)
    n_positions: int | None = integer(None, "--context N",
        "Context length in tokens; with --init, the length of the training sequences (default: 512).", SIZES,
        valid=partial(at_least, 1, most=LENGTH))
    vocab_size: int = integer(4096, "--vocab N", "Vocabulary size, at least 257 (default: 4096).", SIZES)
    lead: str = string(LEAD, "--lead PREFIX",
        "Texts whose source or file name starts with PREFIX are the main corpus.", RECIPE)
    lead_share: float = _fraction(0.85, "--lead-share P", "Fraction of training drawn from the main corpus")
    steps: int = _count(2000, "--steps N", "Training steps")
    batch: int = _count(8, "--batch N", "Batch size", most=2**16)
    lr: float = number(2e-3, "--lr X", "Highest learning rate (default: 2e-3; with --init 5e-4, --lora-rank 1e-3).",
        RECIPE, valid=RATE)
    optimizer: str = OPTIMIZER.field("muon")
    weight_decay: float = _fraction(0.05, "--weight-decay X", "Decoupled weight decay, of matrices only")
    dropout: float = _fraction(0.0, "--dropout P", "Dropout rate", below=True)
    warmup: int = _count(50, "--warmup N", "Warm-up steps of the learning rate", least=0)
    cooldown: float = number(0.5, "--cooldown P", "Fraction of the steps over which the learning rate decays", RECIPE,
        valid=COOLDOWN, usual=0.5)
    evaluate_every: int = _count(200, "--evaluate-every N", "Steps between evaluations")
    save_every: float = _fraction(180.0, "--save-every S", "Seconds between savings of the training state", 1e9)
    seed: int = SEED.field(0)
    allow_changes: bool = CHANGES.field(False)
    device: str = DEVICE.field("auto")
    dtype: str = DTYPE.field("auto")
    # fmt: on

    @property
    def adapters(self) -> Adapters | None:
        """The adapters that are trained, if any."""
        if self.lora_rank is None:
            return None
        targets = tuple(sorted(name.strip() for name in self.lora_targets.split(",") if name.strip()))
        alpha = 2.0 * self.lora_rank if self.lora_alpha is None else self.lora_alpha
        return Adapters(self.lora_rank, alpha, targets, self.dropout)

    def check_sizes(self) -> None:
        """Raise UsageError for sizes that no model can have."""
        if self.n_embd % self.n_head:
            raise UsageError(f"--width {self.n_embd} is not a multiple of --heads {self.n_head}")
        _check_vocabulary(self.vocab_size, 257)


@dataclass(frozen=True, kw_only=True)
class ImageRecipe:
    """What makes a picture run of up to three stages: an autoencoder, the diffusion model on its latents, and what the
    decoder learns after that.

    init: a checkpoint to go on from, which keeps its autoencoder, tokenizer, sizes and noise schedule; with
    keep_text_encoder also that. widths: the UNet's channels, one number a level, multiples of 16; those of the
    autoencoder are multiples of 8. size: pixels a side, by default 128 or what `init` was trained with.

    whole_words: see `text_to_image.with_whole_words`. variants: see `variants.vary`, of each image; noise tells how one
    differs (see `coupling`). random_flip: see `variants.mirrored`. copies: see `augment.recolored`; what it makes is
    `recolor_share` of what is seen. pairs: see `augment.pair_up`; `pair_share` of what is seen. drop: share of captions
    left out. hold_out: share of the images that is never trained on, only scored. min_snr: γ of the loss's weights, 0
    for none. ema: decay of the average of weights.

    kl, edges, color: weights of the autoencoder's losses beside the absolute error: on the mean divergence per latent
    number, on image gradients, and on means over 8×8 pixels, which keeps hues that thin latents would trade for edges.
    noise: the largest standard deviation of what the third stage adds to latents (which have 1), uniform from 0.
    """

    # fmt: off
    out: str = dataclasses.field(metadata={"option": OUT})
    init: str = string("", "--init MODEL",
        "Fine-tune this model in Stable Diffusion's layout; its autoencoder is kept.", START,
        complete=completing("image"))
    keep_text_encoder: bool = flag(False, "--keep-text-encoder", "Train the UNet only.", START)
    size: int | None = integer(None, "--size PIXELS",
        "Width and height of images (default: 128, or what --init was trained with).", SIZES,
        valid=partial(at_least, 8))
    autoencoder_widths: tuple[int, ...] = _channels((24, 48, 96, 128), "--autoencoder-widths",
        "Channels of the autoencoder; each but the last halves the image (default: 24,48,96,128).")
    widths: tuple[int, ...] = _channels((64, 128, 112), "--widths",
        "Channels of the UNet, multiples of 16; each but the last halves the latents (default: 64,128,112).")
    text_width: int = _count(128, "--text-width N", "Hidden size of the text encoder", SIZES, most=CHANNELS)
    vocabulary: int = _count(4096, "--vocab N", "Vocabulary size, at least 514", SIZES)
    text_layers: int = _count(2, "--text-layers N", "Layers of the text encoder", SIZES, most=TEXT_LAYERS)
    max_length: int = 32  # tokens a caption is padded to
    autoencoder_steps: int = _count(1000, "--autoencoder-steps N", "Steps of the first stage, the autoencoder")
    autoencoder_batch: int = _count(8, "--autoencoder-batch N", "Batch size of the first and third stage", most=2**16)
    words_steps: int = _count(0, "--words-steps N",
        "With --init: steps in which only the text encoder learns other names, without images", least=0)
    whole_words: bool = flag(False, "--whole-words",
        "With --words-steps: give each word of the captions a token of its own.", RECIPE)
    steps: int = _count(4000, "--steps N", "Training steps of the second stage, the UNet")
    decoder_steps: int = _count(0, "--decoder-steps N",
        "Steps of the third stage: the decoder learns to draw from inexact latents", least=0)
    batch: int = _count(64, "--batch N", "Batch size", most=2**16)
    lr: float = number(1.5e-3, "--lr X", "Highest learning rate (default: 1.5e-3; with --init 1e-4).", RECIPE,
        valid=RATE)
    optimizer: str = OPTIMIZER.field("muon")
    weight_decay: float = _fraction(0.01, "--weight-decay X", "Decoupled weight decay, of matrices only")
    warmup: int = _count(50, "--warmup N", "Warm-up steps of the learning rate", least=0)
    cooldown: float = number(0.4, "--cooldown P", "Fraction of the steps over which the learning rate decays", RECIPE,
        valid=COOLDOWN,
        usual=0.4)
    ema: float = _fraction(0.999, "--ema P", "Decay of the moving average of the weights, which is kept", below=True)
    drop: float = _fraction(0.1, "--drop P", "Fraction of captions left out, for guidance")
    min_snr: float = number(0.0, "--min-snr X",
        "Min-SNR loss weighting; gamma X, usually 5 (default: 0, off).", RECIPE,
        valid=partial(_within, 0, 1e9))
    variants: int = _count(0, "--variants N", "Varied copies per image, so that seeds draw different images", least=0)
    random_flip: bool = flag(False, "--random-flip",
        "Mirror half of the varied copies whose captions name no side, text, number or time.", RECIPE)
    copies: int = _count(0, "--recolor N", "Recoloured copies per image", least=0)
    pairs: int = _count(0, "--pairs N", 'Number of "A and B" composites', least=0)
    hold_out: float = _fraction(0.0, "--hold-out P", "Fraction of images held out for validation", below=True)
    recolor_share: float = 0.15
    pair_share: float = 0.25
    evaluate_every: int = _count(200, "--evaluate-every N", "Steps between evaluations")
    save_every: float = _fraction(180.0, "--save-every S", "Seconds between savings of the training state", 1e9)
    seed: int = SEED.field(0)
    allow_changes: bool = CHANGES.field(False)
    device: str = DEVICE.field("auto")
    dtype: str = DTYPE.field("auto")
    kl: float = 5e-4
    edges: float = 1.0
    color: float = 1.0
    noise: float = 0.35
    # fmt: on

    def autoencoder(self) -> ImageRecipe:
        """Return what holds for the first stage."""
        return self._other_stage(self.autoencoder_steps, 2e-3)

    def words(self) -> ImageRecipe:
        """Return what holds for the text encoder alone."""
        words = dataclasses.replace(self, steps=self.words_steps, lr=2e-3, batch=64)
        return dataclasses.replace(words, optimizer="muon", weight_decay=0.0, warmup=20, cooldown=0.6)

    def decoder(self) -> ImageRecipe:
        """Return what holds for the third stage."""
        return self._other_stage(self.decoder_steps, 1e-3)

    def _other_stage(self, steps: int, lr: float) -> ImageRecipe:
        stage = dataclasses.replace(self, steps=steps, lr=lr, batch=self.autoencoder_batch)
        return dataclasses.replace(stage, optimizer="muon", weight_decay=0.01, warmup=20, cooldown=0.5)

    def check_sizes(self) -> None:
        """Raise UsageError for sizes that no model can have."""
        if wrong := [width for width in self.autoencoder_widths if width % 8]:
            raise UsageError(f"--autoencoder-widths: {wrong[0]} is not a multiple of 8")
        if wrong := [width for width in self.widths if width % 16]:
            raise UsageError(f"--widths: {wrong[0]} is not a multiple of 16")
        multiple = 2 ** (len(self.autoencoder_widths) - 1 + len(self.widths) - 1)
        if (self.size or 128) % multiple:
            raise UsageError(f"--size {self.size}: with these widths it must be a multiple of {multiple}")
        if self.text_width % 4:
            raise UsageError(f"--text-width {self.text_width} is not a multiple of 4, its attention heads")
        _check_vocabulary(self.vocabulary, 514)


Recipe = TextRecipe | ImageRecipe
