"""A chat with a model: the prompt of each turn, truncated to the context, the answer, and the prompt cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING

from gencli.errors import ContextError, GencliError
from gencli.text.chat_template import Prompt, PromptFormat, prompt_format
from gencli.text.conversation import Conversation
from gencli.text.events import Event, GenerationStats, TextDelta, in_order
from gencli.text.generate import How, Job, generate, generate_all
from gencli.text.load import TextModel
from gencli.text.messages import Message, last_turn
from gencli.text.prompt_cache import PromptCache
from gencli.text.request import TextRequest

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ChatModel:
    """A model and its prompt format. Conversations share it; `close` ends the process of the template."""

    def __init__(self, model: TextModel, format: PromptFormat | None = None):
        self.format = format or prompt_format(model.tokenizer, model.name)
        named = model.tokenizer.backend.token_to_id(model.tokenizer.names.get("eos_token", ""))
        ends = (*model.tokenizer.eos_ids, *self.format.end_ids(), *(() if named is None else (named,)))
        tokenizer = dataclasses.replace(model.tokenizer, eos_ids=tuple(dict.fromkeys(ends)))
        self.model = dataclasses.replace(model, tokenizer=tokenizer)

    def close(self) -> None:
        self.format.close()


class ChatSession:
    """One conversation. request: the settings of every answer; its prompt is not used.

    how: arguments of `generate`. stats: of all answers so far. left_out: the number of messages that the last
    `prepare` left out.
    """

    def __init__(self, chat_model: ChatModel, request: TextRequest, conversation: Conversation):
        self.chat_model = chat_model
        self.conversation = conversation
        self.how: How = {"prompt_cache": PromptCache()}
        self.stats = GenerationStats()
        self.left_out = 0
        self.request = dataclasses.replace(request, stop=(*request.stop, *chat_model.format.stops), prompt="")

    def prepare(self, message: str | Sequence[Message]) -> Prompt:
        """Return the prompt for an answer to `message`, or to the messages of a turn. The oldest turns are left out for
        good until it fits.

        Raises GencliError, and changes nothing, if it does not fit even alone or the template refuses it.
        """
        model, conversation = self.chat_model.model, self.conversation
        before = conversation.left_out
        context = model.max_length
        max_tokens = self.request.resolve(model.generation_config).max_tokens
        assert max_tokens is not None
        room = context - max(1, min(max_tokens, context // 4))
        turn: Sequence[Message] = [{"role": "user", "content": message}] if isinstance(message, str) else message
        try:
            if any(model.tokenizer.is_longer(one["content"], context) for one in turn):
                raise self._too_long(f"more than {2 * context}")
            while True:
                prompt = self.chat_model.format.prompt([*conversation.messages(), *turn], self.request)
                if len(prompt.ids) <= room or not conversation.leave_out():
                    break
            if len(prompt.ids) >= context:
                raise self._too_long(str(len(prompt.ids)))
        except BaseException:
            conversation.left_out = before
            raise
        self.left_out = conversation.left_out - before
        return prompt

    def _too_long(self, tokens: str) -> GencliError:
        model, before = self.chat_model.model, self.conversation
        beside = " with the system prompt" if before.system else " with the examples" if before.examples else ""
        return ContextError(
            f"the message has {tokens} tokens{beside}, but the context of {model.name} is "
            f"{model.max_length} for everything",
            "shorten it",
        )

    def answer(self, message: str, prompt: Prompt, seed: int) -> Generator[Event, None, None]:
        """Answer. However it ends, message and answer then belong to the conversation, unless the answer is empty.

        Of several samples the first is that answer.
        """
        request = dataclasses.replace(self.request, seed=seed)
        answer: list[str] = []
        model = self.chat_model.model
        lost = model.tokenizer.lost(message)
        events = generate(model, request, self.stats, ids=prompt.ids, reasoning=prompt.reasoning, lost=lost, **self.how)
        try:
            for event in in_order(events):
                if isinstance(event, TextDelta) and event.index == 0:
                    answer.append(event.text)
                yield event
        finally:
            if text := "".join(answer):
                self.conversation.add("user", message)
                self.conversation.add("assistant", text)


def answer_all(
    model: TextModel,
    request: TextRequest,
    requests: Iterable[TextRequest | GencliError],
    before: Conversation | None,
    stats: GenerationStats,
    *,
    chat_model: ChatModel | None = None,
    **how: Unpack[How],
) -> Generator[Event, None, None]:
    """Continue the prompts of requests, or answer each as the first message of a conversation that begins like
    `before`. The events are those of `generate_all`, as is `how`.

    request: the settings of all. An error stands for a prompt that there is none of, and becomes `Failed`. chat_model:
    the model's, if there is one already.
    """
    if before is None:
        jobs = (Job(request, problem=one) if isinstance(one, GencliError) else Job(one) for one in requests)
        return generate_all(model, jobs, stats, **how)
    chats = chat_model or ChatModel(model)

    def job(one: TextRequest | GencliError) -> Job:
        try:
            if isinstance(one, GencliError):
                raise one
            head, turn = _parts(one, before)
            session = ChatSession(chats, one, head)
            prompt = session.prepare(turn)
        except GencliError as error:
            return Job(request, problem=error)
        lost = model.tokenizer.lost("".join(message["content"] for message in turn))
        return Job(session.request, prompt.ids, prompt.reasoning, lost, session.left_out)

    return generate_all(chats.model, map(job, requests), stats, **how)


def _parts(request: TextRequest, before: Conversation) -> tuple[Conversation, Sequence[Message]]:
    """Return the conversation before the turn that a request wants an answer to, and the messages of that turn. before:
    what every conversation begins with. Raise GencliError."""
    if not request.messages:
        return dataclasses.replace(before, turns=[]), [{"role": "user", "content": request.prompt}]
    messages, system = request.conversation, before.system
    if messages[0]["role"] == "system":
        if system is not None:
            raise GencliError("the conversation has a system prompt of its own", "leave out --system")
        system, messages = messages[0]["content"], messages[1:]
    begin = last_turn(messages)
    return dataclasses.replace(before, system=system, turns=messages[:begin]), messages[begin:]
