"""A conversation → the ids of a prompt: by the checkpoint's chat template, or as a plain transcript. No torch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

from gencli.errors import GencliError, UsageError
from gencli.text.call_forms import form_of
from gencli.text.calls import Calls
from gencli.text.channels import channels_of
from gencli.text.messages import Message, begun_answer
from gencli.text.reasoning import Reasoning, marks_of
from gencli.text.request import TextRequest
from gencli.text.special_tokens import SpecialTokens
from gencli.text.template_process import ChatTemplate
from gencli.text.thinking import SWITCHES, check_none, template_values, wishes
from gencli.text.wishes import OFF
from gencli.tokens import Tokenizer

SPEAKERS = {"user": "User", "assistant": "Assistant"}

ANSWER, NEXT = "\U000ffffd", "\U000ffffc"  # what is said in a conversation that shows how a turn ends
# The usual ends of turns, for templates that refuse to show theirs.
TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|eot|>",
)
OWN_VALUES: Mapping[str, object] = {"messages": [], "add_generation_prompt": False, "tools": None, "documents": None}
USUAL = TextRequest()


class Prompt(NamedTuple):
    """A rendered prompt and its ids. reasoning: how its answer is marked, and a thought that the template opened."""

    text: str
    ids: list[int]
    reasoning: Reasoning = Reasoning()


class PromptFormat(Protocol):
    """How messages become a prompt. stops: stop strings that end an answer besides the end tokens."""

    @property
    def stops(self) -> tuple[str, ...]: ...
    def prompt(self, messages: list[Message], request: TextRequest = ...) -> Prompt: ...
    def end_ids(self) -> tuple[int, ...]: ...
    def close(self) -> None: ...


class Templated:
    """The checkpoint's own template."""

    def __init__(self, tokenizer: Tokenizer, name: str):
        assert tokenizer.chat_template is not None
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer.chat_template, name)
        self.special_tokens = SpecialTokens(tokenizer, tokenizer.chat_template)
        self.marks, self.channels = marks_of(tokenizer), channels_of(tokenizer)

    def prompt(self, messages: list[Message], request: TextRequest = USUAL) -> Prompt:
        """Return the prompt up to where the answer begins, or goes on that an assistant's last message begins. request:
        what it says of reasoning and of the template.

        Raises GencliError when the template refuses the conversation, loops, or is broken; UsageError when it reads
        nothing of what the request says.
        """
        begun = begun_answer(messages)
        _check_begun(begun, request)
        asked, calls = self._asked(request), self._calls(request)
        listed = None if calls is None else [*calls.tools.listed]
        plain = {"tools": listed, **asked}
        escaped, tools = self.special_tokens.escape_special_tokens(messages, listed)
        try:
            text = self._asks(escaped, {**plain, "tools": tools})
        except GencliError as error:
            if asked and self._takes(escaped):
                name = "think" if request.chat_template_kwargs is None else "chat-template-kwargs"
                raise UsageError(f"--{name}: {error.message}") from None
            if messages[0]["role"] == "system":
                error.hint = "some templates know no system prompt: write it into the message"
            raise
        if escaped != messages or tools != listed:
            with contextlib.suppress(GencliError):
                text = self.special_tokens.faithful(text, self._asks(messages, plain))
        shown = self.special_tokens.unescape(text)
        inside = next((one for one in self.marks if one.begun_in(text)), None)
        reasoning = Reasoning(self.marks, inside, self.channels, calls)
        if begun and inside is None:
            if calls and self.channels:
                raise UsageError(f"--tools: an answer of {self.template.name} that is begun has no calls")
            reasoning = dataclasses.replace(reasoning, channels=None, begun=True)
        return Prompt(shown, self.special_tokens.encode(text), reasoning)

    def _calls(self, request: TextRequest) -> Calls | None:
        """Return the calls that an answer may have. Raise UsageError for a template that knows no tools."""
        tools = request.tools_given
        if tools is None:
            return None
        form = form_of(self.template.source) if "tools" in self._variables else None
        if form is None:
            raise UsageError(f"--tools: the chat template of {self.template.name} knows no tools")
        return Calls(None if self.channels else form, tools)

    def _takes(self, messages: list[Message]) -> bool:
        """Return whether the template takes a conversation without further values."""
        with contextlib.suppress(GencliError):
            return bool(self._asks(messages))
        return False

    def end_ids(self) -> tuple[int, ...]:
        """Return the tokens that end an answer, or begin the next turn; some configs name only another one."""
        return self._turn_end[0]

    @property
    def stops(self) -> tuple[str, ...]:
        """What stands after an answer, where that is no token."""
        return self._turn_end[1]

    @functools.cached_property
    def _turn_end(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The tokens and texts that end an answer. A template may refuse some conversations, or end only some turns."""
        asked, answered, asks = (
            Message(role=role, content=text) for role, text in (("user", "a"), ("assistant", ANSWER), ("user", NEXT))
        )
        system = Message(role="system", content="a")
        found: list[str] = []
        heads: tuple[list[Message], ...] = ([], [system])
        for head in heads:
            for more in ([asks][:0], [asks]):
                with contextlib.suppress(GencliError):
                    text = self._render([*head, asked, answered, *more])
                    found.append(text.partition(ANSWER)[2].partition(NEXT)[0])
            if found:
                break
        added = {t.content: i for i, t in self.tokenizer.backend.get_added_tokens_decoder().items() if t.content}
        begins = [max((t for t in added if text.lstrip().startswith(t)), key=len, default="") for text in found]
        ends = [name for name in begins if name] or [name for name in TURN_ENDS if not found and name in added]
        common = os.path.commonprefix(found).rstrip()  # noqa: RUF071 (not of paths)
        common = common or max(found, key=len, default="").rstrip()
        words = len(common) > 2 and any(map(str.isalpha, common))
        return tuple(added[name] for name in dict.fromkeys(ends)), (common.lstrip(" "),) if words and not ends else ()

    def close(self) -> None:
        self.template.close()

    def _asked(self, request: TextRequest) -> Mapping[str, object]:
        """Return the values for the template that a request asks for. Raise UsageError."""
        if request.think is None and request.chat_template_kwargs is None:
            return {}
        source, own = self.template.source, {*OWN_VALUES, *self.tokenizer.names}
        reasons = self.channels is not None or any(one.open in source or one.close in source for one in self.marks)
        reads = {name: texts for name, texts in self._variables.items() if name not in own}
        return template_values(request, reads, self.template.name, reasons=reasons)

    @functools.cached_property
    def _variables(self) -> dict[str, list[str]]:
        return self.template.variables()

    def _asks(self, messages: list[Message], asked: Mapping[str, object] = MappingProxyType({})) -> str:
        """Return the text that asks for an answer to messages, or goes on to where they have begun it. Raise as
        `ChatTemplate.render`."""
        if not (begun := begun_answer(messages)):
            return self._render(messages, asked, add_generation_prompt=True)
        last = Message(role="assistant", content=begun + ANSWER)
        text, found, _ = self._render([*messages[:-1], last], asked).rpartition(ANSWER)
        if not found:
            raise GencliError(f"{self.template.name}: its chat template does not show the answer that is begun")
        return text

    def _render(
        self,
        messages: list[Message],
        asked: Mapping[str, object] = MappingProxyType({}),
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        own = {**OWN_VALUES, "messages": messages, "add_generation_prompt": add_generation_prompt}
        return self.template.render({**self.tokenizer.names, **own, **asked})


def _check_begun(begun: str, request: TextRequest) -> None:
    """Raise UsageError for what cannot be had of an answer that the conversation has begun, if it has."""
    if begun and request.think not in (None, OFF):
        raise UsageError(f"--think {request.think}: there is none before an answer that the conversation has begun")
    if begun and request.form is not None:
        name = "schema" if request.schema else "grammar"
        raise UsageError(f"--{name}: an answer that the conversation has begun follows none")


class Transcript:
    """For a base model: the speaker and the text of each message, line by line, up to the assistant's next line."""

    stops = tuple(f"\n{speaker}:" for speaker in SPEAKERS.values())

    def __init__(self, tokenizer: Tokenizer, name: str):
        self.tokenizer, self.name = tokenizer, name
        self.reasoning = Reasoning(marks_of(tokenizer))

    def prompt(self, messages: list[Message], request: TextRequest = USUAL) -> Prompt:
        """Return the prompt up to where the answer begins, or goes on that an assistant's last message begins. A system
        prompt stands at the top, then an empty line.

        Raises UsageError for a request that says something of a template.
        """
        begun = begun_answer(messages)
        _check_begun(begun, request)
        check_none(request, self.name)
        if request.tools_given is not None:
            raise UsageError(f"--tools: {self.name} has no chat template, and knows no tools")
        lines = []
        for message in messages[:-1] if begun else messages:
            if message["role"] == "tool" or message.get("tool_calls"):
                raise GencliError(f"{self.name} has no chat template, and knows no calls of tools")
            content = message["content"].strip()
            speaker = SPEAKERS.get(message["role"])
            lines.append(f"{speaker}: {content}\n" if speaker else f"{content}\n\n")
        text = "".join(lines) + f"{SPEAKERS['assistant']}:{' ' if begun else ''}{begun}"
        reasoning = dataclasses.replace(self.reasoning, begun=bool(begun))
        return Prompt(text, self.tokenizer.encode(text, special=False), reasoning)

    def end_ids(self) -> tuple[int, ...]:
        return ()

    def close(self) -> None:
        pass


def prompt_format(tokenizer: Tokenizer, name: str) -> PromptFormat:
    """Choose how messages become a prompt for this checkpoint. name: for error messages."""
    return Transcript(tokenizer, name) if tokenizer.chat_template is None else Templated(tokenizer, name)


def switches(source: str, name: str) -> list[str]:
    """Return the wishes about reasoning that a template has a switch for. Raise GencliError for one that loops."""
    if not any(switch in source for switch in SWITCHES):
        return []
    template = ChatTemplate(source, name)
    try:
        return wishes(template.variables())
    finally:
        template.close()
