"""What loading a model depends on, as opposed to what one text or image needs. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from gencli.checkpoints.mixes import PACKING, check_mix
from gencli.devices import DEVICES, DTYPES, check_names
from gencli.errors import UsageError
from gencli.options import MODEL, Option, several, string

DTYPE = Option(
    str,
    "--dtype NAME",
    (
        "auto, float32, bfloat16 or float16: what is computed in (default: auto, the file's own, but float32 on a CPU, "
        "where weights of half precision stay as they are; environment: GENCLI_DTYPE)."
    ),
    MODEL,
    env="GENCLI_DTYPE",
    after="device",
    complete=lambda: list(DTYPES),
)
THREADS = Option(int, "--threads N", "CPU threads (default: torch's choice, one a core).", MODEL)
ALLOW_PICKLE = Option(
    bool, "--allow-pickle", "Also open .bin and .pt files, for nothing but tensors (default: only safetensors).", MODEL
)


def complete_model(incomplete: str) -> list[str]:
    """Return the embedded names that begin so, for the shell's completion."""
    from gencli.checkpoints.find import embedded_names

    return [name for name in embedded_names() if name.startswith(incomplete)]


def named_model(env: str, default: str | None, what: str = "", example: str = "openai-community/gpt2") -> Option:
    """Return the row of -m/--model. what: the kind of model, if none of that kind is embedded."""
    begin = f"{what}: local folder, or" if what else "Embedded name, local folder or file, or"
    help = f"{begin} Hugging Face id such as {example} (default: {default or 'none'}; environment: {env})."
    complete = () if what else complete_model
    return Option(str, "-m, --model NAME", help, MODEL, env=env, complete=complete)


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
        "auto, cpu, cuda, cuda:N or mps (default: auto, the first of cuda, mps, cpu; environment: GENCLI_DEVICE).",
        MODEL, env="GENCLI_DEVICE", complete=lambda: list(DEVICES))
    dtype: str = DTYPE.field("auto")
    threads: int | None = THREADS.field(None, compare=False)
    lora: tuple[str, ...] = several(str, "--lora NAME[:SCALE]",
        "Merge a LoRA adapter as peft writes it into the weights, a folder or a Hugging Face id (repeatable; "
        "default scale: 1).", MODEL)
    allow_pickle: bool = ALLOW_PICKLE.field(False)
    ignore_config: tuple[str, ...] = ()
    # fmt: on

    def __post_init__(self) -> None:
        check_names(self.device, self.dtype, self.threads)
        object.__setattr__(self, "lora", tuple(self.lora))


IGNORE_CONFIG = Option(
    str, "--ignore-config KEY", "A key of config.json that changes nothing (repeatable).", MODEL, several=True
)
TEXT_MODEL = "stories"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TextSpec(ModelSpec):
    """A language model."""

    model: str = named_model("GENCLI_TEXT_MODEL", TEXT_MODEL).field(TEXT_MODEL)
    # fmt: off
    quantize: str | None = string(None, "--quantize TYPE", f"Pack the weights, once, in a copy that is kept: "
        f"{', '.join(PACKING)} (default: as they are).", MODEL, after="dtype", complete=lambda: list(PACKING))
    # fmt: on
    ignore_config: tuple[str, ...] = IGNORE_CONFIG.field(())

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantize is not None:
            object.__setattr__(self, "quantize", check_mix("--quantize", self.quantize, PACKING))
            if self.dtype != "auto":
                raise UsageError(f"--quantize packs the weights, and --dtype {self.dtype} holds them in another type")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DrawingSpec(ModelSpec):
    """An image model, beside what an image's own request says of it."""

    ignore_config: tuple[str, ...] = IGNORE_CONFIG.field(())
