"""A checkpoint's own settings: each as transformers' processor of that name, and the whole as its `generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gencli.checkpoints.find import Source
from gencli.errors import GencliError
from gencli.text.events import Completion
from gencli.text.generate import generate
from gencli.text.generation_config import FOLLOWED, INERT_KEYS, NOT_FOLLOWED, generation_config, not_followed
from gencli.text.load import open_model
from gencli.text.request import TextRequest
from tests.oracles.libraries import transformers
from tests.oracles.sampled import process
from tests.tiny.scripted import END, bytes_tokenizer, make_scripted
from tests.tiny.text import write_json

V, ENDS = 40, (3, 7)
BIASES = [[[5], 2.0], [[1, 2], -3.0], [[2, 2, 9], 50.0], [[4], -1.5]]
BAD = [[3], [8], [1, 6], [2, 1, 0], [9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]]


def theirs(key: str, value: Any, prompt: int, limit: int) -> Any:
    """The processor that `generate` makes for a setting."""
    made = transformers.generation.logits_process
    ends = list(ENDS)
    return {
        "sequence_bias": lambda: made.SequenceBiasLogitsProcessor(value),
        "no_repeat_ngram_size": lambda: made.NoRepeatNGramLogitsProcessor(value),
        "bad_words_ids": lambda: made.NoBadWordsLogitsProcessor(value, ends),
        "min_length": lambda: made.MinLengthLogitsProcessor(value, ends),
        "min_new_tokens": lambda: made.MinNewTokensLengthLogitsProcessor(prompt, value, ends),
        "forced_eos_token_id": lambda: made.ForcedEOSTokenLogitsProcessor(prompt + limit, value),
        "exponential_decay_length_penalty": lambda: made.ExponentialDecayLengthPenalty(tuple(value), ends, prompt),
        "suppress_tokens": lambda: made.SuppressTokensLogitsProcessor(value),
        "begin_suppress_tokens": lambda: made.SuppressTokensAtBeginLogitsProcessor(value, prompt),
    }[key]()


@pytest.mark.parametrize(
    "key, value",
    [
        ("sequence_bias", BIASES),
        ("no_repeat_ngram_size", 1),
        ("no_repeat_ngram_size", 2),
        ("no_repeat_ngram_size", 3),
        ("bad_words_ids", BAD),
        ("min_length", 9),
        ("min_new_tokens", 3),
        ("forced_eos_token_id", 7),
        ("forced_eos_token_id", [3, 7]),
        ("exponential_decay_length_penalty", [2, 1.4]),
        ("suppress_tokens", [0, 3, 12]),
        ("begin_suppress_tokens", [0, 3, 12]),
    ],
)
def test_each_is_the_processor_of_that_name(key: str, value: Any):
    changed = 0
    for seed, (prompt, count) in enumerate([(1, 0), (2, 0), (5, 0), (5, 1), (5, 3), (5, 5), (8, 6)] * 3):
        draw = torch.Generator().manual_seed(seed)
        context = torch.randint(4, (3, prompt + count), generator=draw)
        logits = 3 * torch.randn(3, V, generator=draw)
        wanted = theirs(key, value, prompt, 6)(context, logits.clone())
        settings = {key: value, "eos_ids": ENDS, "max_tokens": 6}
        got = process(logits, context=context, generated=context[:, prompt:], **settings)
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-6)
        changed += not torch.equal(got, logits)
    assert changed


def test_every_key_of_the_reference_is_in_the_table():
    keys = {key for key in transformers.GenerationConfig().to_dict() if not key.startswith("_")}
    assert keys <= FOLLOWED | INERT_KEYS | NOT_FOLLOWED.keys()
    assert not INERT_KEYS & FOLLOWED and not NOT_FOLLOWED.keys() & (FOLLOWED | INERT_KEYS)
    assert not_followed("x", transformers.GenerationConfig().to_dict()) == ()


A = bytes_tokenizer().encode("a").ids
SETTINGS = {
    "stop_strings": ["END"],
    "suppress_tokens": A,
    "begin_suppress_tokens": A,
    "bad_words_ids": [A],
    "no_repeat_ngram_size": 2,
    "sequence_bias": [[A, -100.0]],
    "exponential_decay_length_penalty": [2, 9.0],
    "forced_eos_token_id": 256,
    "min_new_tokens": 18,
    "max_length": 6,
    "repetition_penalty": 5.0,
}


@pytest.mark.parametrize(
    "where, key",
    [("generation", key) for key in SETTINGS]
    + [("config", key) for key in ("suppress_tokens", "bad_words_ids", "no_repeat_ngram_size", "repetition_penalty")],
)
def test_a_checkpoint_generates_as_the_reference_does(tmp_path: Path, where: str, key: str):
    made = bytes_tokenizer(END)
    settings = {key: SETTINGS[key], "eos_token_id": 256}
    ids = made.encode(f"a a a a END tail{END}more").ids
    if where == "generation":
        make_scripted(tmp_path, made, ids, 2, generation={**settings, "do_sample": False})
    else:
        make_scripted(tmp_path, made, ids, 2, config=settings)
        (tmp_path / "generation_config.json").unlink()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    limit = {} if key == "max_length" else {"max_new_tokens": 13 if key == "forced_eos_token_id" else 19}
    more = {"tokenizer": tokenizer} if key == "stop_strings" else {}
    encoded = tokenizer("Hi", return_tensors="pt")
    done = network.generate(**encoded, do_sample=False, pad_token_id=256, **limit, **more)[0, 2:]
    wanted = tokenizer.decode(done, skip_special_tokens=True).removesuffix("END" if key == "stop_strings" else "\0")
    model = open_model(Source("tiny", tmp_path, "folder"))
    request = TextRequest.of("Hi", temperature=0.0, max_tokens=limit.get("max_new_tokens"))
    [*_, sample] = generate(model, request)
    assert isinstance(sample, Completion) and sample.text == wanted
    assert wanted != "a a a a END tail"


def test_whole_numbers_and_what_is_none():
    assert TextRequest().resolve({"top_k": 50.0, "max_new_tokens": 5.0}).max_tokens == 5
    for config, says in [
        ({"top_k": 50.5}, "generation_config.json: top-k 50.5: expected an integer"),
        ({"bad_words_ids": [1]}, "generation_config.json: bad_words_ids [1]: expected lists of token ids"),
        ({"sequence_bias": {"1": 2}}, "expected pairs of a list of token ids and a bias"),
        ({"exponential_decay_length_penalty": 3}, "expected a number of tokens and a factor"),
        ({"no_repeat_ngram_size": "2"}, "no_repeat_ngram_size '2': expected an integer"),
        ({"stop_strings": 3}, "stop_strings 3: expected a list of texts"),
        ({"suppress_tokens": [-1]}, "suppress_tokens [-1]: expected a list of token ids"),
    ]:
        with pytest.raises(GencliError) as caught:
            TextRequest().resolve(config)
        assert says in caught.value.message


def test_what_is_asked_for_goes_before_a_checkpoints_limits():
    config = {"max_length": 30, "stop_strings": "x"}
    assert TextRequest().resolve(config).max_length == 30
    asked = TextRequest.of(max_tokens=40, stop=("y",)).resolve(config)
    assert (asked.max_tokens, asked.max_length, asked.stop) == (40, None, ("y", "x"))


def test_what_is_not_followed_is_told(tmp_path: Path):
    made = bytes_tokenizer(END)
    make_scripted(
        tmp_path, made, made.encode("a").ids, 2, generation={"num_beams": 4, "frobnicate": 1, "use_cache": True}
    )
    [note] = open_model(Source("tiny", tmp_path, "folder")).notes
    assert note == "tiny: its settings frobnicate = 1, num_beams = 4 are not followed"
    full = {"temperature": 1.0, "top_k": 50, "max_length": 20, "do_sample": False, "num_beams": 1, "n_embd": 32}
    assert generation_config({}, full) == {"num_beams": 1}
    write_json(tmp_path / "generation_config.json", {"top_k": 50})
    assert open_model(Source("tiny", tmp_path, "folder")).notes == ()
