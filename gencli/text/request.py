"""A request to a language model: a prompt and how to continue it, checked before anything is opened. No torch."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, TypeGuard

from gencli.errors import GencliError, UsageError
from gencli.options import OUTPUT, SEED, Bounds, Option, check, flag, integer, make, number, rows, several
from gencli.text.grammar import check_grammar, check_schema, read_grammar, read_schema
from gencli.text.messages import Message, parse_conversation
from gencli.text.tools import AUTO, NONE, REQUIRED, Tools, check_tools, read_tools, tools_of
from gencli.text.wishes import WISHES, check_values, read_wish

MAX_SEED = 2**63 - 1
TOKENS = Bounds(1, hint="-n 1000000 goes on until the model ends, or its context is full")
TOKENS_ELSEWHERE = ("--n-predict", "--num-predict", "--max-length", "--tokens", "--length")
ANSWER_TOKENS = 4096  # within which an answer to one message ends that has no other limit, as ollama's do
INPUT, CONVERSATION, SAMPLING, LENGTH = "Prompt", "Conversation", "Sampling", "Length"  # headings on the help pages


THINK = Option(
    str,
    "--think WHEN",
    "Whether a model reasons before it answers: on, off, or how much: low, medium, high (default: auto, as its chat "
    "template has it). Reasoning goes to stderr alone, dimmed, and only if that is a terminal",
    CONVERSATION,
    read=read_wish,
    choices=WISHES,
    complete=("auto", *WISHES),
    also=("--thinking", "--enable-thinking", "--reasoning", "--reasoning-effort", "-rea"),
)
TEMPLATE_KWARGS = Option(
    str,
    "--chat-template-kwargs JSON",
    """Further values for the chat template, as in '{"builtin_tools": ["python"]}'.""",
    CONVERSATION,
    valid=check_values,
)


class Side(str, Enum):
    left = "left"


def parse_logit_bias(text: str) -> tuple[int, float]:
    """Parse `ID=BIAS` into a token id and its bias. Raise UsageError for anything else."""
    token, equals, bias = text.partition("=")
    try:
        if equals:
            return int(token), float(bias)
    except ValueError:
        pass
    raise UsageError(f"--logit-bias {text!r}: expected ID=BIAS, as in 50256=-100")


def draw_seed(seed: int | None) -> int:
    """Return the seed, or a random one for None and for -1, which llama.cpp and the web UI draw one for."""
    return random.SystemRandom().getrandbits(32) if seed in (None, -1) else seed


def _check_bias(name: str, value: Sequence[tuple[int, float]]) -> None:
    for token, bias in value:
        if token < 0 or math.isnan(bias) or bias == math.inf:
            raise UsageError(f"{name} {token}={bias}: expected a token id and a finite bias, or -inf to ban it")


def _check_stops(name: str, value: Sequence[str]) -> None:
    if "" in value:
        raise UsageError(f"{name} '': an empty text would stop before anything is said")
    for stop in value:
        _check_unicode(name, stop)


def _list_of_ids(value: object) -> bool:
    return isinstance(value, list | tuple) and all(type(i) is int and i >= 0 for i in value)


def _check_ids(name: str, value: object) -> None:
    if not _list_of_ids(value):
        raise UsageError(f"{name} {value!r:.60}: expected a list of token ids")


def _check_sequences(name: str, value: object) -> None:
    if not isinstance(value, list | tuple) or not all(_list_of_ids(one) and one for one in value):
        raise UsageError(f"{name} {value!r:.60}: expected lists of token ids")


def _check_sequence_bias(name: str, value: object) -> None:
    for one in value if isinstance(value, list | tuple) else [None]:
        ids, bias = one if isinstance(one, list | tuple) and len(one) == 2 else ((), None)
        if not _list_of_ids(ids) or not ids or not _is_number(bias) or not bias < math.inf:
            raise UsageError(f"{name} {one!r:.60}: expected pairs of a list of token ids and a bias")


def _check_decay(name: str, value: object) -> None:
    start, factor = value if isinstance(value, list | tuple) and len(value) == 2 else (None, None)
    if type(start) is not int or start < 0 or not _is_number(factor) or not 0 < factor < math.inf:
        raise UsageError(f"{name} {value!r:.60}: expected a number of tokens and a factor")


def _check_side(name: str, value: str) -> None:
    if value != "left":
        raise UsageError(f"{name} {value!r}: only `left` is known")


def _check_unicode(what: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # argv's undecodable bytes arrive as lone surrogates
        raise GencliError(f"{what} is not valid UTF-8: {text!r}"[:200]) from None


def _is_number(value: object) -> TypeGuard[float]:
    return type(value) in (int, float)


def _check_one_or_more(name: str, value: object) -> None:
    _check_ids(name, [value] if isinstance(value, int) else value)


def _own(
    key: str, valid: Callable[[str, object], None] | None = None, within: tuple[float, float] | None = None
) -> Option:
    """Return the row of a field that a checkpoint alone fills, from this key of its generation_config.json."""
    return Option(int, valid=valid, within=within, called=key, config_key=key)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How a token is sampled from logits. None leaves a value to the checkpoint, then to the row's usual value.

    Each field is applied by the function of `gencli.text.sampling` that is registered under its name.
    logit_bias: pairs of token id and bias. The usual temperature, top_k and top_p are llama.cpp's.
    Raise UsageError for a value out of range.
    """

    # fmt: off
    temperature: float | None = number(None, "--temperature, --temp T",
        "Lower is safer, higher is wilder; 0 always takes the most likely token", SAMPLING, bounds=Bounds(0), usual=0.8,
        off=1.0, config_key="temperature", also=("-t",))
    top_k: int | None = integer(None, "-k, --top-k K", "Sample from the K most likely tokens; 0 = all", SAMPLING,
        bounds=Bounds(-1), usual=40, off=0, config_key="top_k")
    top_p: float | None = number(None, "--top-p P",
        "Sample from the most likely tokens that add up to probability P; 1 = off",
        SAMPLING, bounds=Bounds(0, 1), usual=0.95, off=1.0, config_key="top_p")
    min_p: float | None = number(None, "--min-p P",
        "Drop tokens less than P times as likely as the most likely one; 0 = off",
        SAMPLING, bounds=Bounds(0, 1), usual=0.0, off=0.0, config_key="min_p")
    typical_p: float | None = number(None, "--typical-p P", "Locally typical sampling; 1 = off", SAMPLING,
        bounds=Bounds(0, 1, open_low=True), usual=1.0, off=1.0, config_key="typical_p")
    repeat_penalty: float | None = number(None, "--repeat-penalty R",
        "Penalise tokens already in the prompt or output; 1 = off",
        SAMPLING, bounds=Bounds(0, open_low=True), usual=1.0, off=1.0, config_key="repetition_penalty",
        also=("--repetition-penalty",))
    presence_penalty: float | None = number(None, "--presence-penalty A",
        "Lower the score of every token already generated by A, -2 to 2", SAMPLING, bounds=Bounds(-2, 2), usual=0.0,
        off=0.0)
    frequency_penalty: float | None = number(None, "--frequency-penalty A",
        "Lower a token's score by A for each time it was generated, -2 to 2", SAMPLING, bounds=Bounds(-2, 2),
        usual=0.0, off=0.0)
    logit_bias: tuple[tuple[int, float], ...] = Option(tuple, "--logit-bias ID=BIAS",
        "Add BIAS to a token's score (repeatable).", SAMPLING, several=True, word=str,
        read=lambda pairs: tuple(map(parse_logit_bias, pairs or ())), valid=_check_bias, off=()).field(())
    # A checkpoint's own, which the command line does not name. eos_ids and max_tokens are filled in for each prompt.
    sequence_bias: Sequence[tuple[Sequence[int], float]] | None = _own(
        "sequence_bias", _check_sequence_bias).field(None)
    no_repeat_ngram_size: int | None = _own("no_repeat_ngram_size", within=(0, 2**31)).field(None)
    bad_words_ids: Sequence[Sequence[int]] | None = _own("bad_words_ids", _check_sequences).field(None)
    min_length: int | None = _own("min_length", within=(0, 2**31)).field(None)
    min_new_tokens: int | None = _own("min_new_tokens", within=(0, 2**31)).field(None)
    forced_eos_token_id: int | Sequence[int] | None = _own("forced_eos_token_id", _check_one_or_more).field(None)
    exponential_decay_length_penalty: tuple[int, float] | None = _own(
        "exponential_decay_length_penalty", _check_decay).field(None)
    suppress_tokens: Sequence[int] | None = _own("suppress_tokens", _check_ids).field(None)
    begin_suppress_tokens: Sequence[int] | None = _own("begin_suppress_tokens", _check_ids).field(None)
    # fmt: on
    eos_ids: tuple[int, ...] = ()
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        check(self)
        if self.top_k == -1:  # vLLM's word for all of them
            object.__setattr__(self, "top_k", 0)


