"""What loading a model depends on, as opposed to what one text or image needs. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gencli.checkpoints.mixes import PACKING, check_mix
from gencli.completions import COMPLETED, Completed
from gencli.devices import DEVICES, DTYPES, check_device, check_dtype, check_names
from gencli.errors import UsageError
from gencli.options import MODEL, Option, several, string


def _check_packing(name: str, mix: str) -> None:
    check_mix(name, mix, PACKING)


DTYPE = Option(
    str,
    "--dtype NAME",
    "auto, float32, bfloat16 or float16 (default: auto, which computes as stored, but in float32 on a CPU).",
    MODEL,
    env="GENCLI_DTYPE",
    after="device",
    complete=lambda: list(DTYPES),
    valid=check_dtype,
)
QUANTIZE = Option(
    str,
    "--quantize TYPE",
    f"Quantize the weights once, to a copy that is kept: {', '.join(PACKING)} (default: as stored).",
    MODEL,
    after="dtype",
    complete=lambda: list(PACKING),
    valid=_check_packing,
)
THREADS = Option(
    int, "--threads N", "CPU threads (default: one per core).", MODEL, within=(1, 4096), also=("-t", "-tb")
)
ALLOW_PICKLE = Option(bool, "--allow-pickle", "Also allow .bin, .pt and .ckpt files (tensors only).", MODEL)


def completing(task: str | None = None) -> Callable[[str], list[tuple[str, str]]]:
    """Return what completes the name of a model for the shell: it gives the names that begin so, with what they are.

    task: see `find.known_names`.
    """

    def complete(incomplete: str) -> list[tuple[str, str]]:
        from gencli.checkpoints.find import known_names

        return [(name, what) for name, what in known_names(task) if name.startswith(incomplete)]

    COMPLETED[complete] = Completed(tasks=(task,))
    return complete


def named_model(env: str, default: str | None, task: str, what: str = "", example: str = "qwen3:4b") -> Option:
    """Return the row of -m/--model. task: the kind of model; what: in words, if none of that kind is embedded."""
    begin = f"{what}: short name, folder" if what else "Short name (see `gencli models available`), folder, file"
    kept = ", or ollama:NAME of one that ollama keeps" if task in ("text", "chat") else ""
    help = f"{begin} or Hugging Face id, such as {example}{kept} (default: {default or 'none'})."
    elsewhere = ("-hf", "-hfr", "--hf-repo", "-mu", "--model-url")
    return Option(str, "-m, --model NAME", help, MODEL, env=env, also=elsewhere, complete=completing(task))


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What loading a model depends on: if a field changes, it has to be loaded again. Hashable, as a key.

    lora: PATH[:SCALE], each. ignore_config: keys of config.json that are taken to change nothing. threads: CPU threads;
    they belong to the process, and are not compared.
    Raise UsageError for an unknown device or precision, and for an impossible number of threads.
    """

    # fmt: off
    model: str | None = string(None)
    device: str = string("auto", "--device NAME",
        "auto, cpu, cuda, cuda:N or mps (default: auto, the first of cuda, mps, cpu).",
        MODEL, env="GENCLI_DEVICE", complete=lambda: list(DEVICES), valid=check_device)
    dtype: str = DTYPE.field("auto")
    threads: int | None = THREADS.field(None, compare=False)
    lora: tuple[str, ...] = several(str, "--lora NAME[:SCALE]",
        "Apply a LoRA adapter (PEFT format): folder or Hugging Face id (repeatable; default scale: 1).", MODEL)
    allow_pickle: bool = ALLOW_PICKLE.field(False)
    ignore_config: tuple[str, ...] = ()
    # fmt: on

    def __post_init__(self) -> None:
        check_names(self.device, self.dtype, self.threads)
        object.__setattr__(self, "lora", tuple(self.lora))


IGNORE_CONFIG = Option(str, "--ignore-config KEY", "Ignore this key of config.json (repeatable).", MODEL, several=True)
TEXT_MODEL = "stories"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TextSpec(ModelSpec):
    """A language model."""

    model: str = named_model("GENCLI_TEXT_MODEL", TEXT_MODEL, "text").field(TEXT_MODEL)
    quantize: str | None = QUANTIZE.field(None)
    ignore_config: tuple[str, ...] = IGNORE_CONFIG.field(())

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "quantize", check_quantize(self.quantize, self.dtype))


def check_quantize(mix: str | None, dtype: str | None) -> str | None:
    """Return the name of a mix in full. Raise UsageError for an unknown one, and for one beside --dtype."""
    if mix is None:
        return None
    if dtype not in (None, "auto"):
        raise UsageError(f"--quantize packs the weights, and --dtype {dtype} holds them in another type")
    return check_mix("--quantize", mix, PACKING)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DrawingSpec(ModelSpec):
    """An image model, beside what an image's own request says of it."""

    ignore_config: tuple[str, ...] = IGNORE_CONFIG.field(())
