"""Stop strings in streamed text: found across the borders of pieces, never shown."""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Lets text through until the first stop string is complete in it.

    The result does not depend on how the text is cut into pieces: it ends where reading one character after another
    first completes a stop string (of two completed at once, the longer counts), and what could still become one waits.
    """

    def __init__(self, stops: Sequence[str]):
        self.stops = tuple(stops)
        self.found = ""  # the stop string that was
        self._held = ""
        self._hidden: list[bool] = []  # which characters of it are not shown

    def push(self, piece: str, *, hidden: bool = False) -> tuple[str, bool]:
        """Take more text. Return what may be shown now, and whether a stop was found: then nothing more may come.

        hidden: the piece counts for stop strings but is not shown, as the name of a special token.
        """
        text = self._held + piece
        self._hidden += [hidden] * len(piece)
        found = [(start + len(stop), start) for stop in self.stops if (start := text.find(stop)) >= 0]
        keep = 0 if found else self._may_become_a_stop(text)
        begin = min(found)[1] if found else len(text) - keep
        self.found = text[begin : min(found)[0]] if found else ""
        shown = self._visible(text, begin)
        self._held = text[len(text) - keep :]
        self._hidden = self._hidden[len(text) - keep :]
        return shown, bool(found)

    def finish(self) -> str:
        """Return what was held back, when no more text comes."""
        text = self._visible(self._held, len(self._held))
        self._held, self._hidden = "", []
        return text

    def _visible(self, text: str, end: int) -> str:
        """Return the characters before `end` that are shown."""
        if True not in self._hidden:
            return text[:end]
        return "".join(char for char, hidden in zip(text[:end], self._hidden, strict=False) if not hidden)

    def _may_become_a_stop(self, text: str) -> int:
        """Return the length of the longest end of `text` that begins a stop string."""
        longest = min(len(text), max((len(stop) - 1 for stop in self.stops), default=0))
        for length in range(longest, 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self.stops):
                return length
        return 0
