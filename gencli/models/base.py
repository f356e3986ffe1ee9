"""What every architecture file shares: how a config is read, and the table of names between file and module. No torch.

An architecture is one file with
  * a frozen dataclass, a `BaseConfig` whose fields are the checkpoint's own config keys,
  * a `BaseModel` (see `module`) whose attributes are named as the checkpoint names them,
  * a `LAYOUT` with what still differs: prefixes, renames, buffers to drop, tied names.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, TypeVar, cast

from gencli.errors import GencliError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from torch import Tensor

IGNORE = "; --ignore-config KEY says that one does not"
EXPERT_LIMIT = 1024  # experts of a layer, as kernels.h has it; the largest published models have half as many
C = TypeVar("C")
Config = TypeVar("Config", bound="BaseConfig")


@dataclasses.dataclass(frozen=True)
class Rename:
    """Tensor names that match `pattern` as a whole become `replacement`; `transform`, if any, changes the tensor."""

    pattern: str
    replacement: str
    transform: Callable[[Tensor], Tensor] | None = None

    @functools.cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    def new_name(self, name: str) -> str | None:
        """Return what a tensor's name becomes; None for a name that does not match."""
        match = self._compiled.fullmatch(name)
        return match.expand(self.replacement) if match else None


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the tensors of a file differ from the module's own names.

    renames: tried in order, the first match wins. drops: patterns of buffers that are not parameters.
    tied: name of a parameter → name of the parameter that it shares its tensor with, if the file has only one of them.
    stacked: end of the name of a tensor that holds matrices of all experts, (experts, rows, columns) → the expert's
    layers that its rows are, in equal parts: `experts.0.gate_proj.weight` and so on, to which renames apply.
    in_turns: whether these rows come in turns, as columns, and biases in tensors of their own (see `experts_file`).
    """

    renames: tuple[Rename, ...] = ()
    drops: tuple[str, ...] = ()
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stacked: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    in_turns: bool = False

    def rename(self, name: str) -> tuple[str, Callable[[Tensor], Tensor] | None] | None:
        """Return the module's name for a file's tensor and its transform; None for a tensor to drop."""
        if any(re.fullmatch(pattern, name) for pattern in self.drops):
            return None
        for row in self.renames:
            if (new := row.new_name(name)) is not None:
                return new, row.transform
        return name, None


def squeeze_conv(weight: Tensor) -> Tensor:
    """Return the weight (out, in, 1, 1) of a 1×1 convolution as that of a linear layer (out, in); others stay."""
    return weight.flatten(1) if weight.shape[2:] == (1, 1) else weight


def read_config(
    cls: type[C],
    raw: Mapping[str, object],
    *,
    inert: Iterable[str] = (),
    only: Mapping[str, tuple[object, ...]] | None = None,
    file: str = "config.json",
) -> C:
    """Make the dataclass `cls` from the values of a checkpoint's config.json (or another `file`, for error messages).

    Fields take the file's value, or the dataclass default if the key is absent. Keys in `inert` do not change the
    mathematics and are ignored, like keys that start with "_" and keys whose value is null. A key in `only` is accepted
    with the values listed there and no others.
    Raises GencliError for any other key: a config key that is not understood may change the numbers.
    """
    fields = {f.name: f for f in dataclasses.fields(cast("type[DataclassInstance]", cls))}
    only = only or {}
    known = {}
    unknown = []
    for key, value in raw.items():
        if key in fields:
            known[key] = tuple(value) if isinstance(value, list) else value
        elif key in only:
            if value not in only[key]:
                raise GencliError(
                    f"{file}: {key} = {value!r:.80} is not supported",
                    f"gencli knows {key} = {' or '.join(repr(v) for v in only[key])}",
                )
        elif key not in inert and not key.startswith("_") and value is not None:
            unknown.append(key)
    if unknown:
        ignore = IGNORE if "_class_name" in raw else ""
        named = [f"{key} = {raw[key]!r}"[:80] for key in sorted(unknown)]
        more = f" and {len(named) - 6} more" if len(named) > 6 else ""
        raise GencliError(
            f"{file}: not supported: {', '.join(named[:6])}{more}",
            f"these keys may change the numbers, so gencli does not guess{getattr(cls, 'IGNORE', '') or ignore}",
        )
    missing = [
        f.name
        for f in fields.values()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in known
    ]
    if missing:
        raise GencliError(f"{file} lacks {', '.join(missing)}")
    return cls(**known)


def _is_off(key: str, value: object, raw: Mapping[str, object]) -> bool:
    """Return whether a config's value cannot steer a forward pass: it says that there is nothing, or is a name."""
    if isinstance(value, str):  # the name of something, which no forward pass that is known reads
        return True
    if key == "layer_types" and isinstance(value, list):
        return all(kind == "full_attention" for kind in value) and not raw.get("sliding_window")
    return value is False or (isinstance(value, int | float | list | dict) and not value)


