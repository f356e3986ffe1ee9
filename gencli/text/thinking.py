"""How a chat template is told whether and how long a model is to reason. No torch.

Templates take it by variables of their own; which of them one reads, the template itself tells.
"""

from __future__ import annotations

from collections.abc import Mapping

from gencli.errors import UsageError, did_you_mean
from gencli.text.request import TextRequest
from gencli.text.wishes import LEVELS, OFF, ON, WISHES, read_values

Reads = Mapping[str, list[str]]  # a variable of a template → the texts that it compares the value with
EFFORT = "reasoning_effort"  # gpt-oss, Mistral
# A variable → its value for a wish. Where a wish is missing, what the template does without a value is meant.
SWITCHES: Mapping[str, Mapping[str, object]] = {
    "enable_thinking": {ON: True, OFF: False},  # Qwen 3, Gemma 4, SmolLM3, GLM, Nemotron, …
    "thinking": {ON: True, OFF: False},  # DeepSeek V3.1, Granite, Kimi
    "thinking_budget": {OFF: 0},  # Seed-OSS: in tokens
    EFFORT: {},
}
NONE = "none"  # the effort of no reasoning, in templates that know it


def template_values(request: TextRequest, reads: Reads, name: str, *, reasons: bool) -> Mapping[str, object]:
    """Return the values for the template of model `name` that a request asks for.

    reads: what the template takes from outside. reasons: whether it speaks of reasoning at all. Raise UsageError for a
    wish that it has no switch for, and for a value that it does not read.
    """
    values = read_values(request.chat_template_kwargs) if request.chat_template_kwargs is not None else {}
    if unknown := next((one for one in values if one not in reads), None):
        known = f"it reads {', '.join(reads)}" if reads else "it reads no further values"
        told = f"--chat-template-kwargs: the chat template of {name} does not read {unknown!r:.80}"
        raise UsageError(told, did_you_mean(unknown[:60], reads) or known)
    return {**(_thinking(request.think, reads, name, reasons=reasons) if request.think else {}), **values}


def wishes(reads: Reads) -> list[str]:
    """Return the wishes that a template which reads these variables has a switch for; [] for one that has none."""
    known = {word for switch, values in SWITCHES.items() if switch in reads for word in values}
    if EFFORT in reads:
        known |= {*_levels(reads[EFFORT]), *([OFF] if NONE in reads[EFFORT] else [])}
    return [wish for wish in WISHES if wish in known]


def check_none(request: TextRequest, name: str) -> None:
    """Raise UsageError for a request that asks something of a template of model `name`, which has none."""
    if request.chat_template_kwargs is not None:
        raise UsageError(f"--chat-template-kwargs: {name} has no chat template")
    if request.think not in (None, OFF):
        raise UsageError(f"--think {request.think}: {name} has no chat template, and does not reason")


def _thinking(wish: str, reads: Reads, name: str, *, reasons: bool) -> dict[str, object]:
    """Return the values that a wish means for a template. Raise UsageError."""
    found = {switch: values for switch, values in SWITCHES.items() if switch in reads}
    if not found and wish == OFF and not reasons:
        return {}
    if not found:
        what = "has no switch for it" if reasons else "knows no reasoning"
        raise UsageError(f"--think {wish}: the chat template of {name} {what}", "leave --think out")
    made = {switch: values[word] for switch, values in found.items() if (word := _plain(wish)) in values}
    if EFFORT in found and (effort := _effort(wish, reads[EFFORT], name, alone=len(found) == 1)):
        made[EFFORT] = effort
    return made


def _plain(wish: str) -> str:
    """Return a wish for what is only switched on or off."""
    return OFF if wish == OFF else ON


def _effort(wish: str, known: list[str], name: str, *, alone: bool) -> str | None:
    """Return the effort that a wish means, None for the template's own. known: the efforts that it speaks of, if any.

    alone: nothing else switches reasoning. Raise UsageError.
    """
    levels = _levels(known)
    if wish in levels:
        return wish
    if wish == OFF and NONE in known:
        return NONE
    if wish == ON:
        return levels[-1] if NONE in known else None
    if wish == OFF and not alone:
        return None
    what = f"{name} always reasons" if wish == OFF else f"{name} knows no such effort"
    raise UsageError(f"--think {wish}: {what}: its chat template takes {', '.join(levels)}")


def _levels(known: list[str]) -> list[str]:
    """Return the levels among the efforts that a template speaks of; all where it speaks of none."""
    return [level for level in LEVELS if level in known] or list(LEVELS)
