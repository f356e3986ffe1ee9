"""A continuation as text: prompt and answer decoded, without what the prompt is. Oracle: transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gencli.checkpoints.find import Source
from gencli.text.events import Completion
from gencli.text.generate import generate
from gencli.text.load import TextModel, open_model
from gencli.text.request import TextRequest
from tests.oracles.libraries import transformers
from tests.tiny import sentencepiece
from tests.tiny.scripted import make_scripted, pieces_tokenizer


def opened(folder: Path) -> TextModel:
    return open_model(Source(folder.name, folder, "folder"))


def samples(model: TextModel, prompt: str, **settings) -> list[Completion]:
    request = TextRequest.of(prompt, temperature=0.0, **settings)
    return [event for event in generate(model, request) if isinstance(event, Completion)]


@pytest.mark.parametrize("prompt", ["Once", "Once ", "Once\U0001f600", ""])
@pytest.mark.parametrize("said", [["▁time", "."], ["t", "i"], ["▁", "▁time"], ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]])
@pytest.mark.parametrize("kind", ["llama", "metaspace", "never"])
def test_the_space_after_the_prompt_is_kept(tmp_path: Path, kind: str, said: list[str], prompt: str):
    """`decode(all)[len(decode(prompt)):]`, for every kind of decoder that takes a space from a text's beginning."""
    made = pieces_tokenizer(kind)
    said_ids = [made.token_to_id(piece) for piece in said]
    ids = made.encode(prompt).ids
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    folder = make_scripted(
        tmp_path, made, [*said_ids, 2], len(ids), generation={"eos_token_id": 2}, tokenizer_config=named
    )
    whole, before = (made.decode(part) for part in (ids + said_ids, ids))
    [sample] = samples(opened(folder), prompt, logprobs=0)
    assert sample.text == whole[len(before) :]
    assert sample.logprobs is not None and sample.logprobs.text_offset[0] == 0


def test_transformers_agrees_for_samples_and_a_cut_prompt(tmp_path: Path):
    made = pieces_tokenizer("llama")
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    script = [made.token_to_id("▁time"), made.token_to_id("."), 2]
    folder = make_scripted(tmp_path, made, script, 2, generation={"eos_token_id": 2}, tokenizer_config=named)
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([made.encode("Once").ids])
    done = network.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8, pad_token_id=2)
    wanted = reference.decode(done[0], skip_special_tokens=True)[len("Once") :]
    assert wanted == " time."
    model = opened(folder)
    assert [sample.text for sample in samples(model, "Once", num_samples=3)] == [wanted] * 3
    cut = make_scripted(
        tmp_path / "cut", made, script, 4, generation={"eos_token_id": 2}, tokenizer_config=named, positions=8
    )
    [sample] = samples(opened(cut), "Once Once Once Once Once Once Once Once", max_tokens=4, truncate="left")
    assert (sample.prompt_tokens, sample.text) == (4, " time.")


@pytest.mark.parametrize("name", ["llama", "gemma", "t5"])
def test_a_sentencepiece_file_keeps_the_space(tmp_path: Path, name: str):
    tokenizer, _ = sentencepiece.make(tmp_path, name)
    text = sentencepiece.some_texts()[0]
    ids = [i for i in tokenizer.encode(text) if i not in tokenizer.special_ids]
    for at in range(1, len(ids)):
        decoder = tokenizer.decoder(after=ids[:at])
        got = "".join(decoder.push(i) for i in ids[at:]) + decoder.finish()
        assert tokenizer.decode(ids[:at]) + got == tokenizer.decode(ids)