class BaseConfig(abc.ABC):
    """Base class of configs: frozen dataclasses whose fields are keys of config.json.

    INERT, ONLY: see `read_config`. OFF_IS_INERT: unknown keys whose value switches off what they name are ignored, as
    files of one family carry the keys of another.
    """

    IGNORE: ClassVar[str] = ""  # how a user may say that a key changes nothing
    INERT: ClassVar[frozenset[str]] = frozenset()
    ONLY: ClassVar[Mapping[str, tuple[object, ...]]] = {}
    OFF_IS_INERT: ClassVar[bool] = False

    @classmethod
    def from_dict(cls: type[Config], raw: Mapping[str, object]) -> Config:
        """Read the values of a config.json.

        Raises GencliError for keys that change the mathematics and are not supported, and for impossible sizes.
        """
        raw = cls.prepare(raw)
        is_diffusers = "_class_name" in raw
        ignores_off = cls.OFF_IS_INERT or is_diffusers
        off = (key for key, value in raw.items() if ignores_off and _is_off(key, value, raw))
        inert = cls.INERT.union(off, EMA if is_diffusers else ())
        config = read_config(cls, raw, inert=inert, only=cls.ONLY)
        config.check()
        return config

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        """Return the values with the keys of other versions in today's form. Raises GencliError."""
        return raw

    @abc.abstractmethod
    def check(self) -> None:
        """Check bounds that any real model keeps, so that a hostile config allocates nothing. Raises GencliError."""


def check_ints(config: object, bounds: Mapping[str, int], least: int = 1) -> None:
    """Raise GencliError unless these fields, and all values of tuples, are integers from `least` to their bound."""
    types = {field.name: str(field.type) for field in dataclasses.fields(cast("DataclassInstance", config))}
    for key, top in bounds.items():
        value = getattr(config, key)
        for one in value if isinstance(value, tuple) and "tuple" in types[key] else (value,):
            if isinstance(one, bool) or not isinstance(one, int) or not least <= one <= top:
                raise GencliError(f"config.json: {key} = {value!r:.80} is out of range ({least} to {top})")


def check_numbers(config: object, bounds: Mapping[str, tuple[float, float]]) -> None:
    """Raise GencliError unless these fields are real numbers with low <= value <= high."""
    for key, (low, high) in bounds.items():
        value = getattr(config, key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise GencliError(f"config.json: {key} = {value!r:.80} is out of range ({low:g} to {high:g})")


def check_multiple(config: object, key: str, of: str) -> None:
    """Raise GencliError unless one integer field is a multiple of another."""
    value, factor = getattr(config, key), getattr(config, of)
    if value % factor:
        raise GencliError(f"config.json: {key} = {value} is not a multiple of {of} = {factor}")


def check_flags(config: object) -> None:
    """Raise GencliError unless every field declared `bool` holds one."""
    for field in dataclasses.fields(cast("DataclassInstance", config)):
        if field.type == "bool" and not isinstance(getattr(config, field.name), bool):
            raise GencliError(
                f"config.json: {field.name} = {getattr(config, field.name)!r:.80} is neither true nor false"
            )


# Keys that diffusers' moving average of weights leaves in the config of a UNet (`unet_ema` folders, SDXL inpainting).
EMA = frozenset(
    {"decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"}
)
# Keys that transformers writes into any config.json and that do not touch the mathematics of a forward pass.
TRANSFORMERS_INERT = frozenset(
    """architectures model_type torch_dtype dtype transformers_version use_cache output_attentions output_hidden_states
    return_dict torchscript use_bfloat16 finetuning_task id2label label2id num_labels problem_type task_specific_params
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id tokenizer_class prefix name_or_path
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
    typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences chunk_size_feed_forward output_scores return_dict_in_generate forced_bos_token_id
    forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    is_encoder_decoder is_decoder pruned_heads tf_legacy_loss gradient_checkpointing initializer_range
    initializer_factor attention_dropout attn_pdrop embd_pdrop resid_pdrop dropout license
    cross_attention_hidden_size""".split()
)
