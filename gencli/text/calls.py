"""Calls of tools, told from the answer as it streams, and the grammar that holds them to their schemas. No torch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from gencli.text.call_forms import Form
from gencli.text.call_grammars import Mark, harmony
from gencli.text.tools import Call, Tools
from gencli.tokens import Tokenizer


@dataclass(frozen=True)
class Calls:
    """The calls that an answer may have. form: how the model writes them; None where its channels do (`channels`)."""

    form: Form | None
    tools: Tools

    def grammar(self, tokenizer: Tokenizer) -> str:
        """Return the grammar of what stands behind the mark that opens calls, or of a whole message in channels."""
        mark = marker(tokenizer)
        if self.form is None:
            return harmony(self.tools.schemas, mark)
        return self.form.rules(self.tools.schemas, mark, several=self.tools.several)

    def opens(self) -> tuple[str, ...]:
        """Return what opens calls beyond doubt: a brace alone may open an answer in JSON too."""
        assert self.form is not None
        if not self.form.inside:
            return self.form.opens
        return tuple(f'{{"name": "{name}"' for name in self.tools.schemas)


def marker(tokenizer: Tokenizer) -> Mark:
    """Return what writes texts in a grammar: a token that is special is no text; what is around it is."""
    special = {tokenizer.raw_piece(i): i for i in tokenizer.special_ids}

    def mark(text: str) -> str:
        names = sorted((name for name in special if name in text), key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
        found = [f"<[{special[one]}]>" if one in special else json.dumps(one, ensure_ascii=False) for one in parts]
        return " ".join(one for one, part in zip(found, parts, strict=True) if part) or '""'

    return mark


class CallSplitter:
    """One answer. Once a mark has opened calls, all that follows is held back until its end: what cannot be read as
    calls is then text after all. White space before calls is left out.

    opens: what stands before calls. first: they stand at the beginning of an answer alone. begun: they have.
    """

    def __init__(self, calls: Calls, opens: tuple[str, ...] | None = None):
        assert calls.form is not None
        self.form, self.schemas = calls.form, calls.tools.schemas
        self.opens = calls.form.opens if opens is None else opens
        self.begun = False
        self.held = ""
        self._mark, self._lead = "", 0  # what has opened them, and the white space before
        self._said = False

    def push(self, text: str) -> str:
        """Take more text. Return what of it is no part of calls."""
        self.held += text
        if self.begun:
            return ""
        found = [(at, one) for one in self.opens if (at := self._at(one)) >= 0]
        if found and not (self.form.inside and self._said):
            at, self._mark = min(found, key=lambda one: (one[0], -len(one[1])))
            shown, self.begun = self.held[:at].rstrip(), True
            self._lead, self.held = at - len(shown), self.held[len(shown) :]
        else:
            keep = len(self.held) - self._sure()
            shown, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        self._said = self._said or bool(shown.strip())
        return shown

    def rest(self) -> str:
        """Return what has come behind the mark, or from it on where it is a part of the call."""
        inside = self.form.inside and self._mark != "<|python_tag|>"
        return self.held[self._lead + (0 if inside else len(self._mark)) :]

    def finish(self) -> tuple[str, tuple[Call, ...]]:
        """Return the text that was held back, and the calls, when no more text comes."""
        if self.begun:
            try:
                calls = tuple(self.form.read(self.rest(), self.schemas))
            except (ValueError, RecursionError):
                calls = ()
            if calls and not (self.form.inside and any(one.name not in self.schemas for one in calls)):
                return "", calls
        text, self.held = self.held, ""
        return text, ()

    def _at(self, mark: str) -> int:
        if not self.form.inside:
            return self.held.find(mark)
        start = len(self.held) - len(self.held.lstrip())
        return start if self.held.startswith(mark, start) else -1

    def _sure(self) -> int:
        """Return how many characters of what is held begin no mark, nor white space before one."""
        text = self.held
        if self.form.inside:
            begun = text.lstrip()
            waits = not self._said and any(one.startswith(begun) for one in self.opens)
            return 0 if waits else len(text)
        for size in range(min(len(text), max(map(len, self.opens)) - 1), 0, -1):
            if any(one.startswith(text[-size:]) for one in self.opens):
                text = text[:-size]
                break
        return len(text.rstrip())
