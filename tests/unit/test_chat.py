"""Conversations with tiny models: what is read again and what is not, what is left out, what is shown."""

from __future__ import annotations

import dataclasses
import io
import json
import resource
from pathlib import Path

import pytest
import torch
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from gencli.checkpoints.build import load
from gencli.checkpoints.find import Source
from gencli.cli.chat_commands import Repl
from gencli.cli.chat_history import Kept, find_kept, listed
from gencli.cli.chat_terminal import WrappedSink, _completer
from gencli.cli.console import Console
from gencli.errors import GencliError
from gencli.text import template_process
from gencli.text.chat import ChatModel, ChatSession
from gencli.text.chat_template import Templated, Transcript
from gencli.text.chat_template_worker import environment
from gencli.text.conversation import Conversation, read_examples
from gencli.text.events import Completion, Logprobs, TextDelta
from gencli.text.generate import generate
from gencli.text.load import open_model
from gencli.text.prompt_cache import PromptCache
from gencli.text.reasoning import Marks, Reasoning, Splitter, logprobs_after
from gencli.text.request import TextRequest
from gencli.text.template_process import ChatTemplate
from gencli.tokens import load_tokenizer
from tests.tiny.chat_templates import BIAS, FAMILIES, PLAIN_CHATML, make_chat_tokenizer
from tests.tiny.decoder_cases import CASES
from tests.tiny.decoders import make_decoder
from tests.tiny.text import END, byte_bpe, make_gpt2, write_json

GREEDY = TextRequest.of(temperature=0.0, max_tokens=12, logit_bias=BIAS)


