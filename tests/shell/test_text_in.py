"""What comes in: byte order marks, bad lines, characters that a vocabulary lacks; and why nothing comes out."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import sys
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from gencli.text.conversation import read_examples
from gencli.text.request import SamplingParams, TextRequest, draw_seed
from gencli.tokens import load_tokenizer
from gencli.tokens.templates import read_chat_template
from gencli.train.captions import parse
from gencli.train.texts import read_texts
from tests.tiny.hub_cache import put, tiny
from tests.tiny.scripted import END, bytes_tokenizer, make_scripted, make_scripted_chat
from tests.tiny.text import make_gpt2, make_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """It answers any prompt, as far as its 64 positions go, by "b"s, and ends each after one."""
    made = bytes_tokenizer(END)
    ids = made.encode("b" * 60).ids
    return make_scripted(tmp_path_factory.mktemp("in") / "tiny", made, ids, 1, generation={}, positions=64)


@pytest.fixture
def say(run, monkeypatch):
    """`say(*args, stdin=…)`: run gencli in this process, with bytes on its stdin."""

    def say(*args: object, stdin: bytes = b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        return run(*args)

    return say


@pytest.fixture
def counts(say):
    """The tokens of each prompt that was answered, and stderr."""

    def counts(*args: object, stdin: bytes, code: int = 0) -> tuple[list[int], str]:
        done = say("text", *args, "--temp", 0, "-n", 2, "--json", stdin=stdin)
        assert done.returncode == code, done.stderr
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        return [answer["usage"]["prompt_tokens"] for answer in answers], done.stderr.decode()

    return counts


def test_byte_order_marks(counts, model: Path):
    for coding in ("utf-8-sig", "utf-16", "utf-16-be", "utf-32"):
        mark = codecs.BOM_UTF16_BE if coding == "utf-16-be" else b""
        assert counts("-m", model, stdin=mark + "Once\n".encode(coding)) == ([4], "")
    assert counts("-m", model, "--lines", stdin="One\r\nTwo!\n".encode("utf-8-sig")) == ([3, 4], "")
    assert counts("-m", model, "--lines", stdin="One\r\nTwo!\n".encode("utf-16")) == ([3, 4], "")
    _, said = counts("-m", model, stdin="Once upon".encode("utf-16-le"), code=1)
    assert said == "error: stdin is not UTF-8: it looks like UTF-16\nhint: convert it: `iconv -f utf-16le -t utf-8`\n"


def test_lines_that_nul_bytes_part(counts, model: Path):
    """-0 is for what is printed: neither is the whole a prompt, nor is it UTF-16 without a word of -0."""
    _, said = counts("-m", model, "--lines", stdin=b"One\0Two!\0", code=1)
    told = "error: line 1 of stdin has NUL bytes\nhint: lines end with newlines, which `tr '\\0' '\\n'` makes of them"
    assert said.startswith(told) and "-0 is for what is printed" in said
    _, said = counts("-m", model, "--lines", stdin=b"a\0b\0", code=1)
    assert "looks like UTF-16\nhint: convert it: `iconv -f utf-16le -t utf-8`; NUL bytes between texts: `tr" in said


def test_byte_order_marks_of_files(tmp_path: Path):
    """As editors of Windows put them: texts to train on, chat templates, vocabularies."""
    for name, data in (
        ("a.txt", b"one"),
        ("b.jsonl", b'{"text": "one"}'),
        ("c.txt.gz", gzip.compress(b"\xef\xbb\xbfone")),
    ):
        (tmp_path / name).write_bytes(data if name.endswith("gz") else codecs.BOM_UTF8 + data)
    assert [text for _, text in read_texts(tmp_path)] == ["one"] * 3
    (tmp_path / "chat_template.jinja").write_bytes(codecs.BOM_UTF8 + b"{{ messages }}")
    assert read_chat_template(tmp_path, {}) == "{{ messages }}"
    make_tokenizer(tmp_path, "vocab")
    ids = load_tokenizer(tmp_path).encode("The dog")
    merges = tmp_path / "merges.txt"
    merges.write_bytes(codecs.BOM_UTF8 + merges.read_bytes().replace(b"\n", b"\r\n"))
    assert load_tokenizer(tmp_path).encode("The dog") == ids


def test_one_bad_line_among_many(counts, model: Path):
    lines = b"One\n" + b"x" * 70 + b"\ncaf\xe9\nLast\n"
    found, said = counts("-m", model, "--lines", stdin=lines, code=1)
    assert found == [3, 4]
    assert "error: line 2: the prompt has 70 tokens" in said
    assert "error: line 3 of stdin is not UTF-8" in said and said.endswith("error: 2 of 4 lines failed\n")
    found, said = counts("-m", model, "--lines", "--strict", stdin=lines, code=1)
    assert found == [3] and "line 3" not in said
    counts("-m", model, "--strict", "a", stdin=b"", code=2)


def test_seeds_that_run_out(counts, model: Path):
    assert counts("-m", model, "--lines", "--seed", 2**63 - 1, stdin=b"a\nb\n") == ([1, 1], "")


@pytest.mark.slow
def test_characters_that_the_vocabulary_lacks(counts, tmp_path: Path):
    made = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate("abcdefghijklmnopqrstuvwxyz .")}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    folder = make_scripted(tmp_path, made, [0], 1, generation={"bos_token_id": 1, "eos_token_id": 2})
    for prompt, lost in [("hello world", 0), ("Hello World", 2), ("日本語", 3)]:
        _, said = counts("-m", folder, prompt, stdin=b"")
        note = f"note: the model's vocabulary lacks {lost} characters of the prompt, which it does not see\n"
        assert said.endswith(note) if lost else "note:" not in said


def test_json_lines_end_at_newlines_alone(tmp_path: Path):
    text = "a\u2028b\u2029c\x85d"
    file = tmp_path / "examples.jsonl"
    line = json.dumps({"user": text, "assistant": text}, ensure_ascii=False)
    file.write_bytes(f"{line}\r\n{line}\n".encode())
    assert [message["content"] for message in read_examples(file)] == [text] * 4
    [(name, caption)] = parse(json.dumps({"file": "a.png", "text": text}, ensure_ascii=False), "captions")
    assert (name, caption.label) == ("a.png", text)


@pytest.mark.slow
def test_an_empty_answer_says_why(say, tmp_path: Path):
    folder = make_scripted_chat(tmp_path, "<think>\nfirst. second\n</think>\n\nThe answer<|im_end|>")
    done = say("text", "-m", folder, "--chat", "Hi", "--temp", 0, "-n", 10, "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["text"], answer["finish_reason"]) == (0, "", "length")
    note = b"note: the answer is empty: reasoning took all of its 10 tokens (see --max-tokens, --think)\n"
    assert done.stderr.endswith(note)
    done = say("chat", "-m", folder, "--temp", 0, "-n", 10, stdin=b"Hi")
    assert done.stderr.endswith(note)


def test_a_chat_takes_the_checkpoints_length(say, tmp_path: Path):
    folder = make_scripted_chat(tmp_path, "Hello there", generation={"max_new_tokens": 5, "do_sample": False})
    done = say("chat", "-m", folder, stdin=b"Hi")
    assert done.stdout == b"Hello\n"


def test_the_same_in_models_pull_and_rm(tmp_path: Path, monkeypatch, run):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    put(tmp_path, "org/name", "a" * 40, tiny(), "main")
    address = "https://huggingface.co/org/name/"
    assert run("models", "pull", address, HF_HUB_CACHE=str(tmp_path)).stderr.startswith(
        b"note: org/name is already installed"
    )
    assert run("models", "show", address, HF_HUB_CACHE=str(tmp_path)).stdout.startswith(b"name")
    assert run("models", "rm", "-y", address, HF_HUB_CACHE=str(tmp_path)).stderr.startswith(b"note: removed org/name")


def test_other_tools_words_for_all_and_any(run):
    """-k -1 is all tokens (vLLM), --seed -1 any seed (llama.cpp, the web UI)."""
    assert SamplingParams(top_k=-1).top_k == 0
    assert TextRequest().resolve({"top_k": -1}).sampling.top_k == 0
    one, other = (draw_seed(-1) for _ in range(2))
    assert one != other and min(one, other) >= 0 and draw_seed(7) == 7
    done = run("text", "Once", "-k", "-1", "--seed", "-1", "-n", "1", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["seed"] >= 0
    assert run("image", "apple", "--seed", "-2", "-o", "a.png").returncode == 2


def test_folders_that_hold_something_else(tmp_path: Path, run):
    """A .gguf beside a config.json, and an adapter where a model is wanted: the hint names what to do."""
    (tmp_path / "mixed").mkdir()
    make_gpt2(tmp_path / "mixed", n_layer=1)
    (tmp_path / "mixed" / "model.safetensors").rename(tmp_path / "mixed" / "model.gguf")
    done = run("text", "-m", tmp_path / "mixed", "a")
    assert done.returncode == 1 and b"hint: model.gguf is a model in one file: give its path" in done.stderr
    for number in (1, 2):
        shard = tmp_path / "mixed" / f"model-0000{number}-of-00002.safetensors"
        shard.write_bytes((tmp_path / "mixed" / "model.gguf").read_bytes())
    done = run("text", "-m", tmp_path / "mixed", "a")
    assert b"hint: the index of model-00001-of-00002.safetensors and the files after it is not here" in done.stderr
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    (tmp_path / "run" / "adapter").mkdir(parents=True)  # as a run of training leaves it
    (tmp_path / "run" / "adapter" / "adapter_config.json").write_text("{}")
    for command, folder in (("text", "lora"), ("image", "lora"), ("text", "run")):
        done = run(command, "-m", tmp_path / folder, "a")
        assert done.returncode == 1 and b"it is a LoRA adapter: --lora names it" in done.stderr
