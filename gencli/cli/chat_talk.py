"""One conversation as the command line holds it: messages are answered on stdout, everything else is on stderr."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gencli.cli.console import Console
from gencli.cli.sinks import TextSink
from gencli.text.events import Completion, ReasoningDelta, TextDelta

if TYPE_CHECKING:
    from gencli.text.chat import ChatSession
    from gencli.text.conversation import Conversation


def new_conversation(system: str | None, examples: Path | None) -> Conversation:
    """What --system and --examples say. Raises GencliError for a file that is broken."""
    from gencli.text.conversation import Conversation, read_examples

    return Conversation(system, [] if examples is None else read_examples(examples))


class Talk:
    """Answers messages one after another. The first answer's seed is `seed`, and each one more than the one before."""

    def __init__(self, console: Console, session: ChatSession, seed: int):
        self.console = console
        self.session = session
        self.seed = seed

    def answer(self, message: str) -> None:
        """Stream the answer to stdout; it is then a part of the conversation, as far as it came.

        Raises GencliError when there is none; on KeyboardInterrupt the line that was begun is ended.
        """
        prompt = self.session.prepare(message)
        if count := self.session.left_out:
            model = self.session.chat_model.model
            self.console.note(
                f"the conversation has outgrown the context of {model.max_length} tokens: its oldest {count} "
                "messages are left out from here on, the system prompt is not"
            )
        seed, self.seed = self.seed, self.seed + 1
        sink = TextSink()
        events = self.session.answer(message, prompt, seed)
        try:
            for event in events:
                if isinstance(event, ReasoningDelta):
                    self.console.aside(event.text)
                elif isinstance(event, TextDelta):
                    self.console.end_aside()
                    sink.write(event.text)
                elif isinstance(event, Completion):
                    self.console.end_aside()
                    sink.end()
                    self._note_end(event)
        except KeyboardInterrupt:
            self.console.end_aside()
            sink.interrupted()
            raise
        finally:
            events.close()

    def _note_end(self, sample: Completion) -> None:
        """Say what the text itself does not show."""
        if sample.finish_reason == "length":
            self.console.note(f"cut off after {sample.completion_tokens} tokens (see --max-tokens)")
        elif not sample.text:
            self.console.note("the model had nothing to say")