def opened(folder: Path):
    return open_model(Source(folder.name, folder, "folder"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model without a template."""
    torch.set_num_threads(1)
    return opened(make_gpt2(tmp_path_factory.mktemp("chat") / "base", n_positions=256))


@pytest.fixture(scope="module")
def tuned(base):
    """The same model with a template."""
    return dataclasses.replace(base, tokenizer=dataclasses.replace(base.tokenizer, chat_template=PLAIN_CHATML))


@pytest.fixture(scope="module")
def chat_model(tuned):
    made = ChatModel(tuned)
    yield made
    made.close()


def say(session: ChatSession, message: str, seed: int = 0) -> tuple[list[int], Completion]:
    """One turn: the ids of its prompt, and the answer."""
    prompt = session.prepare(message)
    events = list(session.answer(message, prompt, seed))
    assert isinstance(events[-1], Completion)
    return prompt.ids, events[-1]


def test_no_turn_is_read_twice(chat_model):
    """Each answer is that of a fresh prompt, and of the prompt only what is new has been read."""
    session = ChatSession(chat_model, GREEDY, Conversation(system="Be kind."))
    known: list[int] = []
    asked = 0
    for message in ("Once upon a time", "and then?", "你好", "Tell more."):
        before = session.stats.prompt_tokens
        ids, answer = say(session, message)
        fresh = list(generate(chat_model.model, GREEDY, ids=ids))[-1]
        assert isinstance(fresh, Completion) and answer.text == fresh.text.lstrip()
        shared = next(
            (i for i, (a, b) in enumerate(zip(known, ids, strict=False)) if a != b), min(len(known), len(ids))
        )
        assert session.stats.prompt_tokens - before == len(ids) - shared
        assert shared >= asked, "nothing of the prompt before is read again"
        known, asked = session.how["prompt_cache"].ids[0][: session.how["prompt_cache"].cache.length], len(ids)


def test_an_answer_is_not_read_again(chat_model):
    """It ends as the tokenizer would write it: only its last token, which no one has read, and what follows."""
    always = TextRequest.of(temperature=0.0, max_tokens=12, logit_bias=((byte_bpe().token_to_id("Q"), 1e4),))
    session = ChatSession(chat_model, always, Conversation())
    ids, answer = say(session, "first")
    assert (answer.text, session.stats.prompt_tokens) == ("Q" * 12, len(ids))
    more, _ = say(session, "second")
    assert session.stats.prompt_tokens == len(more) - 11


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_cache_that_is_taken_up_again_gives_a_fresh_prefill(tmp_path: Path, case):
    """Texts that share a beginning, cut back and grown, past sliding windows and stretched ranges."""
    folder = make_decoder(tmp_path, case)
    module = load(folder, device=torch.device("cpu"), dtype=torch.float32).eval()
    prompt_cache = PromptCache()
    ids = torch.randint(3, 96, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    texts = [ids[:20], ids[:40], [*ids[:33], *ids[:10]], ids[:4], ids]
    with torch.inference_mode():
        for text in texts:
            known = prompt_cache.take(module, 0, text, len(text) + 1)
            got = module(torch.tensor([text[known:]]), prompt_cache.cache, last_only=True)
            prompt_cache.ids[0] = text
            assert known < len(text)
            torch.testing.assert_close(got, module(torch.tensor([text]), last_only=True), atol=2e-5, rtol=0)


def test_what_a_cache_can_be_cut_and_grown_to(base):
    module = base.module
    cache = module.new_cache(1, 8)
    with torch.inference_mode():
        module(torch.arange(8)[None], cache)
        keys = cache.keys[1].clone()
        cache.truncate(5)
        cache.grow(20)
    assert (cache.length, cache.positions) == (5, 20)
    torch.testing.assert_close(cache.keys[1][:, :, :5], keys[:, :, :5], atol=0, rtol=0)
    with pytest.raises(ValueError):
        cache.truncate(6)


def test_an_interrupted_answer_is_kept_and_the_cache_with_it(chat_model):
    session = ChatSession(chat_model, GREEDY, Conversation())
    prompt = session.prepare("Once")
    events = session.answer("Once", prompt, 0)
    first = next(event for event in events if isinstance(event, TextDelta))
    events.close()
    assert [m["role"] for m in session.conversation.turns] == ["user", "assistant"]
    assert session.conversation.turns[1]["content"] == first.text
    ids, answer = say(session, "go on")
    fresh = list(generate(chat_model.model, GREEDY, ids=ids))[-1]
    assert isinstance(fresh, Completion) and answer.text == fresh.text.lstrip()


def test_a_conversation_that_outgrows_the_context(chat_model):
    """The oldest turns go, whole and for good; the system prompt and the examples stay."""
    examples = [{"role": "user", "content": "example"}, {"role": "assistant", "content": "answer"}]
    session = ChatSession(chat_model, GREEDY, Conversation(system="Be kind.", examples=examples))
    dropped = []
    for number in range(12):
        message = f"message {number}"
        prompt = session.prepare(message)
        list(session.answer(message, prompt, 0))
        dropped.append(session.left_out)
        assert len(prompt.ids) <= chat_model.model.max_length - GREEDY.max_tokens
        assert prompt.text.startswith(f"<system\nBe kind.{END}\n<user\nexample{END}\n<assistant\nanswer{END}\n<user\n")
        assert prompt.text.endswith(f"<user\n{message}{END}\n<assistant\n")
    assert not dropped[0] and any(dropped) and set(dropped) <= {0, 2, 4}
    assert sum(dropped) == session.conversation.left_out
    assert len(session.conversation.turns) == 24, "what is left out is still saved"
    before = session.conversation.left_out
    with pytest.raises(GencliError, match="the context of base is 256"):
        session.prepare("far too long " * 200)
    assert (session.conversation.left_out, len(session.conversation.turns)) == (before, 24)


def test_what_is_left_out_is_said(chat_model, capsysbinary):
    stream = io.StringIO()
    repl = Repl(
        Console(stream), ChatSession(chat_model, GREEDY, Conversation()), 3, None, lambda name: chat_model.model
    )
    for _ in range(9):
        repl.answer("a message")
    assert "fits the context of 256 tokens: the oldest 2 messages will be left out\n" in stream.getvalue()
    assert repl.seed == 12
    answers = [m["content"] for m in repl.session.conversation.turns[1::2]]
    assert capsysbinary.readouterr().out.decode() == "".join(f"{answer}\n" for answer in answers)


def test_commands_of_a_conversation(chat_model, tmp_path, monkeypatch):
    """/set, /again, /file, /edit, /model: what they change, and that nothing is lost where one fails."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    said, opened = io.StringIO(), []

    def open_other(name: str):
        opened.append(name)
        return dataclasses.replace(chat_model.model, name=name)

    kept = Kept.new("first")
    repl = Repl(Console(said), ChatSession(chat_model, GREEDY, Conversation()), 3, kept, open_other)
    with pytest.raises(GencliError, match="there is no message yet"):
        repl.take("/again")
    repl.take("/set temperature 0.25")
    repl.take("/set max-tokens 3")
    request = repl.session.request
    assert (request.sampling.temperature, request.max_tokens) == (0.25, 3)
    for wrong in ("/set temperature x", "/set temprature 1", "/set temperature -1"):
        with pytest.raises(GencliError):
            repl.take(wrong)
    assert repl.session.request == request
    (tmp_path / "my notes.txt").write_text("one\ntwo\n")
    repl.take(f"/file '{tmp_path / 'my notes.txt'}'")
    repl.take("what is this?")
    assert repl.conversation.turns[0]["content"] == "my notes.txt:\n```\none\ntwo\n```\n\nwhat is this?"
    repl.take("and more")
    repl.take("/again")
    assert [turn["role"] for turn in repl.conversation.turns] == ["user", "assistant"] * 2
    assert repl.conversation.turns[2]["content"] == "and more" and not repl.attached
    before = list(repl.conversation.turns)
    monkeypatch.setenv("EDITOR", "sed -i s/more/less/")
    monkeypatch.delenv("VISUAL", raising=False)
    repl.take("/edit")
    assert repl.conversation.turns[2]["content"] == "and less"
    monkeypatch.setenv("EDITOR", f"sed -i 's/.*/{'far too long ' * 200}/'")
    turns = list(repl.conversation.turns)
    with pytest.raises(GencliError, match="the context of"):
        repl.take("/edit")
    assert repl.conversation.turns == turns != before
    repl.take("/model other")
    assert opened == ["other"] and repl.session.chat_model.model.name == "other" and repl.conversation.turns == turns
    repl.take("once more")
    assert find_kept(None).model == "other" and find_kept(kept.id).path == kept.path
    _, line = listed()
    assert line.split()[:3] == [kept.id, "other", "6"]
    again = Conversation()
    again.load(find_kept(None).path)
    assert again.turns == repl.conversation.turns
    assert kept.path.stat().st_mode & 0o077 == 0


@pytest.fixture
def repl(chat_model, tmp_path, monkeypatch):
    """A conversation in an empty folder, which says what it says into `repl.console.stream`."""
    monkeypatch.chdir(tmp_path)
    session = ChatSession(chat_model, GREEDY, Conversation())
    return Repl(Console(io.StringIO()), session, 3, None, lambda name: chat_model.model)


def said(repl: Repl) -> str:
    """What it has said since the last time."""
    text = repl.console.stream.getvalue()
    repl.console.stream = io.StringIO()
    return text


@pytest.mark.parametrize("line", ["/exit", "/exit now", "/EXIT", "/Quit", "/quit now", " /bye ", "/bye\tall"])
def test_what_quits(repl, line: str):
    with pytest.raises(EOFError):
        repl.take(line)


@pytest.mark.parametrize(
    "line, answer",
    [
        ("/SEED 7", "seed 7\n"),
        ("  /seed", "seed 3\n"),
        ("/system\tBe kind.", "Be kind.\n"),
        ("/system\nBe kind.", "Be kind.\n"),
        ("/clear", "conversation cleared\n"),
        ("/set temperature=0.5", "temperature 0.5\n"),
        ("/set --temperature = 0.5", "temperature 0.5\n"),
        ("/set temperature", "temperature 0.0\n"),
        ("/set Max_Tokens 7", "max-tokens 7\n"),
        ("/set n 7", "max-tokens 7\n"),
        ("/set top-k -1", "top-k 0\n"),
        ("/set temperature default", "temperature 0.8\n"),
        ("/set think false", "think off\n"),
        ("/set think", "think auto\n"),
        ("/set think default", "think auto\n"),
        ("/help seed", "/seed [N]         show or set the seed of the next reply; later replies use N+1, N+2, …\n"),
        ("/help /Quit", "/exit             quit (also Ctrl-D).\n"),
    ],
)
def test_commands_as_people_type_them(repl, line: str, answer: str):
    repl.take(line)
    assert said(repl) == answer


@pytest.mark.parametrize(
    "line, message, hint",
    [
        ("/exi", "no such command: /exi", "did you mean /exit?"),
        ("/quitt", "no such command: /quitt", "did you mean /quit?"),
        ("/again now", "/again takes nothing, but there is 'now'", "/again alone does it"),
        ("/reset all", "/reset takes nothing, but there is 'all'", "/reset alone does it"),
        ("/set temperature 1 2", "/set temperature: '1 2' is not a number", "as in /set temperature 0.8"),
        ("/set max-tokens 1e9", "/set max-tokens: '1e9' is not an integer", "as in /set max-tokens 256"),
        ("/set temperature -1", "/set temperature -1: must be at least 0", None),
        ("/set top-p 2", "/set top-p 2: must be at least 0 and at most 1", None),
        ("/set think maybe", "/set think 'maybe': expected one of on, off, low, medium, high", None),
        ("/set nothink", "no setting 'nothink'", "did you mean think?"),
        ("/set tmperature 1", "no setting 'tmperature'", "did you mean temperature?"),
        ("/set seed 3", "no setting 'seed'", "that is a command: /seed"),
        ("/file", "/file: expected a file name", "as in /file notes.txt"),
        ("/file none", "none: there is no such file", None),
        ("/file .", ". is a folder", "name a file in it"),
        ("/load .", ". is a folder", "name a file in it"),
        ("/file /dev/null", "/dev/null is a device or a pipe, not a file", None),
        ("/file ~nobody-here/x", "~nobody-here/x: there is no such file", None),
        ("/load ~nobody-here/x", "~nobody-here/x: there is no such file", None),
        ("/load " + "a" * 300, f"cannot read {'a' * 300}: File name too long", None),
        ("/file " + "a" * 300, f"cannot read {'a' * 300}: File name too long", None),
        ("/save none/x", "no such folder: 'none'", "make it first: mkdir -p none"),
        ("/save .", "cannot write .: it is a folder", None),
    ],
)
def test_what_cannot_be_done_is_told(repl, line: str, message: str, hint: str | None):
    before = repl.session.request
    with pytest.raises(GencliError) as caught:
        repl.take(line)
    assert (caught.value.message, caught.value.hint) == (message, hint)
    assert repl.session.request == before


@pytest.mark.parametrize("held", ["# Notes\n", '{"name": "demo"}\n', '{"messages": []}\n{"messages": []}\n', "[1]"])
def test_a_file_that_is_no_conversation_is_not_written_over(repl, tmp_path: Path, held: str):
    notes = tmp_path / "notes.md"
    notes.write_text(held)
    with pytest.raises(GencliError, match="is not a conversation, and is not written over"):
        repl.take("/save notes.md")
    assert notes.read_text() == held
    notes.write_text("")
    for _ in range(2):
        repl.take("/save notes.md")
    again = Conversation()
    again.load(notes)
    notes.chmod(0o444)
    with pytest.raises(GencliError, match="it is read-only"):
        repl.take("/save notes.md")


def test_a_conversation_that_is_loaded_is_kept_beside_the_one_before(repl, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    repl.kept = first = Kept.new("m")
    repl.take("the first")
    repl.take("/save talk.json")
    before = first.path.read_bytes()
    repl.take("/load talk.json")
    repl.take("the second")
    assert first.path.read_bytes() == before and repl.kept.path != first.path
    assert len(listed()) == 3


def test_conversations_of_one_second_are_kept_in_files_of_their_own(chat_model, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    both = [Kept.new("m"), Kept.new("m")]
    both[1].path = both[0].path
    for number, kept in enumerate(both):
        for _ in range(2):
            kept.save(Conversation(turns=[{"role": "user", "content": f"talk {number}"}]))
    assert [line.split()[-1] for line in listed()[1:]] == ["0", "1"]
    assert all(kept.path.stat().st_mode & 0o077 == 0 for kept in both)


def test_files_go_with_one_message(repl, tmp_path: Path):
    """Also with one that begins with a slash; they are not sent again after an error, and /reset forgets them."""
    (tmp_path / "a.md").write_text("```\ncode\n```\n")
    repl.take("/file a.md")
    repl.take("//what?")
    assert repl.conversation.turns[0]["content"] == "a.md:\n````\n```\ncode\n```\n````\n\n/what?"
    (tmp_path / "long.txt").write_text("far too long " * 200)
    repl.take("/file long.txt")
    with pytest.raises(GencliError, match=r"the message has \d+ tokens, but the context of"):
        repl.take("what?")
    assert "note: no longer attached: long.txt\n" in said(repl)
    repl.take("what?")
    assert repl.conversation.turns[-2]["content"] == "what?"
    (tmp_path / "b.md").write_text("b")
    repl.take("/file b.md")
    repl.take("/file long.txt")
    repl.take("/system Be kind.")
    with pytest.raises(GencliError, match="tokens with the system prompt, but"):
        repl.take("what?")
    assert "note: no longer attached: long.txt, the largest\n" in said(repl)
    repl.take("what?")
    assert repl.conversation.turns[-2]["content"] == "b.md:\n```\nb\n```\n\nwhat?"
    repl.take("/file a.md")
    repl.take("/reset")
    repl.take("what?")
    assert [turn["content"] for turn in repl.conversation.turns][:1] == ["what?"]


def test_files_stay_if_there_is_no_reply(repl, tmp_path: Path):
    """The same message can be sent again."""
    (tmp_path / "a.txt").write_text("a")
    usual = repl.session.request
    repl.session.request = TextRequest.of(temperature=0.0, logit_bias=((byte_bpe().token_to_id(END), 1e4),))
    repl.take("/file a.txt")
    repl.take("what?")
    assert not repl.conversation.turns
    repl.session.request = usual
    repl.take("what?")
    assert repl.conversation.turns[0]["content"] == "a.txt:\n```\na\n```\n\nwhat?"


def test_tab_completes_models_and_settings():
    completer = _completer(["/model", "/set"], ["temperature"])
    for typed, found in (("/model sto", "stories"), ("/set te", "temperature"), ("/mo", "/model")):
        completions = completer.get_completions(Document(typed), CompleteEvent())
        assert [one.text for one in completions] == [found]


def test_an_edit_that_is_given_up_sends_nothing(repl, monkeypatch, capfd):
    """And what the editor shows is not in stdout, if that is no terminal."""
    repl.take("one")
    turns = list(repl.conversation.turns)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "echo shown")
    said(repl)
    capfd.readouterr()
    repl.take("/edit")
    shown = capfd.readouterr()
    assert shown.out == "" and shown.err.startswith("shown ")
    assert said(repl) == "note: the message is as it was: nothing was sent; /again asks for another reply\n"
    for editor, problem in (
        ("false", "false ended with exit code 1: the message stays as it was"),
        ("rm", "rm left no message: No such file or directory"),
        ('vi "', 'cannot start vi ": No closing quotation'),
        ("no-such-editor", "cannot start no-such-editor: No such file or directory"),
    ):
        monkeypatch.setenv("EDITOR", editor)
        with pytest.raises(GencliError) as caught:
            repl.take("/edit")
        assert caught.value.message == problem
    assert repl.conversation.turns == turns


def test_the_seed_after_the_last(repl):
    repl.take(f"/seed {2**63 - 1}")
    repl.take("one")
    repl.take("two")
    assert len(repl.conversation.turns) == 4 and repl.seed == 1


def test_lines_of_a_reply_break_between_words(capsysbinary):
    sink = WrappedSink(lambda: 10)
    for piece in ("a c", "at we", "re talk", "ing\n\n  indented ", "abcdefghijklmnop", " 日本語日本語日"):
        sink.write(piece)
    sink.end()
    assert capsysbinary.readouterr().out.decode() == (
        "a cat were\ntalking\n\n  indented\nabcdefghij\nklmnop 日\n本語日本語\n日\n"
    )


def test_control_characters_are_as_wide_as_they_are_shown(capsysbinary):
    sink = WrappedSink(lambda: 10)
    for piece in ("one two \x1b", "\x07 three"):
        sink.write(piece)
    sink.end()
    assert capsysbinary.readouterr().out.decode() == "one two\n\\x1b\\x07\nthree\n"


def test_a_base_model_gets_a_transcript(base):
    chat_model = ChatModel(base)
    assert isinstance(chat_model.format, Transcript)
    talk = Conversation("A talk.", [], [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "ho\n"}])
    session = ChatSession(chat_model, dataclasses.replace(GREEDY, stop=("stop",)), talk)
    assert session.request.stop == ("stop", "\nUser:", "\nAssistant:")
    prompt = session.prepare(f"and {END}?")
    assert prompt.text == f"A talk.\n\nUser: hi\nAssistant: ho\nUser: and {END}?\nAssistant:"
    assert base.tokenizer.decode(prompt.ids, skip_special=False) == prompt.text
    assert not set(prompt.ids) & base.tokenizer.special_ids


def test_turns_end_where_the_template_says(tuned, base):
    """A config that names only another token: the one that the template writes ends an answer too."""
    plain = dataclasses.replace(tuned, tokenizer=dataclasses.replace(tuned.tokenizer, eos_ids=(5,)))
    chat_model = ChatModel(plain)
    assert chat_model.model.tokenizer.eos_ids == (5, byte_bpe().token_to_id(END))
    chat_model.close()
    assert ChatModel(base).model.tokenizer.eos_ids == base.tokenizer.eos_ids


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    "text, inside, thought, answer",
    [
        ("hello", False, "", "hello"),
        (" \n hello ", False, "", "hello "),
        ("<think>\nhm </think>\n\nhello", False, "\nhm ", "hello"),
        ("\n<think></think>hello <think>no</think>", False, "", "hello <think>no</think>"),
        ("hm</think>\n hello</think>", True, "hm", "hello</think>"),
        ("<think>never ends </thi", False, "never ends </thi", ""),
        ("<thin", False, "", "<thin"),
        ("<thinking", False, "", "<thinking"),
        ("a <think>b</think>", False, "", "a <think>b</think>"),
        ("", False, "", ""),
        ("hm </think>", True, "hm ", ""),
    ],
)
def test_reasoning_is_told_from_the_answer(size: int, text: str, inside: bool, thought: str, answer: str):
    splitter = Splitter(Reasoning(inside=Marks() if inside else None))
    got = [splitter.push(text[i : i + size]) for i in range(0, len(text), size)] + [splitter.finish()]
    assert tuple("".join(parts) for parts in zip(*got, strict=True)) == (thought, answer)
    assert answer == "" or text[splitter.skipped :] == answer


def test_log_probabilities_are_of_the_answer_alone():
    names = ["<think>", "hm", "</think>", "\n", "so", " it", " is"]
    offsets = [sum(map(len, names[:i])) for i in range(len(names))]
    report = Logprobs(names, [-1.0] * 7, [{}] * 7, offsets)
    splitter = Splitter(Reasoning())
    assert splitter.push("".join(names)) == ("hm", "so it is")
    last = logprobs_after(report, splitter.skipped)
    assert (last.tokens, last.text_offset) == (["so", " it", " is"], [0, 2, 5])
    assert (len(last.token_logprobs), len(last.top_logprobs)) == (3, 3)


def test_a_template_that_opens_the_reasoning_itself(base):
    source = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<think>\n{% endif %}"
    made = Templated(dataclasses.replace(base.tokenizer, chat_template=source), "r1")
    assert made.prompt([{"role": "user", "content": "why?"}]).reasoning.inside
    made.close()


def test_conversations_are_saved_and_loaded(tmp_path: Path):
    file = tmp_path / "talk.json"
    talk = Conversation("Be naïve.", [{"role": "user", "content": "x"}])
    talk.add("user", "a\nb")
    talk.add("assistant", "é 🙂")
    file.write_bytes(talk.dump())
    other = Conversation("Something else.")
    other.add("user", "forgotten")
    other.load(file)
    assert (other.system, other.turns, other.left_out) == ("Be naïve.", talk.turns, 0)
    assert read_examples_without_system(tmp_path, other) == talk.turns
    write_json(file, talk.turns)
    other.load(file)
    assert (other.system, other.turns) == ("Be naïve.", talk.turns)


def read_examples_without_system(folder: Path, talk: Conversation) -> list[dict[str, str]]:
    file = folder / "examples.jsonl"
    file.write_bytes(Conversation(turns=talk.turns).dump())
    return read_examples(file)


def test_examples(tmp_path: Path, chat_model):
    file = tmp_path / "examples.jsonl"
    turns = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "B"}]
    rows = [json.dumps({"user": "a", "assistant": "A"}), "", json.dumps({"messages": turns})]
    file.write_text("\n".join(rows), encoding="utf-8")
    examples = read_examples(file)
    assert [message["content"] for message in examples] == ["a", "A", "b", "B"]
    text = ChatSession(chat_model, GREEDY, Conversation("S", examples)).prepare("c").text
    said = [("system", "S"), ("user", "a"), ("assistant", "A"), ("user", "b"), ("assistant", "B"), ("user", "c")]
    assert text == "".join(f"<{role}\n{content}{END}\n" for role, content in said) + "<assistant\n"


