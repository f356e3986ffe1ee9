"""What picture is wanted, as plain values: checked when it is made, and written into the picture it leads to.

The fields of `ImageRequest` are the one schema: their ranges, their names in JSON, and their keys in the text that
AUTOMATIC1111's web UI writes into its pictures ("infotext"). No torch in here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from gencli.errors import UsageError

SPACINGS = ("leading", "trailing", "linspace", "quadratic")
SIDES = ("left", "right")
DTYPES = ("float32", "bfloat16", "float16")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
BETAS = ("scaled_linear", "linear", "squaredcos_cap_v2")
SEED_LIMIT = 2**63  # above the largest seed
# Where a field is not called as its option is.
FLAGS = {"prompt": "the prompt", "guidance": "--cfg-scale", "image_guidance": "--image-cfg-scale"}
# What holds when neither the request nor the checkpoint says otherwise: diffusers' own defaults.
BUILT_IN: dict[str, Any] = {"sampler": "ddim", "steps": 50}
BUILT_IN_TEXT: dict[str, Any] = {"negative": "", "guidance": 7.5, "guidance_rescale": 0.0}
# What --stage NAME:KEY=VALUE may set: key → field
STAGE_KEYS = {
    "steps": "steps",
    "cfg-scale": "guidance",
    "guidance-rescale": "guidance_rescale",
    "sampler": "sampler",
    "eta": "eta",
    "spacing": "spacing",
    "karras": "karras",
}
SEVERAL_LIMIT = 64  # values of an option that may be repeated
TEXT_LIMIT = 2**20  # characters of a prompt; a tokenizer would take minutes over more


def _text(default: str | None, key: str | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"kind": str, "infotext": key})


def _choice(choices: tuple[str, ...], key: str) -> Any:
    return dataclasses.field(default=None, metadata={"kind": str, "choices": choices, "infotext": key})


def _integer(low: int, high: int, key: str | None, default: int | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"kind": int, "range": (low, high), "infotext": key})


def _number(low: float, high: float, key: str) -> Any:
    return dataclasses.field(default=None, metadata={"kind": float, "range": (low, high), "infotext": key})


def _several(kind: type, key: str, low: float | None = None, high: float | None = None) -> Any:
    """A tuple of values of one kind, for an option that may be repeated."""
    bounds = {} if low is None else {"range": (low, high)}
    return dataclasses.field(default=(), metadata={"kind": kind, "several": True, "infotext": key, **bounds})


def _flag(key: str, default: bool | None = False) -> Any:
    return dataclasses.field(default=default, metadata={"kind": bool, "infotext": key})


@dataclasses.dataclass(frozen=True)
class Control:
    """One ControlNet of a request: its name, its picture's file, how much it counts, and from and to which share of the
    steps."""

    model: str
    image: str
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """One picture, or `count` of them from the seeds `seed`, `seed + 1`, …

    None leaves a value to the checkpoint and then to the built-in default; `resolve.resolve` fills it in.
    Raises UsageError for a value out of range and for values that exclude each other.

    sampler_options: further keyword arguments of the sampler. truncate: the side of a prompt that may be cut away when
    it is too long (None: that is an error). weighted: brackets in prompts are weights, and prompts may be of any length
    (`prompts.weighting`). lora, embedding: as their options name them, FILE[:SCALE] and FILE[:TOKEN]. batch: how
    many pictures go through the model at once.
    keep_rows, temperature, top_k, top_p: of models that draw pixel by pixel. best: how many of `count` to keep, by the
    similarity to the prompt that `clip` finds.
    prediction, betas: the checkpoint's `prediction_type` and `beta_schedule`, over what it says itself. vae: the name
    of what holds another autoencoder for it.
    refiner: the name of what continues the denoising from the fraction refiner_start on. stage: settings of stages
    other than the main one, NAME:KEY=VALUE.
    control…: of several ControlNets, one value each; of scale, start and end one for all will do (see `controls`).
    """

    prompt: str = _text("")
    negative: str | None = _text(None)
    steps: int | None = _integer(1, 10_000, "Steps")
    sampler: str | None = _text(None, "Sampler")
    karras: bool | None = _flag("Schedule type", default=None)
    guidance: float | None = _number(-1000, 1000, "CFG scale")
    guidance_rescale: float | None = _number(0, 1, "CFG rescale")
    seed: int | None = _integer(0, SEED_LIMIT - 1, "Seed")
    width: int | None = _integer(1, 2**14, None)
    height: int | None = _integer(1, 2**14, None)
    eta: float | None = _number(0, 1, "Eta")
    spacing: str | None = _choice(SPACINGS, "Timestep spacing")
    sampler_options: Mapping[str, bool | float | str] = dataclasses.field(
        default_factory=dict, metadata={"kind": Mapping, "infotext": "Sampler options"}
    )
    init: str | None = _text(None, "Init image")
    mask: str | None = _text(None, "Mask image")
    strength: float | None = _number(0, 1, "Denoising strength")
    keep_rows: int | None = _integer(1, 2**14, "Keep rows")
    temperature: float | None = _number(0, 1000, "Temperature")
    top_k: int | None = _integer(0, 2**22, "Top K")
    top_p: float | None = _number(0, 1, "Top P")
    image_guidance: float | None = _number(0, 1000, "Image CFG scale")
    classifier: str | None = _text(None, "Classifier")
    classifier_scale: float | None = _number(0, 1000, "Classifier scale")
    control: tuple[str, ...] = _several(str, "ControlNet model")
    control_image: tuple[str, ...] = _several(str, "ControlNet image")
    control_scale: tuple[float, ...] = _several(float, "ControlNet scale", -100, 100)
    control_start: tuple[float, ...] = _several(float, "ControlNet start", 0, 1)
    control_end: tuple[float, ...] = _several(float, "ControlNet end", 0, 1)
    count: int = _integer(1, 1_000_000, "Count", default=1)
    best: int | None = _integer(1, 1_000_000, "Best")
    clip: str | None = _text(None, "CLIP")
    grid: bool = _flag("Grid")
    batch: int = _integer(1, 4096, "Batch", default=1)
    truncate: str | None = _choice(SIDES, "Truncate")
    weighted: bool = _flag("Emphasis")
    lora: tuple[str, ...] = _several(str, "Lora")
    embedding: tuple[str, ...] = _several(str, "Embeddings")
    vae: str | None = _text(None, "VAE")
    refiner: str | None = _text(None, "Refiner")
    refiner_start: float | None = _number(0, 1, "Refiner switch at")
    stage: tuple[str, ...] = _several(str, "Stages")
    vae_tiling: bool = _flag("VAE tiling")
    dtype: str | None = _choice(DTYPES, "Dtype")
    prediction: str | None = _choice(PREDICTIONS, "Prediction")
    betas: str | None = _choice(BETAS, "Betas")
    model: str = _text("emoji", "Model")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.metadata.get("several") and isinstance(value := getattr(self, field.name), list | None):
                object.__setattr__(self, field.name, tuple(value or ()))  # as JSON and the command line have them
            _check(field, getattr(self, field.name))
        self._check_sampler()
        self._check_controls()
        self._check_stages()
        if self.seed is not None and self.seed + self.count > SEED_LIMIT:
            raise UsageError(f"--seed {self.seed} with --count {self.count}: the last seed is above {SEED_LIMIT - 1}")
        if self.init is None and (self.mask is not None or self.strength is not None):
            what = "mask" if self.mask is not None else "strength"
            raise UsageError(f"--{what} without a picture to start from", "name one with -i/--init FILE")
        if self.init is None and self.keep_rows is not None:
            raise UsageError("--keep-rows without a picture to keep them of", "name one with -i/--init FILE")
        if self.best is not None and self.best > self.count:
            raise UsageError(f"--best {self.best} of --count {self.count}: there are not that many", "raise --count")
        if self.strength == 0:
            raise UsageError("--strength 0: must be more than 0 and at most 1", "0 would leave the picture as it is")

    def _check_sampler(self) -> None:
        from gencli.image.diffusion import samplers

        if self.sampler is not None and self.sampler not in samplers.names():
            raise UsageError(f"--sampler {self.sampler!r}: no such sampler", f"there are {', '.join(samplers.names())}")
        for name, value in self.sampler_options.items():
            if not isinstance(value, (bool, int, float, str)) or value in (math.inf, -math.inf) or value != value:
                raise UsageError(f"--sampler-option {name}={value!r}: wants NAME=VALUE")

    def _check_stages(self) -> None:
        _ = self.stages
        if self.refiner_start is not None and self.refiner is None:
            raise UsageError("--refiner-start without a refiner", "name one with --refiner")
        if self.refiner_start in (0, 1):
            raise UsageError(f"--refiner-start {self.refiner_start:g}: must be more than 0 and less than 1")

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """What --stage says: name of a stage → fields of this class → values. Raises UsageError."""
        settings: dict[str, dict[str, Any]] = {}
        for text in self.stage:
            name, _, assignment = text.partition(":")
            key, equals, value = assignment.partition("=")
            if not (name and key and equals):
                raise UsageError(f"--stage {text!r:.80}: wants NAME:KEY=VALUE", "as in refiner:steps=20")
            if key not in STAGE_KEYS:
                raise UsageError(f"--stage {text!r:.80}: no key {key!r:.40}", f"there are {', '.join(STAGE_KEYS)}")
            settings.setdefault(name, {})[STAGE_KEYS[key]] = _stage_value(STAGE_KEYS[key], text, value)
        return settings

    def _check_controls(self) -> None:
        count = len(self.control)
        if count != len(self.control_image):
            raise UsageError(
                f"{count} --control and {len(self.control_image)} --control-image: each ControlNet reads one picture",
                "give --control ID and --control-image FILE in pairs",
            )
        for name in ("control_scale", "control_start", "control_end"):
            given, flag = len(getattr(self, name)), name.replace("_", "-")
            if given not in {0, min(count, 1), count}:
                raise UsageError(f"{given} --{flag} for {count} --control", "give one, or one for each")
        for control in self.controls:
            if control.start >= control.end:
                raise UsageError(f"--control-start {control.start} is not before --control-end {control.end}")

    @property
    def controls(self) -> list[Control]:
        """The ControlNets, each with its own values."""
        options = {name: getattr(self, f"control_{name}") for name in ("scale", "start", "end")}
        return [
            Control(model, image, **{name: values[i % len(values)] for name, values in options.items() if values})
            for i, (model, image) in enumerate(zip(self.control, self.control_image, strict=True))
        ]

    def replace(self, **changes: Any) -> ImageRequest:
        """A copy with other values, checked again."""
        return dataclasses.replace(self, **changes)

    def item(self, index: int) -> ImageRequest:
        """The request that makes picture `index` of `count` again, alone."""
        seed = None if self.seed is None else self.seed + index
        return self.replace(seed=seed, count=1, best=None, clip=None, grid=False, batch=1)


def _stage_value(name: str, text: str, value: str) -> Any:
    """A field's value from the text of --stage, checked. Raises UsageError."""
    [field] = [one for one in dataclasses.fields(ImageRequest) if one.name == name]
    kind = field.metadata["kind"]
    try:
        parsed = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
    except (KeyError, ValueError):
        raise UsageError(f"--stage {text!r:.80}: wants {_WORDS[kind]}") from None
    values: dict[str, Any] = {name: parsed}
    try:
        ImageRequest(**values)
    except UsageError as error:
        raise UsageError(f"--stage {text!r:.80}: {error.message}", error.hint) from None
    return parsed


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    """One field against the schema. Raises UsageError."""
    kind, name = field.metadata["kind"], FLAGS.get(field.name) or f"--{field.name.replace('_', '-')}"
    if value is None and field.default is None:
        return
    if not field.metadata.get("several"):
        _check_value(field, kind, name, value)
        return
    if not isinstance(value, tuple) or len(value) > SEVERAL_LIMIT:
        raise UsageError(f"{name} {value!r:.80}: wants a list of at most {SEVERAL_LIMIT}")
    for one in value:
        _check_value(field, kind, name, one)


def _check_value(field: dataclasses.Field[Any], kind: Any, name: str, value: Any) -> None:
    right = isinstance(value, (int, float)) if kind is float else isinstance(value, kind)
    if not right or (isinstance(value, bool) and kind is not bool):
        raise UsageError(f"{name} {value!r}: wants {_WORDS[kind]}")
    if kind is str:
        _check_text(name, value)
    if "choices" in field.metadata and value not in field.metadata["choices"]:
        raise UsageError(f"{name} {value!r}: wants one of {', '.join(field.metadata['choices'])}")
    if "range" in field.metadata:
        low, high = field.metadata["range"]
        if not low <= value <= high:  # NaN too
            raise UsageError(f"{name} {value}: must be from {low} to {high}")


_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", Mapping: "names and values"}


def _check_text(name: str, value: str) -> None:
    if len(value) > TEXT_LIMIT:
        raise UsageError(f"{name}: {len(value)} characters are too many (at most {TEXT_LIMIT})")
    if "\0" in value:
        raise UsageError(f"{name} holds a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:  # what an argument that is not UTF-8 comes as
        raise UsageError(f"{name} is not UTF-8 text") from None
