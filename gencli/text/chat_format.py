"""A conversation → the ids of a prompt: through the checkpoint's own template, or as a plain transcript. No torch."""

from __future__ import annotations

from typing import NamedTuple

from gencli.errors import GencliError
from gencli.text.literal import Literals
from gencli.text.reasoning import OPEN
from gencli.text.template import ChatTemplate
from gencli.tokens import Tokenizer

Message = dict[str, str]  # `role` (system, user or assistant) and `content`
SPEAKERS = {"user": "User", "assistant": "Assistant"}


class Prompt(NamedTuple):
    """reasons: the template has opened a block of reasoning, in which the answer begins."""

    text: str
    ids: list[int]
    reasons: bool = False


class Templated:
    """The checkpoint's own template. end_ids: the tokens that end a turn there."""

    stops: tuple[str, ...] = ()

    def __init__(self, tokenizer: Tokenizer, name: str):
        assert tokenizer.chat_template is not None
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer.chat_template, name)
        self.literals = Literals(tokenizer, tokenizer.chat_template)

    def prompt(self, messages: list[Message]) -> Prompt:
        """Everything up to where the answer begins.

        Raises GencliError when the template refuses the conversation, loops, or is broken.
        """
        try:
            text = self._render(self.literals.hide(messages), add_generation_prompt=True)
        except GencliError as error:
            if messages[0]["role"] == "system":
                error.hint = "some templates know no system prompt: write it into the message"
            raise
        shown = self.literals.restore(text)
        return Prompt(shown, self.literals.encode(text), shown.rstrip().endswith(OPEN))

    def end_ids(self) -> tuple[int, ...]:
        """The special token that the template writes after an answer: some configs name only another one."""
        mark = "\U000ffffd"
        try:
            text = self._render([{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}])
        except GencliError:
            return ()
        added = self.tokenizer.backend.get_added_tokens_decoder()
        after = text.partition(mark)[2].lstrip()
        return tuple(
            i for i, t in added.items() if i in self.tokenizer.special_ids and t.content and after.startswith(t.content)
        )

    def close(self) -> None:
        self.template.close()

    def _render(self, messages: list[Message], add_generation_prompt: bool = False) -> str:
        values = {**self.tokenizer.names, "tools": None, "documents": None}
        return self.template.render(**values, messages=messages, add_generation_prompt=add_generation_prompt)


class Transcript:
    """For a base model: who says what, line by line, until the other would speak."""

    stops = tuple(f"\n{speaker}:" for speaker in SPEAKERS.values())

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def prompt(self, messages: list[Message]) -> Prompt:
        """Everything up to where the answer begins. A system prompt stands at the top, with an empty line below."""
        lines = []
        for message in messages:
            content = message["content"].strip()
            speaker = SPEAKERS.get(message["role"])
            lines.append(f"{speaker}: {content}\n" if speaker else f"{content}\n\n")
        text = "".join(lines) + f"{SPEAKERS['assistant']}:"
        return Prompt(text, self.tokenizer.encode(text, special=False))

    def end_ids(self) -> tuple[int, ...]:
        return ()

    def close(self) -> None:
        pass


def chat_format(tokenizer: Tokenizer, name: str) -> Templated | Transcript:
    """How this checkpoint is spoken to. name: for messages."""
    return Transcript(tokenizer) if tokenizer.chat_template is None else Templated(tokenizer, name)
