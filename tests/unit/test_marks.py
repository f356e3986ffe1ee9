"""Special tokens, reasoning and stop texts: what is looked for in tokens, and in which part of an answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from gencli.checkpoints.find import Source
from gencli.text.chat import ChatModel, ChatSession
from gencli.text.conversation import Conversation
from gencli.text.events import Completion, ReasoningDelta
from gencli.text.generate import generate
from gencli.text.load import open_model
from gencli.text.reasoning import PAIRS
from gencli.text.request import TextRequest
from tests.tiny.scripted import CHATML, END, TURN, TURN_END, bytes_tokenizer, make_scripted, make_scripted_chat, plain


def answer(folder: Path, system: str | None = None, **settings) -> tuple[str, Completion]:
    """The reasoning and the answer to "Hi"."""
    model = ChatModel(open_model(Source(folder.name, folder, "folder")))
    settings = {"temperature": 0.0, "max_tokens": 100} | settings
    session = ChatSession(model, TextRequest.of(**settings), Conversation(system))
    events = list(session.answer("Hi", session.prepare("Hi"), 0))
    model.close()
    assert isinstance(events[-1], Completion)
    return "".join(event.text for event in events if isinstance(event, ReasoningDelta)), events[-1]


def special_or_not(special: bool, *texts: str):
    return texts if special else plain(*texts)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0])
def test_marks_that_are_tokens(tmp_path: Path, pair: tuple[str, str], special: bool):
    said = f"{pair[0]}\nfirst. é{pair[1]}\n\nThe answer{TURN_END}"
    folder = make_scripted_chat(tmp_path, said, *special_or_not(special, *pair))
    thought, sample = answer(folder, logprobs=0)
    assert (thought, sample.text, sample.finish_reason) == ("\nfirst. é", "The answer", "stop")
    assert sample.logprobs is not None and "".join(sample.logprobs.tokens) == "The answer"
    assert not sample.unanswered


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("pair", PAIRS[:2], ids=lambda pair: pair[0])
def test_a_template_that_opens_the_thought(tmp_path: Path, pair: tuple[str, str], special: bool):
    template = CHATML.replace("assistant\n'", f"assistant\n{pair[0]}\n'")
    said = f"first\n{pair[1]}\n\nThe answer{TURN_END}"
    thought, sample = answer(make_scripted_chat(tmp_path, said, *special_or_not(special, *pair), template=template))
    assert (thought, sample.text) == ("first\n", "The answer")


def test_marks_that_are_words_of_the_template(tmp_path: Path):
    template = CHATML.replace("assistant\n'", "assistant\n[THINK]'")
    thought, sample = answer(make_scripted_chat(tmp_path, f"hm[/THINK]Done{TURN_END}", template=template))
    assert (thought, sample.text) == ("hm", "Done")


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("begun", "said", "thought"),
    [
        ("", "<|channel>thought\nfirst<channel|>", "first"),
        ("", "<|channel>thought\n<channel|>", ""),
        ("", "<|channel>thought<channel|>", ""),
        ("", "<|channel>those<channel|>", "those"),
        ("<|channel>", "thought\nfirst<channel|>", "first"),
        ("<|channel>thought\n", "first<channel|>", "first"),
        ("<|channel>thought\n<channel|>", "", ""),
    ],
)
def test_a_thought_with_a_title(tmp_path: Path, special: bool, begun: str, said: str, thought: str):
    """As Gemma 4 writes it: the title is no part of the thought."""
    template = CHATML.replace("assistant\n'", f"assistant\n{begun}'")
    marks = special_or_not(special, "<|channel>", "<channel|>")
    found, sample = answer(make_scripted_chat(tmp_path, f"{said}The answer{TURN_END}", *marks, template=template))
    assert (found, sample.text, sample.finish_reason) == (thought, "The answer", "stop")


HARMONY = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + ('<|channel|>final' if m['role'] == 'assistant' else '') }}"
    "{{ '<|message|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
MESSAGES = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")
ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>"


def harmony(folder: Path, said: str) -> Path:
    generation = {"eos_token_id": [259 + MESSAGES.index("<|return|>")]}
    return make_scripted_chat(folder, said, *MESSAGES, template=HARMONY, generation=generation)


@pytest.mark.parametrize("end", ["<|return|>", "<|end|>"])
@pytest.mark.parametrize(
    ("said", "thought"),
    [
        (f"{ANALYSIS}first. é<|end|>{FINAL}", "first. é"),
        (
            f"{ANALYSIS}first<|end|><|start|>assistant<|channel|>commentary<|message|>, then<|end|>{FINAL}",
            "first, then",
        ),
        (f"{ANALYSIS}<|end|>{FINAL}", ""),
        ("<|channel|>final<|message|>", ""),
        ("<|message|>", ""),
    ],
)
def test_an_answer_in_channels(tmp_path: Path, said: str, thought: str, end: str):
    """As gpt-oss writes it: the token that ends a message ends the answer, and no message before it."""
    found, sample = answer(harmony(tmp_path, f"{said}The answer{end}"), logprobs=0)
    assert (found, sample.text, sample.finish_reason) == (thought, "The answer", "stop")
    assert sample.logprobs is not None and "".join(sample.logprobs.tokens) == "The answer"
    assert not sample.unanswered


def test_channels_without_an_answer(tmp_path: Path):
    found, sample = answer(harmony(tmp_path / "a", f"{ANALYSIS}so<|return|>"))
    assert (found, sample.text, sample.unanswered) == ("so", "", True)
    found, sample = answer(harmony(tmp_path / "b", "no mark at all<|return|>"))
    assert (found, sample.text, sample.unanswered) == ("", "no mark at all", False)


def test_a_schema_holds_for_the_answer_among_channels(tmp_path: Path):
    said = f'{ANALYSIS}Is it 7?<|end|>{FINAL}{{"age": 7}}<|return|>'
    schema = '{"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}'
    found, sample = answer(harmony(tmp_path, said), schema=schema)
    assert (found, sample.text, sample.finish_reason) == ("Is it 7?", '{"age": 7}', "stop")


def test_a_schema_holds_where_a_model_would_leave_out_the_marks(tmp_path: Path):
    """Without them all that it says would be answer: its first token is one of them, and so is that after a message."""
    for said in ("no mark at all<|return|>", f"{ANALYSIS}so<|end|>no mark<|return|>"):
        folder = harmony(tmp_path / f"{len(said)}", said)
        found, sample = answer(folder, grammar="/[a-z ]*!/", max_tokens=60)
        assert set(sample.text) <= {*"abcdefghijklmnopqrstuvwxyz !"}, (found, sample.text)
        assert "no mark" not in sample.text and sample.text.count("!") <= 1


@pytest.mark.parametrize("special", [True, False])
def test_a_thought_may_quote_the_mark(tmp_path: Path, special: bool):
    made = bytes_tokenizer(END, TURN, TURN_END, *special_or_not(special, "<think>", "</think>"))
    words = bytes_tokenizer().encode
    quoted = [*words("</think>, ").ids, made.token_to_id("</think>")]
    ids = [made.token_to_id("<think>"), *quoted, *words("Done").ids, made.token_to_id(TURN_END)]
    folder = make_scripted_chat(tmp_path, ids, *special_or_not(special, "<think>", "</think>"))
    thought, sample = answer(folder)
    assert (thought, sample.text) == ("</think>, ", "Done")


def test_stop_texts_count_in_the_answer_alone(tmp_path: Path):
    folder = make_scripted_chat(tmp_path, f"<think>\nso. A\n</think>\n\nYes. No.{TURN_END}")
    thought, sample = answer(folder, stop=(".",))
    assert (thought, sample.text, sample.finish_reason) == ("\nso. A\n", "Yes", "stop")


@pytest.mark.parametrize(
    "stop, wanted",
    [(TURN_END, "Yes"), (f"{TURN_END}\nN", "Yes"), (f"s{TURN_END}", "Ye"), (f"{TURN_END}x", "Yes\nNo"), ("\n", "Yes")],
)
def test_a_stop_text_with_a_special_token(tmp_path: Path, stop: str, wanted: str):
    made = bytes_tokenizer(END, TURN_END)
    ids = [*made.encode(f"Yes{TURN_END}\nNo").ids, 256]
    model = open_model(
        Source("tiny", make_scripted(tmp_path, made, ids, 2, generation={"eos_token_id": 256}), "folder")
    )
    *_, sample = generate(model, TextRequest.of("Hi", temperature=0.0, max_tokens=20, stop=(stop,)))
    assert isinstance(sample, Completion) and (sample.text, sample.finish_reason) == (wanted, "stop")


def test_a_special_token_that_stops_does_so_in_a_thought(tmp_path: Path):
    folder = make_scripted_chat(tmp_path, f"<think>so{END}more</think>", generation={})
    thought, sample = answer(folder, stop=(END,))
    assert (thought, sample.text, sample.unanswered) == ("so", "", True)


@pytest.mark.parametrize("tokens, thought", [(12, "\nso"), (100, "\nso. A\n")])
def test_an_answer_that_thoughts_used_up(tmp_path: Path, tokens: int, thought: str):
    folder = make_scripted_chat(tmp_path, f"<think>\nso. A\n</think>{TURN_END}")
    got, sample = answer(folder, max_tokens=tokens)
    reason = "length" if tokens == 12 else "stop"
    assert got.startswith(thought) and (sample.text, sample.unanswered, sample.finish_reason) == ("", True, reason)


SAID = f"Hello{TURN_END}\n{TURN}user\nmore"
WANTS_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system prompt') }}{% endif %}" + CHATML
NOT_LAST = CHATML.replace(
    "m['content'] + '<|im_end|>\n' }}",
    "m['content'] }}{% if not loop.last or m['role'] == 'user' %}{{ '<|im_end|>\n' }}{% endif %}",
)
REFUSES = "{% if messages|length > 1 %}{{ raise_exception('one message only') }}{% endif %}" + CHATML


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    "template", [CHATML, WANTS_SYSTEM, NOT_LAST, REFUSES], ids=["plain", "system", "last", "refuses"]
)
def test_a_turn_ends(tmp_path: Path, template: str, special: bool):
    system = "S" if template == WANTS_SYSTEM else None
    messages = [{"role": "system", "content": "S"}] if system else []
    messages = [*messages, {"role": "user", "content": "Hi"}]
    folder = make_scripted_chat(tmp_path, SAID, template=template, special=special, messages=messages)
    assert answer(folder, system)[1].text == "Hello"


def test_the_end_that_the_tokenizer_names(tmp_path: Path):
    """The template says nothing of it, and generation_config.json names another one."""
    template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    named = {"eos_token": TURN_END}
    folder = make_scripted_chat(tmp_path, SAID, template=template, special=False, tokenizer_config=named)
    assert answer(folder)[1].text == "Hello"


def test_a_turn_that_ends_in_words(tmp_path: Path):
    template = (
        "{% for m in messages %}{{ '### ' + m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}### assistant:{% endif %}"
    )
    folder = make_scripted_chat(tmp_path, " Hello\n### user: more", template=template)
    assert answer(folder)[1].text == "Hello"