@dataclass(frozen=True)
class TextRequest:
    """One prompt and how to continue it. None leaves a value to the checkpoint, then to the row's usual value.

    Sample i of `num_samples` draws from a generator seeded with `seed + i`. `logprobs`: how many most likely tokens to
    report with each token's own log-probability (None: no report). `max_length`: tokens of prompt and text together,
    which a checkpoint may limit where no number of tokens is asked for. `answers`: the text is the answer to one
    message, and may be longer than others unless something else is said.
    Raise UsageError for a value out of range, GencliError for a prompt that is no Unicode text.
    """

    prompt: str = ""
    # fmt: off
    seed: int = dataclasses.replace(SEED, read=draw_seed).field(0)
    truncate: Literal["left"] | None = Option(str, "--truncate left",
        "If the prompt does not fit the context, drop its beginning instead of failing.", INPUT, word=Side,
        read=lambda side: None if side is None else "left", valid=_check_side).field(None)
    sampling: SamplingParams = SamplingParams()
    max_tokens: int | None = integer(None, "-n, --max-tokens, --max-new-tokens N",
        "Maximum tokens to generate, limited by the context (default: 256). An answer to one message, without --lines: "
        f"{ANSWER_TOKENS}.", LENGTH, bounds=TOKENS, usual=256, config_key="max_new_tokens",
        also=TOKENS_ELSEWHERE)
    stop: tuple[str, ...] = several(str, "--stop TEXT",
        "Stop before this text, which is not printed (repeatable).", LENGTH,
        valid=_check_stops)
    num_samples: int = integer(1, "--num-samples N", "Continue the prompt N times (default: 1).", LENGTH,
        bounds=Bounds(1), also=("--num-return-sequences", "--count"))
    logprobs: int | None = integer(None, "--logprobs N",
        "With --json: log-probabilities of each token and its N most likely alternatives.", OUTPUT, bounds=Bounds(0))
    max_length: int | None = integer(None, bounds=Bounds(1), called="max_length", config_key="max_length")
    schema: str | None = Option(str, "--schema FILE|JSON",
        "The text is JSON that follows this JSON schema: a file, or the schema itself.", OUTPUT, read=read_schema,
        valid=check_schema, also=("--json-schema", "--format", "-j", "-jf")).field(None)
    grammar: str | None = Option(str, "--grammar FILE|/REGEX/",
        "The text follows this grammar: a file in the notation of Lark or llama.cpp (GBNF), or a regular expression "
        "between slashes.", OUTPUT, read=read_grammar, valid=check_grammar,
        also=("--grammar-file", "--regex", "--guided-regex")).field(None)
    messages: bool = flag(False, "--messages",
        "The prompt is a conversation to be answered, as OpenAI's API has it: a JSON list of messages, or an "
        "object with them as `messages`. A last one of the assistant begins the answer. With --lines each line is one. "
        "Turns on --chat.", CONVERSATION)
    think: str | None = dataclasses.replace(THINK,
        help=f"{THINK.help}, and with --json to `reasoning_content`. Turns on --chat.").field(None)
    chat_template_kwargs: str | None = dataclasses.replace(TEMPLATE_KWARGS,
        help=f"{TEMPLATE_KWARGS.help} Turns on --chat.").field(None)
    tools: str | None = Option(str, "--tools FILE|JSON",
        "Functions that the model may call, as OpenAI's API has them: a JSON file, or the JSON itself. After what the "
        "model says each call is a line of JSON with `name` and `arguments`; --json keeps both apart, with calls as "
        "`tool_calls`. Turns on --chat.",
        CONVERSATION, read=read_tools, valid=check_tools, also=("--functions", "--tool")).field(None)
    tool_choice: str | None = Option(str, "--tool-choice WHICH",
        "With --tools: auto, required, none, or the name of the function to call (default: auto).", CONVERSATION,
        complete=(AUTO, REQUIRED, NONE)).field(None)
    several_calls: bool = Option(bool, called="several_calls").field(True)
    # fmt: on
    answers: bool = False

    def __post_init__(self) -> None:
        check(self)
        if self.schema is not None and self.grammar is not None:
            raise UsageError("--schema and --grammar cannot be combined")
        if self.tools_given is not None and self.form is not None:
            raise UsageError(f"--tools and --{'grammar' if self.schema is None else 'schema'} cannot be combined")
        Bounds(0, MAX_SEED - self.num_samples + 1).check("--seed", self.seed)
        _check_unicode("the prompt", self.prompt)

    @property
    def tools_given(self) -> Tools | None:
        """The tools that may be called, if any. Raise UsageError for a choice that they do not leave."""
        return tools_of(self.tools, self.tool_choice, several=self.several_calls)

    @property
    def conversation(self) -> list[Message]:
        """The messages of a prompt that is a conversation. Raise GencliError where it is none."""
        return parse_conversation(self.prompt, "the conversation")

    @property
    def form(self) -> str | None:
        """The schema or grammar that the text follows (see `gencli.text.grammar`), if any."""
        return self.schema if self.grammar is None else self.grammar

    @classmethod
    def of(cls, prompt: str = "", **values: object) -> TextRequest:
        """Return a request from values of its fields and of those of `SamplingParams`."""
        sampling = make(SamplingParams, {name: values.pop(name) for name, _ in rows(SamplingParams) if name in values})
        return make(cls, {"prompt": prompt, "sampling": sampling, **values})

    def completed(self) -> dict[str, object]:
        """Return the values that a checkpoint may say something about, by name."""
        return {name: getattr(self if hasattr(self, name) else self.sampling, name) for name in usual_values()}

    def resolve(self, generation_config: Mapping[str, object]) -> TextRequest:
        """Return this request with every value filled in: its own, else the checkpoint's, else the row's usual one.

        generation_config: the checkpoint's generation_config.json, or {}. `do_sample: false` there means greedy.
        Raise GencliError for a value there that makes no sense.
        """
        config = dict(generation_config)
        if config.get("do_sample") is False:
            config["temperature"] = 0.0
        if self.max_tokens is not None or config.get("max_new_tokens") is not None:
            config["max_length"] = None
        elif config.get("max_length") is not None:
            config["max_new_tokens"] = config["max_length"]
        stops = config.get("stop_strings") or ()
        stops = (stops,) if isinstance(stops, str) else stops
        try:
            if not isinstance(stops, list | tuple) or not all(isinstance(stop, str) for stop in stops):
                raise UsageError(f"stop_strings {stops!r:.60}: expected a list of texts")
            stop = tuple(dict.fromkeys((*self.stop, *stops)))
            sampling = make(SamplingParams, {**vars(self.sampling), **_missing(self.sampling, config)})
            return make(type(self), {**vars(self), "sampling": sampling, "stop": stop, **_missing(self, config)})
        except UsageError as error:
            raise GencliError(f"generation_config.json: {error.message.removeprefix('--')}") from None


def _missing(record: SamplingParams | TextRequest, config: Mapping[str, object]) -> dict[str, object]:
    """Return what the checkpoint says, or is usual, for fields that a record leaves open."""
    found = {}
    for name, option in rows(record):
        if getattr(record, name) is None and (option.usual is not None or option.config_key):
            value = config.get(option.config_key or "")
            if option.kind is int and isinstance(value, float) and value.is_integer():
                value = int(value)  # some tools write 50.0
            usual = ANSWER_TOKENS if name == "max_tokens" and getattr(record, "answers", False) else option.usual
            found[name] = usual if value is None else value
    return found


def usual_values() -> dict[str, object]:
    """Return the values that hold if neither the request nor the checkpoint says otherwise, by name."""
    found = [*rows(TextRequest), *rows(SamplingParams)]
    return {name: option.usual for name, option in found if option.usual is not None}
