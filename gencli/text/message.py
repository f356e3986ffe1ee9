"""A message of a conversation, as chat templates and the server take it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from typing_extensions import NotRequired


class Message(TypedDict):
    """One message. role: system, user, assistant or tool. tool_calls: of an assistant, as templates take them. name,
    tool_call_id: of the call that a tool's message answers."""

    role: str
    content: str
    tool_calls: NotRequired[list[dict[str, object]]]
    name: NotRequired[str]
    tool_call_id: NotRequired[str]