def test_examples_and_saved_conversations_have_calls_of_tools(tmp_path: Path):
    call = {"id": "c1", "type": "function", "function": {"name": "hour", "arguments": '{"place": "Rome"}'}}
    turns = [
        {"role": "user", "content": "what time is it in Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "nine"},
        {"role": "assistant", "content": "It is nine."},
    ]
    file = tmp_path / "talk.json"
    file.write_text(json.dumps({"messages": turns}), encoding="utf-8")
    conversation = Conversation()
    conversation.load(file)
    for read in (read_examples(file), conversation.turns):
        assert [message["role"] for message in read] == ["user", "assistant", "tool", "assistant"]
        assert read[1]["tool_calls"][0]["function"] == {"name": "hour", "arguments": {"place": "Rome"}}
        assert read[2]["name"] == "hour"  # whose call it answers
    conversation.save(file)
    again = Conversation()
    again.load(file)
    assert again == conversation
    conversation.leave_out()  # the turn as a whole
    assert conversation.messages() == []


@pytest.mark.parametrize(
    "line, problem",
    [
        ("{", "line 2 is not valid JSON"),
        ("[]", "line 2: expected an object with `user` and `assistant`"),
        ('{"user": "a"}', "line 2: expected an object"),
        ('{"user": "a", "assistant": 3}', "line 2: messages.* wants a "),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "line 2: messages.* wants a "),
        ('{"messages": [{"role": "user", "content": "a"}]}', "line 2: an example ends with an answer"),
        ('{"messages": [{"role": "system", "content": "a"}]}', "line 2: an example holds no system prompt"),
        ('{"messages": 3}', "line 2 holds no list of messages"),
    ],
)
def test_broken_examples(tmp_path: Path, line: str, problem: str):
    file = tmp_path / "examples.jsonl"
    file.write_text(json.dumps({"user": "a", "assistant": "b"}) + "\n" + line, encoding="utf-8")
    with pytest.raises(GencliError, match=problem):
        read_examples(file)
    with pytest.raises(GencliError, match="no such file"):
        read_examples(tmp_path / "none")


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "source, problem",
    [
        (LOOPS, "its chat template did not end within 1 seconds: does it loop?"),
        ("{% for a in range(99999) %}{{ 'abc' * 10000 }}{% endfor %}", "it writes more than 131080 characters"),
        ("{{ 'a' * 10**10 }}", "it needs too much memory"),
        ("{% for a in range(10**9) %}{% endfor %}", "OverflowError: Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ messages.append(1) }}", "access to attribute 'append' of 'list' object is unsafe"),
        ("{% include '/etc/passwd' %}", "no loader for this environment"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("a\n{% for %}", "line 2: "),
        ("{{ raise_exception('no\nsystem\tprompt') }}", ": no system prompt"),
    ],
    ids=lambda value: value[:24],
)
def test_a_template_that_does_wrong_is_one_clear_line(monkeypatch, source: str, problem: str):
    monkeypatch.setattr(template_process, "SECONDS", 1)
    made = ChatTemplate(source, "model")
    with pytest.raises(GencliError) as caught:
        made.render({"messages": []})
    assert caught.value.message.startswith("model: ") and problem in caught.value.message
    assert "\n" not in caught.value.message
    made.source = "well: {{ messages }}"
    assert made.render({"messages": []}) == "well: []", "the next one is rendered all the same"
    made.close()


