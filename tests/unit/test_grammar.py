"""Texts that follow a schema or a grammar: always valid, whole or told, and the same as without where nothing binds."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import torch

from gencli.checkpoints.find import Source
from gencli.errors import GencliError, UsageError
from gencli.text import grammar
from gencli.text.chat import ChatModel, ChatSession
from gencli.text.constraint import Constraint
from gencli.text.conversation import Conversation
from gencli.text.events import Completion, Failed, GenerationStats, ReasoningDelta
from gencli.text.generate import Job, generate, generate_all
from gencli.text.load import open_model
from gencli.text.request import TextRequest
from gencli.text.speculation import Draft, Lookup
from tests.tiny.scripted import bytes_tokenizer, make_scripted, make_scripted_chat, pieces_tokenizer, plain
from tests.tiny.text import TEXTS, make_gpt2

SCHEMAS = (Path(__file__).parents[1] / "data" / "schemas.jsonl").read_text().splitlines()
PERSON = (
    '{"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"], "additionalProperties": false}'
)


def opened(folder: Path):
    return open_model(Source(folder.name, folder, "folder"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models of every kind of tokenizer; but for gpt2 they find every token equally likely."""
    torch.set_num_threads(1)
    made = tmp_path_factory.mktemp("models")
    backends = {"bytes": bytes_tokenizer("<|endoftext|>", "<|im_start|>")}
    backends |= {kind: pieces_tokenizer(kind) for kind in ("llama", "metaspace", "never")}
    found = {"gpt2": opened(make_gpt2(made / "gpt2", seed=1, n_positions=1024))}
    for kind, backend in backends.items():
        ends = {"eos_token_id": 256 if kind == "bytes" else 2}
        found[kind] = opened(make_scripted(made / kind, backend, [], 1, generation=ends, positions=1024))
    return found


def texts(model, requests, **how) -> list[Completion]:
    events = [event for event in generate_all(model, map(Job, requests), **how) if isinstance(event, Completion)]
    return sorted(events, key=lambda event: event.index)


@pytest.mark.parametrize("kind", ["bytes", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("llama", "gpt2"))])
def test_what_is_sampled_is_valid(models, kind):
    """Several schemas in one batch, at temperature 2. What is not whole says so."""
    requests = [TextRequest.of("x", schema=one, temperature=2.0, top_k=0, top_p=1.0, seed=i, max_tokens=900)
                for i, one in enumerate(SCHEMAS)]  # fmt: skip
    done = texts(models[kind], requests)
    assert len(done) == 50
    for schema, sample in zip(SCHEMAS, done, strict=True):
        assert sample.finish_reason == "stop", (schema, sample.text)
        jsonschema.validate(json.loads(sample.text), json.loads(schema))


def test_answers_of_one_line_each(models):
    """As --lines asks for them."""
    requests = [TextRequest.of("x", schema=grammar.on_one_line(PERSON), temperature=2.0, seed=i) for i in range(40)]
    found = [sample.text for sample in texts(models["bytes"], requests)]
    assert all(re.fullmatch(r' ?\{ ?"age" ?: ?-?\d+ ?\}', text) for text in found) and len(set(found)) > 5


@pytest.mark.parametrize("kind", ["bytes", "llama", "metaspace", "never", "gpt2"])
def test_grammars_of_every_notation(models, kind):
    """The first token loses no space, and characters of several bytes are whole."""
    lark = 'start: word (", " word)*\nword: /[a-d]{1,3}/'
    gbnf = 'root ::= "yes" | "no" | "caf\u00e9"'
    for text, pattern in [
        (r"/ ?(Once|\u4ece\u524d|\U0001F642) [0-9]{2}/", " ?(Once|\u4ece\u524d|\U0001f642) [0-9]{2}"),
        (lark, "[a-d]{1,3}(, [a-d]{1,3})*"),
        (gbnf, "yes|no|caf\u00e9"),
        ('{"enum": ["a", 1]}', '"a"|1'),
    ]:
        for sample in texts(models[kind], [TextRequest.of("", grammar=text, temperature=2.0, num_samples=5)]):
            assert re.fullmatch(pattern, sample.text) and sample.finish_reason == "stop", (text, sample)


def test_the_bytes_of_tokens_join_to_their_text(models):
    for kind, model in models.items():
        tokenizer = model.tokenizer
        visible = tokenizer.encode("a", add_special_tokens=False)
        for text in TEXTS:
            ids = tokenizer.encode(text)
            decoder = tokenizer.decoder(after=visible)
            whole = "".join(map(decoder.push, ids)) + decoder.finish()
            assert b"".join(map(tokenizer.token_bytes, ids)).decode() == whole, (kind, text)


