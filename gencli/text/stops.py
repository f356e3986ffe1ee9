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
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """More text → what may be shown now, and whether a stop string was found (then nothing more may come)."""
        text = self._held + piece
        found = [(start + len(stop), start) for stop in self.stops if (start := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        keep = self._may_become_a_stop(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        text, self._held = self._held, ""
        return text

    def _may_become_a_stop(self, text: str) -> int:
        """The length of the longest end of `text` that begins a stop string."""
        longest = min(len(text), max((len(stop) - 1 for stop in self.stops), default=0))
        for length in range(longest, 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self.stops):
                return length
        return 0