@pytest.mark.slow
def test_limits_hold_for_the_whole_not_for_each_prompt(monkeypatch):
    """A template that is stopped once is not run again."""
    monkeypatch.setattr(template_process, "SECONDS", 1)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    made = ChatTemplate(LOOPS, "model")
    for _ in range(5):
        with pytest.raises(GencliError, match="did not end within 1 seconds"):
            made.render({"messages": []})
    made.close()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "source", ["{{ raise_exception('long ' * 10**7) }}", "{% for %}" + "x" * 10**5, "{{ 'a' * 10**7 }}"]
)
def test_what_a_template_says_is_short(source: str):
    made = ChatTemplate(source, "model")
    with pytest.raises(GencliError) as caught:
        made.render({"messages": []})
    made.close()
    assert len(caught.value.message) < 500


def test_a_template_may_repeat_the_messages_and_write_some_more():
    made = ChatTemplate("{{ 'x' * 100000 }}{% for i in range(3) %}{{ messages[0].content }}{% endfor %}", "model")
    content = "word " * 10**5
    assert made.render({"messages": [{"role": "user", "content": content}]}) == "x" * 10**5 + content * 3
    made.close()
    with pytest.raises(GencliError, match="more than any real one"):
        ChatTemplate("x" * (2**20 + 1), "model")