@pytest.mark.parametrize("kind", ["bytes", "llama"])
def test_special_tokens_are_no_text_and_the_end_waits(models, kind):
    """A string of JSON may hold their names, spelled; the token that ends a text comes where the grammar may end."""
    model = models[kind]
    constraint = Constraint(model, '{"type": "string"}', None)
    special, [end] = sorted(model.tokenizer.special_ids), model.tokenizer.eos_ids
    quote = next(i for i in range(model.vocab_size) if model.tokenizer.token_bytes(i) == b'"')
    for token, may_end in [(quote, False), (quote, True)]:
        assert constraint.take(token) is may_end  # nothing can follow the second
        allowed = constraint.allowed()
        assert [i for i in special if allowed[i]] == ([end] if may_end else [])
    digits = Constraint(model, "/[0-9]+/", None)
    assert not digits.allowed()[end]
    digits.take(next(i for i in range(model.vocab_size) if model.tokenizer.token_bytes(i) == b"7"))
    assert digits.allowed()[end] and digits.allowed().sum() == 11


@pytest.mark.slow
def test_greedy_is_the_same_where_nothing_binds(models):
    """Also in batches and with guessed tokens, penalties and log-probabilities."""
    model, stats = models["gpt2"], GenerationStats()
    # half characters, which no grammar allows
    odd = [i for i in range(model.vocab_size) if not model.tokenizer.token_bytes(i).strip().isascii()]
    bias = tuple(
        (i, -float("inf")) for i in [*odd, *model.tokenizer.eos_ids]
    )  # half characters, which no grammar allows
    for settings in ({}, {"repeat_penalty": 1.2}, {"logprobs": 2}):
        settings |= {"temperature": 0.0, "max_tokens": 24, "logit_bias": bias}
        free, bound = ([TextRequest.of(text, grammar=grammar, **settings) for text in ("Once upon", "The dog")]
                       for grammar in (None, r"/(?s:.)*/"))  # fmt: skip
        wanted = texts(model, free)
        assert texts(model, bound) == wanted and wanted[0].text.isascii() and len(wanted[0].text) >= 24
        for guesser in (Lookup(stats), Draft(model.module, model.vocab_size, stats)):
            assert [one.text for one in texts(model, bound, batch=1, guesser=guesser)] == [one.text for one in wanted]


@pytest.mark.parametrize("how", ["lookup", pytest.param("draft", marks=pytest.mark.slow)])
def test_guessed_tokens_follow_too(models, how):
    model, stats = models["bytes"], GenerationStats()
    guesser = Lookup(stats) if how == "lookup" else Draft(model.module, model.vocab_size, stats)
    schema = json.dumps({"type": "array", "items": {"enum": ["abcabc", "abcabd"]}, "minItems": 3, "maxItems": 5})
    request = TextRequest.of("[", schema=schema, temperature=2.0, top_k=0, num_samples=5)
    for sample in texts(model, [request], batch=1, guesser=guesser):
        assert sample.finish_reason == "stop"
        jsonschema.validate(json.loads(sample.text), json.loads(schema))
    assert stats.guessed


def test_filters_see_allowed_tokens_alone(models):
    """The likeliest token of all is none that may come: top-k 1 takes the likeliest that may."""
    model = models["bytes"]
    [z], [b] = (model.tokenizer.encode(letter) for letter in "zb")
    request = TextRequest.of("x", grammar="/[ab]{4}/", top_k=1, logit_bias=((z, 50.0), (b, 1.0)))
    assert texts(model, [request])[0].text == "bbbb"


def test_a_limit_and_a_stop_cut_and_say_so(models):
    model = models["bytes"]
    [cut] = texts(model, [TextRequest.of("x", schema=PERSON, max_tokens=4)])
    assert cut.finish_reason == "length" and cut.text.startswith("{")
    [stopped] = texts(model, [TextRequest.of("x", grammar="/abc|abd/", stop=("b",))])
    assert (stopped.text, stopped.finish_reason) == ("a", "stop")


def test_the_last_token_of_a_whole_text_ends_it(models):
    """No step is made for an end token, which the checkpoint may lack; its own lengths give way."""
    [sample] = texts(models["bytes"], [TextRequest.of("x", grammar="/abc/")])
    assert (sample.text, sample.finish_reason, sample.completion_tokens) == ("abc", "stop", 3)


@pytest.mark.parametrize("by", ["tokens", "words"])
def test_thoughts_are_free_and_the_answer_follows(tmp_path, by):
    thought, answer = "Is it 7?", '{"age": 7}'
    added = plain("<think>", "</think>") if by == "tokens" else ()
    opens = "<think>" if by == "words" else ""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n" + opens + "' }}{% endif %}"
    )
    said = f"{thought}</think>\n\n{answer}" if opens else f"<think>{thought}</think>{answer}"
    model = opened(make_scripted_chat(tmp_path / "chat", said, *added, template=template))
    session = ChatSession(ChatModel(model), TextRequest.of(schema=PERSON, temperature=0.0), Conversation())
    events = list(session.answer("Hi", session.prepare("Hi"), 0))
    session.chat_model.close()
    *_, whole = events
    assert "".join(event.text for event in events if isinstance(event, ReasoningDelta)).strip() == thought
    assert json.loads(whole.text) == {"age": 7} and whole.finish_reason == "stop"


