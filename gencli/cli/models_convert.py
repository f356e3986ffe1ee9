"""`gencli models convert`: a language model as a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from gencli.atomic import check_target
from gencli.checkpoints import gguf_names
from gencli.checkpoints.assets import LoraRef
from gencli.checkpoints.mixes import MIXES, check_mix
from gencli.cli.console import Console
from gencli.cli.options import JSON, Fetching, Reporting
from gencli.cli.sinks import write_lines, write_object
from gencli.errors import GencliError, UsageError
from gencli.options import OUTPUT, string
from gencli.spec import ModelSpec

PANEL = "Model"
OTHERS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".onnx")  # endings of what a GGUF file is not
EXAMPLES = """Examples:
    gencli models convert openai-community/gpt2 -o gpt2-q4_k_m.gguf
    gencli models convert ~/models/SmolLM2-360M -o model.gguf --to q8_0 --lora ./my-adapter
    gencli models convert model-q4_k_m.gguf -o model-f16.gguf
    """


@dataclass(eq=False, repr=False)
class Converted:
    """Where a GGUF file goes, and its types of weights."""

    # fmt: off
    output: str | None = string(None, "-o, --output FILE", "The file to write, such as model-q4_k_m.gguf; "
        "one that is there is replaced.", OUTPUT)
    to: str | None = string(None, "--to TYPE", f"Types of weights: {', '.join(MIXES)} (default: as the file's name "
        "says, else the precision of the weights, f16 of packed ones).", PANEL, complete=lambda: list(MIXES))
    # fmt: on
    json: bool = JSON.field(False)

    @property
    def path(self) -> Path:
        """The file. Raise UsageError where none is named."""
        if self.output is None or self.output == "-":
            raise UsageError("no file to write", "-o model-q4_k_m.gguf names it")
        path = Path(self.output)
        if path.suffix.lower() in OTHERS:
            raise UsageError(f"-o {path}: what is written is a GGUF file", f"name it {path.with_suffix('.gguf').name}")
        return path

    @property
    def kind(self) -> str | None:
        """Return the mix of types that is asked for, or is in the file's name. Raise UsageError."""
        if self.to is not None:
            return check_mix("--to", self.to)
        named = gguf_names.type_of(self.path.name).lower()
        return named if named in MIXES else None


def convert(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Short name, folder, file or Hugging Face id.", rich_help_panel=PANEL),
    ],
    converted: Converted,
    spec: ModelSpec,
    fetching: Fetching,
    reporting: Reporting,
) -> None:
    """Write a language model as a GGUF file, which llama.cpp and others open, and print its path.

    The file has the model's tokenizer and chat template. It appears whole or not at all. NAME may be a GGUF file with
    packed weights: --to f16 unpacks them; packing them anew loses more than packing the original model does.
    """
    path, kind = converted.path, converted.kind
    check_target(path)
    adapters = [LoraRef.parse(one) for one in spec.lora]
    console: Console = ctx.obj
    fetch = fetching.finder(console, spec)
    adapters = [adapter.find(**fetch.keywords) for adapter in adapters]
    source = fetch(name)
    if path.exists() and path.samefile(source.path):
        raise UsageError(f"-o {path} is the model itself", "name another file")
    from gencli.checkpoints.report import describe
    from gencli.cli.speed import open_text_model

    model = open_text_model(console, source, spec, adapters)
    from gencli.text.convert import convert as write

    def show(tensor: str, done: int, total: int) -> None:
        console.progress(f"writing {path.name}", done // 10**6, total // 10**6, "million weights")

    try:
        kinds = write(model, kind, path, licence=describe(source).licence, progress=show, note=console.note)
    except OSError as error:
        raise GencliError(f"cannot write {path}: {error.strerror or error}") from None
    console.clear()
    if converted.json:
        write_object({"name": source.name, "path": str(path), "bytes": path.stat().st_size, "types": kinds})
    else:
        write_lines([str(path)])