@pytest.mark.parametrize(
    "source",
    [
        "{% for c in messages[0].content %}{{ c }}{% endfor %}",
        "{% for c in messages[0].content %}{{ c }} {% endfor %}",
        "{{ messages[0].content | length }} {{ messages[0].content }}",
        "{{ messages[0].content[:5] }}{{ '9' * 7 }}{{ messages[0].content[5:] }}",
        "{{ messages[0].content | upper }}",
        "{{ messages[0].content | e }}{{ messages[0].content | urlencode }}",
        "{{ messages[0].content | tojson }}{{ messages | tojson }}",
        "{{ messages[0].content | replace('|', '/') }}",
        "{{ messages[0].content | reverse }}{{ messages[0].content.split('>')[0] }}",
        "{% if messages[0].content.startswith('<') %}begins{% else %}inside {{ messages[0].content }}{% endif %}",
    ],
)
@pytest.mark.parametrize("content", [END, f"a {END} b{END}", "plain"])
def test_templates_that_take_a_message_apart(chat_model, source: str, content: str):
    """The text is as without any marks; of the message's words none is a special token, the template's own is."""
    source = f"{END}{source}{END}"
    messages = [{"role": "user", "content": content}]
    tokenizer = dataclasses.replace(chat_model.model.tokenizer, chat_template=source)
    made = Templated(tokenizer, "model")
    prompt = made.prompt(messages)
    made.close()
    plain = environment().from_string(source).render(messages=messages)
    assert prompt.text == plain
    end = tokenizer.backend.token_to_id(END)
    assert prompt.ids.count(end) == 2 and (prompt.ids[0], prompt.ids[-1]) == (end, end)
    assert tokenizer.decode(prompt.ids, skip_special=False) == prompt.text


def test_where_a_template_lies(tmp_path: Path):
    """A file of its own before the config's key; `default` of several; anything but text is refused."""
    for family in FAMILIES:
        if family.name in ("qwen2", "qwen3", "llama3.2"):
            folder = make_chat_tokenizer(tmp_path / family.name, family)
            assert load_tokenizer(folder).chat_template == family.template
    config = json.loads((folder / "tokenizer_config.json").read_text())
    rows = [{"name": "a", "template": "A"}, {"name": "b", "template": "B"}]
    for value, problem in (({"a": "A"}, "chat_template is not text"), (rows, "none of the chat templates a, b is")):
        write_json(folder / "tokenizer_config.json", {**config, "chat_template": value})
        with pytest.raises(GencliError, match=problem):
            load_tokenizer(folder)
    write_json(folder / "tokenizer_config.json", {**config, "chat_template": None})
    assert load_tokenizer(folder).chat_template is None
