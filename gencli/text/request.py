"""What is asked of a language model: one prompt and how to continue it, checked before anything is opened. No torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gencli.errors import GencliError, UsageError

# What holds when neither the request nor the checkpoint says otherwise: llama.cpp's temperature, top-k and top-p.
BUILT_IN: dict[str, Any] = {
    "max_tokens": 256,
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}

# generation_config.json → here
CHECKPOINT_KEYS = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repeat_penalty",
}

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class TextRequest:
    """One prompt and how to continue it. A setting that is None is left to the checkpoint, then to `BUILT_IN`.

    Sample i of `num_samples` draws from a generator seeded with `seed + i`. `logit_bias`: pairs of token id and bias.
    `logprobs`: how many most likely tokens to report with each token's own log-probability (None: no report).
    Raises UsageError for a value out of range, GencliError for a prompt that is no Unicode text.
    """

    prompt: str
    seed: int = 0
    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop: tuple[str, ...] = ()
    num_samples: int = 1
    logprobs: int | None = None
    truncate: Literal["left"] | None = None

    def __post_init__(self) -> None:
        _in_range("max-tokens", self.max_tokens, low=1)
        _in_range("temperature", self.temperature, low=0)
        _in_range("top-k", self.top_k, low=0)
        _in_range("top-p", self.top_p, low=0, high=1)
        _in_range("min-p", self.min_p, low=0, high=1)
        _in_range("typical-p", self.typical_p, low=0, high=1, open_low=True)
        _in_range("repeat-penalty", self.repeat_penalty, low=0, open_low=True)
        _in_range("presence-penalty", self.presence_penalty, low=-2, high=2)
        _in_range("frequency-penalty", self.frequency_penalty, low=-2, high=2)
        _in_range("num-samples", self.num_samples, low=1)
        _in_range("logprobs", self.logprobs, low=0)
        _in_range("seed", self.seed, low=0, high=MAX_SEED - self.num_samples + 1)
        for token, bias in self.logit_bias:
            if token < 0 or math.isnan(bias) or bias == math.inf:
                raise UsageError(f"--logit-bias {token}={bias}: wants a token id and a finite bias, or -inf to ban it")
        if "" in self.stop:
            raise UsageError("--stop '': an empty text would stop before anything is said")
        if self.truncate not in (None, "left"):
            raise UsageError(f"--truncate {self.truncate!r}: only `left` is known")
        _check_text("the prompt", self.prompt)
        for stop in self.stop:
            _check_text("--stop", stop)

    def resolve(self, generation_config: Mapping[str, Any]) -> TextRequest:
        """This request with every setting filled in: its own, else the checkpoint's, else `BUILT_IN`.

        generation_config: the checkpoint's generation_config.json, or {}. `do_sample: false` there means greedy.
        Raises GencliError for a value there that makes no sense.
        """
        found = {
            ours: generation_config[theirs]
            for theirs, ours in CHECKPOINT_KEYS.items()
            if generation_config.get(theirs) is not None
        }
        if generation_config.get("do_sample") is False:
            found["temperature"] = 0.0
        given = {name: getattr(self, name) for name in BUILT_IN if getattr(self, name) is not None}
        found = {name: value for name, value in found.items() if name not in given}
        try:
            return dataclasses.replace(self, **{**BUILT_IN, **found, **given})
        except UsageError as error:
            raise GencliError(f"generation_config.json: {error.message.removeprefix('--')}") from None


def parse_logit_bias(text: str) -> tuple[int, float]:
    """`ID=BIAS` → (id, bias). Raises UsageError for anything else."""
    token, equals, bias = text.partition("=")
    try:
        if equals:
            return int(token), float(bias)
    except ValueError:
        pass
    raise UsageError(f"--logit-bias {text!r}: wants ID=BIAS, as in 50256=-100")


def _in_range(name: str, value: float | None, *, low: float, high: float = math.inf, open_low: bool = False) -> None:
    """Raises UsageError unless low <= value <= high and value is finite."""
    if value is None:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and math.isfinite(value) and low <= value <= high and not (open_low and value == low):
        return
    least = f"more than {low}" if open_low else f"at least {low}"
    raise UsageError(f"--{name} {value}: must be {least}" + (f" and at most {high}" if high < math.inf else ""))


def _check_text(what: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # argv's undecodable bytes arrive as lone surrogates
        raise GencliError(f"{what} is not valid UTF-8: {text!r}"[:200]) from None
