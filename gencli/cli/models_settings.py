"""What the recipes think of a checkpoint: whether they can open it, and the settings that they would run it with."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import TypedDict, cast

from gencli.checkpoints.checkpoint import Contents
from gencli.checkpoints.find import Source
from gencli.checkpoints.open import open_checkpoint
from gencli.checkpoints.report import Description, describe
from gencli.errors import GencliError
from gencli.options import rows


class _Stage(TypedDict):
    name: str
    main: bool
    network: str
    parameters: int | None
    bytes: int
    steps: int
    sampler: str


class Stage(_Stage, total=False):
    """A stage of an image model. network: those of it, with commas. bytes: of its files. guidance: where it has one."""

    guidance: float


def judge(contents: Contents, what: Description, prediction: str | None = None) -> Description:
    """Return the description, with what keeps images from being made. prediction: as `--prediction`. No torch."""
    if what.kind != "image" or what.problem:
        return what
    from gencli.image.drawers import is_drawer, open_drawer
    from gencli.image.open import open_image_checkpoint

    try:
        if is_drawer(opened := open_checkpoint(contents)):
            open_drawer(opened)
        else:
            open_image_checkpoint(contents, prediction=prediction)
    except GencliError as error:
        return dataclasses.replace(what, problem=error.message, hint=error.hint)
    return what


def default_settings(contents: Contents, what: Description) -> dict[str, object]:
    """Return the settings that hold for this checkpoint if the command line gives none."""
    if what.problem:
        return {}
    try:
        if what.kind == "image":
            return _of_image(contents)
        return _of_text(contents) if what.kind == "text" else {}
    except GencliError:
        return {}  # `check` says what is wrong


def tokenizer_of(contents: Contents, what: Description) -> dict[str, object]:
    """Return the kind of a language model's tokenizer, whether it has a chat template, what --think can be, and
    whether it knows tools, by small files or metadata alone; {} for other models, and where it is broken."""
    from gencli.text.call_forms import form_of
    from gencli.text.chat_template import switches
    from gencli.tokens.gguf import described
    from gencli.tokens.special_tokens import optional_json
    from gencli.tokens.templates import read_chat_template

    if what.kind != "text" or what.problem:
        return {}
    checkpoint = open_checkpoint(contents)
    kind: object
    if checkpoint.format == "gguf":
        kind, template = described(next(iter(checkpoint.parts[""].stored().values())).metadata)
    else:
        try:
            config = optional_json(contents.folder / "tokenizer_config.json", contents.read_json)
            kind, template = config.get("tokenizer_class"), read_chat_template(contents.folder, config)
        except GencliError:
            return {}  # `check` says what is wrong
    think: list[str] = []
    with contextlib.suppress(GencliError):
        think = switches(template or "", what.name)
    tools = form_of(template or "") is not None
    found = {"kind": kind, "chat_template": template is not None, **({"think": think} if think else {})}
    return {**found, "tools": True} if tools else found


def as_options(kind: str, settings: Mapping[str, object]) -> dict[str, object]:
    """Settings under the names of the options that set them."""
    from gencli.image.request import ImageRequest
    from gencli.text.request import SamplingParams, TextRequest

    known = rows(ImageRequest) if kind == "image" else [*rows(TextRequest), *rows(SamplingParams)]
    words = {name: option.listed_as(name) for name, option in known}
    return {words.get(name, name).replace("_", "-"): value for name, value in settings.items()}


def enlarges(contents: Contents) -> bool:
    """Return whether it is a model that enlarges images and draws none."""
    from gencli.image.drawers import is_drawer
    from gencli.image.open import open_image_checkpoint

    try:
        opened = open_checkpoint(contents)
        return opened.kind == "image" and not is_drawer(opened) and open_image_checkpoint(contents).main.scale > 1
    except GencliError:
        return False


def needed_half(contents: Contents, what: Description) -> str | None:
    """Return which other model one half of a system needs, if it is one."""
    from gencli.image.drawers import DRAWERS
    from gencli.image.families.systems import PRIORS
    from gencli.image.open import open_image_checkpoint

    if what.problem or what.kind != "image" or what.family in DRAWERS:
        return None
    family = open_image_checkpoint(contents).family
    if not family.stages[family.main].shows:
        decoder = next(iter(PRIORS))
        return f"a decoder, such as {decoder}: -m names that one, and --prior this"
    if family.prior is not None and len(family.stages) == 1:
        return f"a prior, such as {family.prior}: --prior names it (a decoder from the Hub finds its own)"
    return None


def belongs_to(source: Source, *, allow_pickle: bool = False) -> str | None:
    """Return which models a tiny autoencoder of the hub is for, or which one is for an image model and is not here."""
    from gencli.image.families import TINY
    from gencli.image.open import find_tiny, open_image_checkpoint

    if (what := TINY.get(source.name)) is not None:
        return f"it reads the latents of {what}: --vae names it, and --preview and --save-steps take it by themselves"
    try:
        checkpoint = open_image_checkpoint(source, allow_pickle=allow_pickle)
    except GencliError:
        return None
    tiny = checkpoint.family.tiny
    if tiny is None or find_tiny(checkpoint) is not None:
        return None
    return f"{tiny} (10 MB) makes --preview and --save-steps fast with it: gencli models pull {tiny}"


def stages_of(contents: Contents, what: Description) -> list[Stage]:
    """The stages of an image model that has several, as --stage knows them: the networks of each, their size, and its
    own settings."""
    from gencli.image.drawers import DRAWERS
    from gencli.image.open import open_image_checkpoint
    from gencli.image.resolve import built_in

    if what.problem or what.kind != "image" or what.family in DRAWERS:
        return []

    checkpoint, parameters = open_image_checkpoint(contents), {part.name: part.parameters for part in what.components}
    if len(checkpoint.stages) == 1:
        return []
    rows: dict[str, Stage] = {}
    for stage, _ in checkpoint.stages:
        size = sum(count for file, count in what.files.items() if file.startswith(f"{stage.network}/"))
        if stage.follows is not None:  # another network of the same stage
            row = rows[stage.follows]
            row["network"] += f", {stage.network}"
            row["parameters"] = (row["parameters"] or 0) + (parameters.get(stage.network) or 0)
            row["bytes"] += size
            continue
        values = built_in(checkpoint) if stage is checkpoint.main else stage.defaults
        settings = {name: values[name] for name in ("steps", "sampler", "guidance") if name in values}
        if stage.conditioner is None:
            settings.pop("guidance", None)
        made: dict[str, object] = {"name": stage.name, "main": stage is checkpoint.main, "network": stage.network}
        made |= {"parameters": parameters.get(stage.network), "bytes": size, **settings}
        rows[stage.name] = cast("Stage", made)
    return list(rows.values())


def _of_text(contents: Contents) -> dict[str, object]:
    from gencli.text.generation_config import generation_config
    from gencli.text.request import TextRequest

    checkpoint = open_checkpoint(contents)
    config = checkpoint.parts[""].config if "" in checkpoint.parts else {}
    return TextRequest().resolve(generation_config(checkpoint.defaults, config)).completed()


def _of_image(contents: Contents) -> dict[str, object]:
    from gencli.image.drawers import is_drawer, open_drawer
    from gencli.image.open import open_image_checkpoint
    from gencli.image.resolve import built_in

    if is_drawer(opened := open_checkpoint(contents)):
        return open_drawer(opened).settings
    checkpoint = open_image_checkpoint(contents)
    own = {name: value for name, value in checkpoint.defaults.items() if checkpoint.prompt != "none" or name == "steps"}
    scheduler = checkpoint.configs[checkpoint.main.scheduler]
    named = {"prediction": scheduler.get("prediction_type"), "spacing": scheduler.get("timestep_spacing")}
    size = {} if checkpoint.size is None else dict(zip(("width", "height"), checkpoint.size, strict=True))
    found = {**built_in(checkpoint), **own, **size}
    return found | {name: value for name, value in named.items() if value is not None}


def small_problems(contents: Contents, *, weights_are_fine: bool) -> Iterator[str]:
    """Return what is wrong beside the weights: config, tokenizer, scheduler, settings."""
    what = judge(contents, describe(contents), _any_prediction(contents))
    if what.problem and weights_are_fine:  # else it has been said in other words
        yield what.problem
    try:
        if what.kind == "text" and not contents.is_file:
            from gencli.text.request import TextRequest

            checkpoint = open_checkpoint(contents)
            checkpoint.tokenizer()
            TextRequest().resolve(checkpoint.defaults)
        elif what.kind == "score" and not what.problem:
            from gencli.image.files.preprocess import CLIP, FILE, from_settings, read_settings

            from_settings(read_settings(contents.path), CLIP, str(contents.path / FILE))
            open_checkpoint(contents).tokenizer()
        elif what.kind == "image" and not what.problem:
            _open_image(contents)
    except GencliError as error:
        yield error.message


def _any_prediction(contents: Contents) -> str | None:
    """Return a prediction type for a file that need not say it: for wholeness either will do."""
    from gencli.image.open import SINGLE

    return "epsilon" if contents.is_file and open_checkpoint(contents).format == SINGLE else None


def _open_image(contents: Contents) -> None:
    """Open what the image recipe needs before the weights. Raise GencliError for what it would fail at."""
    from gencli.image.drawers import is_drawer, open_drawer
    from gencli.image.open import open_image_checkpoint
    from gencli.image.request import ImageRequest
    from gencli.image.resolve import resolve

    if is_drawer(opened := open_checkpoint(contents)):
        if (drawer := open_drawer(opened)).prompt == "text":
            opened.tokenizer()
        drawer.resolve(ImageRequest())
        return
    checkpoint = open_image_checkpoint(contents, prediction=_any_prediction(contents))
    for part in checkpoint.parts:
        if "tokenizer" in part:
            checkpoint.tokenizer(part)
    init = "?" if checkpoint.also_reads or checkpoint.family.needs_init else None
    mask = "?" if checkpoint.also_reads == "mask" else None
    resolve(ImageRequest(width=checkpoint.multiple, height=checkpoint.multiple, init=init, mask=mask), checkpoint)
