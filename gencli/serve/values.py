"""Single values of a request's body whose rows say less, or other, than a body may have. No torch."""

from __future__ import annotations

import base64
import binascii
import functools
import json
import logging
import math
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial

from gencli.errors import GencliError, UsageError
from gencli.json_files import shown
from gencli.options import SEVERAL_LIMIT
from gencli.serve.refusal import INVALID, Refusal
from gencli.text.messages import Message, read_messages
from gencli.text.request import MAX_SEED, draw_seed
from gencli.text.tools import AUTO, NONE, REQUIRED, listed
from gencli.text.wishes import SAME, WISHES, check_values, read_wish

MOST_TOKENS = 2**17  # of all answers to one request
MOST_LOGPROBS = 20  # as OpenAI has it
MOST_SAMPLES, MOST_IMAGES = 128, 10
MOST_SEEN = 16  # images of one question
CHOICES = (AUTO, REQUIRED, NONE)
LARGEST = sys.float_info.max
EFFORTS = sorted({*WISHES, *SAME} - {"1", "0"})
log = logging.getLogger("gencli.serve")


@functools.lru_cache(maxsize=256)  # the same note once, and not with every request
def note(text: str) -> None:
    """Tell whoever runs the server what is passed over."""
    log.warning("note: %s", text)


def read_conversation(values: list[object]) -> list[Message]:
    """Return the messages of a conversation. Raise Refusal."""
    try:
        return read_messages(values)
    except GencliError as error:
        raise Refusal.of(error, status=INVALID, param="messages") from None


def whole(name: str, value: object, least: int, most: int) -> int:
    """Return a whole number within limits. Raise Refusal for any other value of this name."""
    if type(value) is not int or not least <= value <= most:
        wanted = f"wants a whole number from {least} to {most}"
        raise Refusal(INVALID, f"{name} {shown(value)}: {wanted}", param=name)
    return value


def read_images(name: str, values: object) -> tuple[bytes, ...]:
    """Return the images of a list of base64, plain or as data: URLs. Raise Refusal, which calls the list `name`."""
    if values is None:
        return ()
    if not isinstance(values, list) or len(values) > MOST_SEEN:
        raise Refusal(INVALID, f"{name}: wants a list of at most {MOST_SEEN} images in base64", param=name)
    found = []
    for value in values:
        text = value.partition(",")[2] if isinstance(value, str) and value.startswith("data:") else value
        try:
            found.append(base64.b64decode(text, validate=True))
        except (TypeError, ValueError, binascii.Error):
            raise Refusal(INVALID, f"{name}: wants images in base64; nothing is fetched", param=name) from None
    return tuple(found)


def _seed(name: str, value: object) -> int:
    return draw_seed(whole(name, value, -1, MAX_SEED - MOST_SAMPLES))


def _wish(name: str, value: object) -> str | None:
    """Return whether and how much a model is to reason: OpenAI's word, or ollama's, which may be true or false."""
    word = read_wish(str(value)) if isinstance(value, bool | str) else ""
    if word is not None and word not in WISHES:
        raise Refusal(INVALID, f"{name} {shown(value)}: wants one of {', '.join(EFFORTS)}", param=name)
    return word


def _template_values(name: str, value: object) -> str:
    """Return the values for a chat template as a text request has them."""
    if not isinstance(value, Mapping):
        raise Refusal(INVALID, f"{name} {shown(value)}: wants an object", param=name)
    try:
        check_values(name, text := json.dumps(value))
    except UsageError as error:
        raise Refusal.of(error, status=INVALID, param=name) from None
    return text


def _stop(name: str, value: object) -> tuple[str, ...]:
    """Return the texts of `stop`: one or several."""
    several = [value] if isinstance(value, str) else value
    if (
        not isinstance(several, list)
        or len(several) > SEVERAL_LIMIT
        or not all(isinstance(one, str) for one in several)
    ):
        raise Refusal(INVALID, f"{name}: wants text, or a list of at most {SEVERAL_LIMIT} of them", param=name)
    return tuple(several)


def _bias(name: str, value: object) -> tuple[tuple[int, float], ...]:
    """Return the pairs of `logit_bias`. Raise Refusal."""
    if not isinstance(value, Mapping) or not all(map(_is_bias, value.items())):
        raise Refusal(INVALID, f"{name}: wants an object of token ids and numbers", param=name)
    return tuple((int(token), float(bias)) for token, bias in value.items())


def _is_bias(pair: tuple[str, object]) -> bool:
    token, bias = pair
    if not isinstance(bias, int | float) or isinstance(bias, bool) or not re.fullmatch("[0-9]{1,9}", token):
        return False
    return abs(bias) <= LARGEST or bias == -math.inf


def _tools(name: str, value: object) -> str | None:
    """Return tools as JSON, None where there are none. Raise Refusal."""
    if not isinstance(value, list):
        raise Refusal(INVALID, f"{name} {shown(value)}: wants a list of tools", param=name)
    text = json.dumps(value, ensure_ascii=False)
    try:
        return text if value and listed(name, text) else None
    except UsageError as error:
        raise Refusal.of(error, status=INVALID, param=name) from None


def _choice(name: str, value: object) -> str:
    """Return which tool is to be called: a word, or the name of one. Raise Refusal."""
    function = value.get("function") if isinstance(value, Mapping) else None
    chosen = function.get("name") if isinstance(function, Mapping) else value
    if not isinstance(chosen, str) or (chosen is value and chosen not in CHOICES):
        wanted = f"wants {', '.join(CHOICES)}, or an object that names a function"
        raise Refusal(INVALID, f"{name} {shown(value)}: {wanted}", param=name)
    return chosen


def _truth(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise Refusal(INVALID, f"{name} {shown(value)}: wants true or false", param=name)
    return value


def _side(name: str, value: object) -> str | None:
    """Return where a prompt that is too long is cut, as the command line says it."""
    if value not in ("left", True, False):
        raise Refusal(INVALID, f"{name} {shown(value)}: wants left, or true for the same", param=name)
    return "left" if value else None


READ: dict[str, Callable[[str, object], object]] = {  # of fields whose rows say less, or other, than a body may have
    "think": _wish,
    "chat_template_kwargs": _template_values,
    "tools": _tools,
    "tool_choice": _choice,
    "several_calls": _truth,
    "seed": _seed,
    "truncate": _side,
    "stop": _stop,
    "logit_bias": _bias,
    "max_tokens": partial(whole, least=1, most=MOST_TOKENS),
    "num_samples": partial(whole, least=1, most=MOST_SAMPLES),
    "logprobs": partial(whole, least=0, most=MOST_LOGPROBS),
    "count": partial(whole, least=1, most=MOST_IMAGES),
}