def test_a_schema_comes_from_a_pipe():
    """As of `--schema <(make-schema)`."""
    reading, writing = os.pipe()
    os.write(writing, b'{"type": "boolean"}')
    os.close(writing)
    assert json.loads(grammar.read_schema(f"/dev/fd/{reading}")) == {"type": "boolean"}
    os.close(reading)


@pytest.mark.parametrize(
    ("option", "word", "wanted"),
    [
        ("schema", "nowhere.json", "--schema 'nowhere.json': no such file"),
        ("schema", "", "--schema '': no such file"),
        ("grammar", ".", "--grammar '.' is a folder"),
        ("schema", '{"type":', "--schema: invalid JSON"),
        ("schema", '{"type": "strin"}', "--schema: Invalid type: strin"),
        ("schema", '{"type": "array", "uniqueItems": true}', '--schema: Unimplemented keys: ["uniqueItems"]'),
        ("grammar", "/a(/", "--grammar: not a regular expression: unclosed group"),
        ("grammar", "/(?=a)b/", "--grammar: not a regular expression: look-around"),
        ("schema", '{"items":' * 5000 + "{}" + "}" * 5000, "--schema: invalid JSON: maximum recursion depth"),
        ("schema", '{"const": "\ud800"}', "--schema is not UTF-8 text"),
        ("grammar", "/" + "a" * 2**20 + "/", "--grammar: 1048578 characters are too many"),
        ("grammar", "lark", "--grammar: .*unknown name"),
        ("grammar", "gbnf", "--grammar: "),
        ("grammar", "empty", "--grammar: the grammar is empty"),
    ],
)
def test_what_cannot_be_followed_is_one_line(tmp_path, monkeypatch, option, word, wanted):
    monkeypatch.chdir(tmp_path)
    for name, text in {"lark": "start: nothing", "gbnf": 'root ::= "a', "empty": " \n"}.items():
        Path(name).write_text(text)
    read = {"schema": grammar.read_schema, "grammar": grammar.read_grammar}[option]
    with pytest.raises(UsageError, match=f"^{re.escape(wanted) if '.*' not in wanted else wanted}") as error:
        TextRequest.of(**{option: read(word)})
    assert "\n" not in error.value.message and len(error.value.message) < 400


def test_a_notation_is_told_in_little_time():
    """Of lines that are empty each was the beginning of one more search through all of them: hours, for a megabyte."""
    text = "start: a" + "\n" * (grammar.LIMIT - 20) + "a: /b/"
    began = time.process_time()
    assert grammar.GBNF.search(text) is None and grammar.GBNF.search(text + "\n root\n ::= a") is not None
    assert time.process_time() - began < 1


def test_files_and_what_excludes_what(tmp_path):
    (tmp_path / "a.json").write_text(PERSON)
    assert grammar.read_schema(str(tmp_path / "a.json")) == PERSON
    assert grammar.read_grammar("/a b/") == "/a b/" and grammar.read_schema(None) is None
    with pytest.raises(UsageError, match="cannot be combined"):
        TextRequest.of(schema=PERSON, grammar="/a/")


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    grammar._problem.cache_clear()
    with pytest.raises(UsageError, match="--schema: llguidance is not installed") as error:
        TextRequest.of(schema=PERSON)
    grammar._problem.cache_clear()
    assert error.value.hint == "pip install 'gencli[grammar]'"


def test_what_no_text_follows_fails_alone(models):
    """A schema that only asks for itself; the prompt beside it goes on."""
    requests = [TextRequest.of("x", schema=schema) for schema in ('{"$ref": "#"}', '{"const": 2}')]
    failed, whole = (event for event in generate_all(models["bytes"], map(Job, requests))
                     if isinstance(event, Failed | Completion))  # fmt: skip
    assert isinstance(failed, Failed) and failed.error.message.endswith("no further: no text follows it")
    assert isinstance(whole, Completion) and whole.text == "2"
    with pytest.raises(GencliError):
        list(generate(models["bytes"], requests[0]))


@pytest.mark.parametrize(
    ("schema", "hint"),
    [
        ({"if": {}, "then": {}}, "leave these keys out"),
        ({"type": "string", "format": "colour"}, "leave `format` out"),
        ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}, "anyOf is followed"),
        ({"$ref": "http://x/y"}, "a $ref is followed inside the schema itself"),
        ({"$ref": "#/$defs/x"}, "a $ref names a place inside the schema itself"),
        ({"type": "strin"}, "types are object, array"),
    ],
)
def test_a_schema_that_cannot_be_followed_has_a_hint(schema, hint):
    with pytest.raises(UsageError) as error:
        TextRequest.of(schema=json.dumps(schema))
    assert error.value.hint and error.value.hint.startswith(hint)
