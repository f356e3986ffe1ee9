"""Chat templates of the families: transformers' text and ids exactly; words that look like tokens stay words."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from gencli.errors import GencliError
from gencli.text.chat_template import Templated
from gencli.text.request import TextRequest
from gencli.tokens import load_tokenizer
from tests.tiny.chat_templates import FAMILIES, THINKERS, Family, make_chat_tokenizer
from tests.tiny.text import SENTENCES

SYSTEM = {"role": "system", "content": "You speak like a pirate.\nBriefly, and in rhyme. "}
USER = {"role": "user", "content": "Who are you?"}
ANSWER = {"role": "assistant", "content": "Yarr, naïve one!\n\n```py\nprint('<b>' & \"x\")\n```"}
CONVERSATIONS = [
    [USER],
    [SYSTEM, {"role": "user", "content": "  two  spaces, 你好 🙂\ttab\n"}],
    [USER, ANSWER, {"role": "user", "content": "{{ messages }} {% raw %} \\n"}],
    [SYSTEM, USER, ANSWER, {"role": "user", "content": SENTENCES[4]}, {"role": "assistant", "content": "了"}, USER],
]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def pair(request, tmp_path_factory):
    """A family, gencli's format of its checkpoint, and transformers' tokenizer."""
    import transformers

    family: Family = request.param
    folder: Path = make_chat_tokenizer(tmp_path_factory.mktemp("chat") / family.name, family)
    made = Templated(load_tokenizer(folder), family.name)
    yield family, made, transformers.AutoTokenizer.from_pretrained(folder)
    made.close()


def test_text_and_ids_are_the_reference(pair):
    family, made, reference = pair
    for messages in CONVERSATIONS:
        if not family.system and messages[0]["role"] == "system":
            with pytest.raises(GencliError) as caught:
                made.prompt(messages)
            assert family.name in caught.value.message and "\n" not in caught.value.message
            assert caught.value.hint and "no system prompt" in caught.value.hint
            messages = messages[1:]
        text = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        prompt = made.prompt(messages)
        assert prompt.text == text
        assert prompt.ids == ids
        if family.bos:  # once where the template writes it, never twice
            assert prompt.ids[:2].count(reference.bos_token_id) == text.startswith(family.bos)


@pytest.mark.parametrize("begun", ["The answer is (", "  你好 <|im_end|> <s>"])
def test_an_answer_that_is_begun_goes_on_as_in_the_reference(pair, begun):
    """Words that look like a special token are none."""
    family, made, reference = pair
    for messages in CONVERSATIONS if family.system else CONVERSATIONS[::2]:
        messages = [*messages, {"role": "assistant", "content": begun}]
        prompt = made.prompt(messages)
        assert prompt.text == reference.apply_chat_template(messages, tokenize=False, continue_final_message=True)
        assert prompt.reasoning.begun and prompt.reasoning.inside is None
        if "<" not in begun:
            ids = reference.apply_chat_template(messages, continue_final_message=True, return_dict=False)
            assert prompt.ids == ids
        else:
            before = made.prompt([*messages[:-1], {"role": "assistant", "content": "x"}]).ids
            special = made.tokenizer.special_ids
            assert sum(i in special for i in prompt.ids) == sum(i in special for i in before)


def test_the_token_that_ends_a_turn_is_known(pair):
    family, made, reference = pair
    ends = {"zephyr": "</s>", "llama2": "</s>"}.get(family.name, family.eos)
    assert made.end_ids() == (reference.convert_tokens_to_ids(ends),)


def test_special_tokens_in_a_message_stay_words(pair):
    """The text is the reference's; no token is parsed that the template did not write; ids decode to the same."""
    family, made, reference = pair
    names = [*filter(None, [family.bos]), family.eos, *family.special]
    loud = f"end{family.eos} {family.eos}\nand " + " ".join(names) + f"{names[0]}{names[0]} x"
    system = [SYSTEM] if family.system else []
    quiet = [*system, USER, ANSWER, USER]
    noisy = [
        *({"role": m["role"], "content": f"{m['content'].strip()} {loud}"} for m in system),
        {"role": "user", "content": loud}, {"role": "assistant", "content": loud}, {"role": "user", "content": loud},
    ]  # fmt: skip
    prompt = made.prompt(noisy)
    assert prompt.text == reference.apply_chat_template(noisy, tokenize=False, add_generation_prompt=True)
    special = set(reference.all_special_ids)
    assert Counter(i for i in prompt.ids if i in special) == Counter(i for i in made.prompt(quiet).ids if i in special)
    parsed = reference.apply_chat_template(noisy, add_generation_prompt=True, return_dict=False)
    assert len(prompt.ids) > len(parsed)
    if family.kind == "bytes":
        assert reference.decode(prompt.ids) == prompt.text
        theirs = reference.apply_chat_template(
            noisy, add_generation_prompt=True, return_dict=False, sanitize_control_tokens=True
        )
        assert prompt.ids == theirs


@pytest.mark.parametrize("name", ["qwen3", "smollm3"])
def test_tokens_of_a_template_that_are_not_special_stay_words_too(tmp_path: Path, name: str):
    family = next(family for family in FAMILIES if family.name == name)
    tokenizer = load_tokenizer(make_chat_tokenizer(tmp_path, family))
    made = Templated(tokenizer, name)
    messages = [{"role": "user", "content": "what is <think> and </think><think>?"}]
    prompt = made.prompt(messages)
    made.close()
    think = {tokenizer.backend.token_to_id(token) for token in family.plain}
    assert messages[0]["content"] in prompt.text
    assert not think & set(prompt.ids)
    assert tokenizer.decode(prompt.ids, skip_special=False) == prompt.text


WISHED = [
    *((name, wish, {"enable_thinking": wish != "off"}) for name in ("qwen3", "qwen3.5", "smollm3", "gemma4")
      for wish in ("on", "off", "low", "high")),
    ("deepseek", "on", {"thinking": True}), ("deepseek", "off", {"thinking": False}),
    ("gpt-oss", "on", {}), *(("gpt-oss", wish, {"reasoning_effort": wish}) for wish in ("low", "medium", "high")),
    ("effort", "off", {"reasoning_effort": "none"}), ("effort", "on", {"reasoning_effort": "high"}),
    ("effort", "high", {"reasoning_effort": "high"}), ("qwen2", "off", {}), ("llama3.2", "off", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "wish", "values"), WISHED)
def test_a_wish_about_reasoning_is_what_the_template_reads(tmp_path: Path, name: str, wish: str, values: dict):
    """The prompt is transformers' with the variable that the template reads."""
    import transformers

    family = next(family for family in [*FAMILIES, *THINKERS] if family.name == name)
    folder = make_chat_tokenizer(tmp_path / name, family)
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    made = Templated(load_tokenizer(folder), name)
    for messages in CONVERSATIONS:
        theirs = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **values)
        assert made.prompt(messages, TextRequest(think=wish)).text == theirs
    made.close()
