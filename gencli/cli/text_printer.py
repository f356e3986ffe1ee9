"""The events of texts as they come: samples to stdout, and to stderr notes, errors and how far it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from gencli.cli.console import Console, is_terminal
from gencli.cli.text_output import JsonOutput, PlainOutput, why_cut, why_empty
from gencli.errors import GencliError, UsageError, counted
from gencli.text.events import (
    CharactersLost,
    Completion,
    Event,
    Failed,
    GenerationStats,
    MessagesLeftOut,
    PromptTruncated,
    ReasoningDelta,
    TextDelta,
)
from gencli.text.request import TextRequest


class Printer:
    """Writes the events of prompts. A line that fails is told and the rest goes on.

    lines: whether each prompt is a line; strict: of which the first that
    fails ends it all. seen: the prompts whose events come, by number. more:
    what there is to say of a line beside its texts, by number.
    """

    def __init__(
        self,
        console: Console,
        request: TextRequest,
        output: PlainOutput | JsonOutput,
        *,
        lines: bool,
        strict: bool,
        chats: bool,
    ):
        self.console, self.request, self.output, self.chats = console, request, output, chats
        self.each_line, self.strict = lines, strict
        self.seen: dict[int, str] = {}
        self.more: dict[int, dict[str, object]] = {}
        self.failed = self.lines = 0
        self.number = -1

    def write(self, events: Iterator[Event], context: Callable[[], int]) -> None:
        """Write events, those of a line after each other. context: of the model, in tokens.

        Raise GencliError for a prompt that fails, with lines at the end.
        """
        for event in events:
            number = event.index // self.request.num_samples
            if number != self.number:
                self.seen.pop(self.number, None)
                self.more.pop(self.number, None)
                self.number, self.lines = number, self.lines + 1
            self._write(event, number, context)
        if self.failed:
            raise GencliError(f"{self.failed} of {self.lines} lines failed")

    def _write(self, event: Event, number: int, context: Callable[[], int]) -> None:
        console, line = self.console, f"line {number + 1}: " if self.each_line else ""
        if isinstance(event, Failed):
            if self.each_line and number in self.seen:  # else the error tells its line
                event.error.message = line + event.error.message
            if not self.each_line or self.strict or isinstance(event.error, UsageError):
                raise event.error
            self.failed += 1
            console.clear()
            self.output.fail()
            console.error(event.error)
        elif isinstance(event, PromptTruncated):
            console.note(f"{line}only the last {event.kept} of the prompt's {event.tokens} tokens are used")
        elif isinstance(event, MessagesLeftOut):
            self.more[number] = {**self.more.get(number, {}), "messages_left_out": event.count}
            oldest = counted(event.count, "message")
            console.note(f"{line}the conversation does not fit the context: its oldest {oldest} will be left out")
        elif isinstance(event, CharactersLost):
            lost = counted(event.count, "character")
            console.note(f"{line}the model's vocabulary lacks {lost} of the prompt, which it does not see")
        elif isinstance(event, ReasoningDelta):
            console.aside(event.text)
        else:
            self.output.show(event, self.seen[number], self.more.get(number))
            if isinstance(event, Completion) and (reason := self._end(event, context())):
                console.note(line + reason)

    def _end(self, sample: Completion, context: int) -> str | None:
        """Return what there is to say of a sample's end, if anything."""
        if self.chats and (reason := why_empty(sample, context)):
            return reason
        if self.request.tools is not None and not sample.calls and (reason := why_cut(sample, context)):
            return f"{reason}: what may have become a call is text"
        if self.request.form is not None and (reason := why_cut(sample, context)):
            form = "schema" if self.request.schema else "grammar"
            return f"{reason}: the text does not follow the {form} to its end"
        return None


def show_progress(console: Console, stats: GenerationStats, events: Iterator[Event]) -> Iterator[Event]:
    """Show the number of tokens while events come, unless the text itself is on the screen."""
    for event in events:
        if isinstance(event, TextDelta | Completion):
            console.end_aside()
            if is_terminal(sys.stdout):
                console.clear()
            else:
                console.progress("generating:", rate=f"{stats.generated} tokens, {stats.rate:.1f} tokens/s")
        yield event
