"""Continuing text with tiny models; transformers' own generation is the reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gencli.checkpoints.find import Source
from gencli.errors import GencliError, UsageError
from gencli.spec import ModelSpec
from gencli.text.events import Completion, GenerationStats, PromptTruncated, TextDelta, in_order
from gencli.text.generate import BATCH, generate
from gencli.text.load import TextModel, open_model
from gencli.text.request import TextRequest
from tests.tiny.text import END, SENTENCES, make_gpt2

PROMPT = SENTENCES[0][:40]
# Free of special tokens, so that random models do not end early.
LONG = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "logit_bias": ((383, -float("inf")),)}
GREEDY = {"temperature": 0.0, "logit_bias": LONG["logit_bias"]}


def opened(folder: Path, **options) -> TextModel:
    return open_model(Source(folder.name, folder, "folder"), ModelSpec(**options))


def run(model: TextModel, prompt: str = PROMPT, **settings) -> list[Completion]:
    """The whole samples, after checking that the pieces say the same."""
    texts: dict[int, str] = {}
    samples = []
    for event in generate(model, TextRequest.of(prompt, **settings)):
        if isinstance(event, TextDelta):
            assert event.text
            texts[event.index] = texts.get(event.index, "") + event.text
        elif isinstance(event, Completion):
            assert texts.get(event.index, "") == event.text
            samples.append(event)
    return sorted(samples, key=lambda sample: sample.index)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return make_gpt2(tmp_path_factory.mktemp("text") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> TextModel:
    return opened(folder)


@pytest.fixture(scope="module")
def reference(folder: Path):
    import transformers

    return transformers.GPT2LMHeadModel.from_pretrained(folder).eval()


def reference_ids(reference, model: TextModel, prompt: str = PROMPT, **settings) -> list[int]:
    """Token ids after the prompt by transformers' greedy generation."""
    ids = torch.tensor([model.tokenizer.encode(prompt)])
    done = reference.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=383, **settings)
    return done[0, ids.shape[1] :].tolist()


def test_greedy_is_transformers_greedy(model: TextModel, reference):
    for prompt in [PROMPT, SENTENCES[3], "x"]:
        ids = reference_ids(reference, model, prompt, max_new_tokens=40, eos_token_id=None)
        [sample] = run(model, prompt, temperature=0.0, max_tokens=40, logit_bias=())
        known = ids[: ids.index(383)] if 383 in ids else ids
        assert sample.text == model.tokenizer.decode(known)


def test_greedy_with_penalty_is_transformers(model: TextModel, reference):
    ids = reference_ids(reference, model, max_new_tokens=40, repetition_penalty=1.3, suppress_tokens=[383])
    [sample] = run(model, max_tokens=40, repeat_penalty=1.3, **GREEDY)
    assert sample.text == model.tokenizer.decode(ids)
    [plain] = run(model, max_tokens=40, **GREEDY)
    assert plain.text != sample.text


def test_frequency_penalty_counts_generated_tokens_alone(model: TextModel):
    [plain] = run(model, max_tokens=30, logprobs=0, **GREEDY)
    [fined] = run(model, max_tokens=30, logprobs=0, frequency_penalty=2.0, **GREEDY)
    assert plain.logprobs and fined.logprobs
    assert plain.logprobs.tokens[0] == fined.logprobs.tokens[0]
    assert max(map(fined.logprobs.tokens.count, fined.logprobs.tokens)) < max(
        map(plain.logprobs.tokens.count, plain.logprobs.tokens)
    )


def test_every_sample_can_be_made_again_alone(model: TextModel):
    together = run(model, max_tokens=24, seed=7, num_samples=5, **LONG)
    assert [sample.seed for sample in together] == [7, 8, 9, 10, 11]
    assert len({sample.text for sample in together}) == 5
    for sample in together:
        [alone] = run(model, max_tokens=24, seed=sample.seed, **LONG)
        assert alone.text == sample.text
    assert run(model, max_tokens=24, seed=7, num_samples=5, **LONG) == together


def test_more_samples_than_a_batch(model: TextModel):
    samples = run(model, max_tokens=3, seed=1, num_samples=BATCH + 3, **LONG)
    assert [sample.index for sample in samples] == list(range(BATCH + 3))
    [alone] = run(model, max_tokens=3, seed=1 + BATCH + 1, **LONG)
    assert alone.text == samples[BATCH + 1].text


def test_finished_samples_leave_the_batch(model: TextModel):
    """Samples that end at different tokens: the others go on as they would have alone."""
    settings = {**LONG, "max_tokens": 60, "stop": ("e", "o"), "seed": 3}
    samples = run(model, num_samples=8, **settings)
    assert len({sample.completion_tokens for sample in samples}) > 3
    for sample in samples:
        [alone] = run(model, **{**settings, "seed": sample.seed})
        assert (alone.text, alone.finish_reason) == (sample.text, sample.finish_reason)
        assert not {"e", "o"} & set(sample.text)
    stats = GenerationStats()
    list(generate(model, TextRequest.of(PROMPT, num_samples=8, **settings), stats))
    assert stats.generated == sum(sample.completion_tokens for sample in samples)


def test_the_first_unfinished_sample_streams(model: TextModel):
    events = list(in_order(generate(model, TextRequest.of(PROMPT, num_samples=3, max_tokens=20, **LONG))))
    order = [event.index for event in events]
    assert order == sorted(order) and set(order) == {0, 1, 2}
    assert sum(isinstance(event, TextDelta) and event.index == 0 for event in events) > 5


def test_stop_strings_are_found_across_tokens(model: TextModel):
    """Every substring of a long text, as a stop string, ends it exactly where it begins."""
    [whole] = run(model, max_tokens=60, logprobs=0, seed=5, **LONG)
    assert whole.logprobs
    text, borders = whole.text, set(whole.logprobs.text_offset)
    crossed = 0
    for start in range(2, len(text) - 6, 5):
        stop = text[start : start + 5]
        [cut] = run(model, max_tokens=60, stop=(stop,), seed=5, **LONG)
        assert (cut.text, cut.finish_reason) == (text[: text.index(stop)], "stop")
        crossed += any(border in borders for border in range(start + 1, start + 5))
    assert crossed > 3


def test_a_stop_string_that_never_comes_changes_nothing(model: TextModel):
    [plain] = run(model, max_tokens=30, seed=2, **LONG)
    [held] = run(model, max_tokens=30, seed=2, stop=(plain.text[-1] + "never",), **LONG)
    assert (held.text, held.finish_reason) == (plain.text, "length")


def test_the_end_token_ends_and_is_not_shown(model: TextModel):
    [sample] = run(model, max_tokens=30, temperature=0.0, logit_bias=((383, 1000.0),), logprobs=1)
    assert (sample.text, sample.finish_reason, sample.completion_tokens) == ("", "stop", 1)
    assert sample.logprobs and sample.logprobs.tokens == []


def test_lengths(model: TextModel):
    [sample] = run(model, max_tokens=7, **LONG)
    assert (sample.completion_tokens, sample.finish_reason) == (7, "length")
    [full] = run(model, max_tokens=10_000, **LONG)
    assert (full.prompt_tokens + full.completion_tokens, full.finish_reason) == (128, "length")


def test_a_prompt_as_long_as_the_context(model: TextModel):
    ids = model.tokenizer.encode(" ".join(SENTENCES * 3))
    text = model.tokenizer.decode(ids[:300])
    length = len(model.tokenizer.encode(text))
    assert length > 128
    with pytest.raises(GencliError, match=rf"the prompt has {length} tokens, but the context of tiny is 128"):
        run(model, text)
    [sample] = run(model, text, truncate="left", max_tokens=10, **GREEDY)
    assert (sample.prompt_tokens, sample.completion_tokens) == (118, 10)
    kept = model.tokenizer.decode(model.tokenizer.encode(text)[-118:])
    if model.tokenizer.encode(kept) == model.tokenizer.encode(text)[-118:]:
        assert run(model, kept, max_tokens=10, **GREEDY)[0].text == sample.text
    cut = next(generate(model, TextRequest(text, truncate="left", max_tokens=10)))
    assert cut == PromptTruncated(length, 118)
    [half] = run(model, text, truncate="left", max_tokens=1000, **GREEDY)
    assert (half.prompt_tokens, half.completion_tokens) == (64, 64)


def test_a_short_prompt_is_not_truncated(model: TextModel):
    assert run(model, truncate="left", max_tokens=5, **GREEDY) == run(model, max_tokens=5, **GREEDY)


def test_an_empty_prompt_starts_from_the_beginning_token(model: TextModel):
    [sample] = run(model, "", max_tokens=10, **GREEDY)
    assert sample.prompt_tokens == 1
    assert sample.text == run(model, END, max_tokens=10, **GREEDY)[0].text


def test_logprobs_are_the_references(model: TextModel, reference):
    """At any setting the report is on the model's own distribution."""
    [sample] = run(model, max_tokens=20, seed=4, logprobs=3, **{**LONG, "temperature": 1.7, "top_k": 200})
    assert sample.logprobs
    prompt = model.tokenizer.encode(PROMPT)
    pieces = {model.tokenizer.id_to_piece(i): i for i in range(384)}
    ids = [pieces[piece] for piece in sample.logprobs.tokens]
    assert len(ids) == 20
    with torch.inference_mode():
        logits = reference(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    wanted = logits.log_softmax(-1)
    got = torch.tensor(sample.logprobs.token_logprobs)
    torch.testing.assert_close(got, wanted.gather(1, torch.tensor(ids)[:, None])[:, 0], atol=1e-5, rtol=0)
    for row, chosen, reported in zip(wanted, ids, sample.logprobs.top_logprobs, strict=True):
        best = row.topk(3)
        expected = {model.tokenizer.id_to_piece(i): v for v, i in zip(*map(torch.Tensor.tolist, best), strict=True)}
        expected.setdefault(model.tokenizer.id_to_piece(chosen), float(row[chosen]))
        assert list(reported) == list(expected)
        torch.testing.assert_close(torch.tensor(list(reported.values())), torch.tensor(list(expected.values())))


def test_logprobs_of_everything_sum_to_one(model: TextModel):
    [sample] = run(model, max_tokens=2, seed=4, logprobs=384, **LONG)
    assert sample.logprobs
    for row in sample.logprobs.top_logprobs:
        assert len(row) > 380
        torch.testing.assert_close(torch.tensor(list(row.values())).double().exp().sum().item(), 1.0, atol=0.05, rtol=0)


def test_logprobs_end_where_the_text_ends(model: TextModel):
    [whole] = run(model, max_tokens=30, logprobs=0, seed=5, **LONG)
    stop = whole.text[12:15]
    [cut] = run(model, max_tokens=30, logprobs=0, seed=5, stop=(stop,), **LONG)
    assert cut.logprobs and whole.logprobs
    kept = len(cut.logprobs.tokens)
    assert cut.logprobs.tokens == whole.logprobs.tokens[:kept]
    assert all(offset < len(cut.text) for offset in cut.logprobs.text_offset)
    assert whole.logprobs.text_offset[kept] >= len(cut.text)


def test_text_offsets_point_at_tokens(model: TextModel):
    [sample] = run(model, max_tokens=40, logprobs=0, seed=6, **LONG)
    assert sample.logprobs
    plain = [
        (token, offset)
        for token, offset in zip(sample.logprobs.tokens, sample.logprobs.text_offset, strict=True)
        if not token.startswith("bytes:") and "\ufffd" not in sample.text[offset : offset + 1]
    ]
    assert len(plain) > 5
    for token, offset in plain:
        assert sample.text[offset : offset + len(token)] == token


def test_the_checkpoints_own_settings(folder: Path, tmp_path: Path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = {"temperature": 0.0, "max_new_tokens": 5, "eos_token_id": [383], "bos_token_id": 383}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    own = opened(tmp_path)
    [sample] = run(own, logit_bias=LONG["logit_bias"])
    assert sample.completion_tokens == 5
    assert sample.text == run(own, max_tokens=5, **GREEDY)[0].text
    assert run(own, max_tokens=6, logit_bias=LONG["logit_bias"])[0].completion_tokens == 6


def test_tokens_that_the_model_or_the_tokenizer_lacks(tmp_path: Path, model: TextModel):
    with pytest.raises(UsageError, match="--logit-bias 384"):
        run(model, logit_bias=((384, 1.0),))
    small = opened(make_gpt2(tmp_path / "small", vocab_size=300))
    with pytest.raises(GencliError, match="is not among the model's 300"):
        run(small)
    padded = opened(make_gpt2(tmp_path / "padded", vocab_size=400))
    [sample] = run(padded, max_tokens=4, temperature=0.0, logit_bias=((390, 1000.0),), logprobs=2)
    assert (sample.text, sample.completion_tokens, sample.finish_reason) == ("", 4, "length")


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_broken_weights_are_an_error(folder: Path, tmp_path: Path, poison: float):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors["ln_f.weight"][0] = poison
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GencliError, match=r"NaN|infinite"):
        run(opened(tmp_path), max_tokens=3)


def test_precision(folder: Path, tmp_path: Path, model: TextModel):
    """On a CPU weights of half precision stay as they are stored, and are computed with in float32."""
    for dtype in (torch.float16, torch.bfloat16):
        half = opened(make_gpt2(tmp_path / str(dtype), dtype=dtype))
        assert next(half.module.parameters()).dtype == dtype and half.module.compute_dtype == torch.float32
        assert half.module.transformer.ln_f.weight.dtype == torch.float32
        assert len(run(half, max_tokens=5, **LONG)) == 1
    assert next(opened(folder, dtype="bfloat16").module.parameters()).dtype == torch.bfloat16
    assert "0.0 M parameters, float32, cpu, 1 thread, " in model.describe() and "kernels)" in model.describe()
    with pytest.raises(GencliError, match="CUDA"):
        if torch.cuda.is_available():
            raise GencliError("this machine has CUDA")
        opened(folder, device="cuda")


def test_weights_of_8_bits_are_read_and_never_computed_with(tmp_path: Path):
    """The text is that of the numbers that they stand for."""
    exact, small = make_gpt2(tmp_path / "exact"), make_gpt2(tmp_path / "small")
    tensors = load_file(exact / "model.safetensors")
    eighths = {name: one.to(torch.float8_e4m3fn) if one.ndim == 2 else one for name, one in tensors.items()}
    save_file(eighths, small / "model.safetensors")
    save_file({name: one.float() for name, one in eighths.items()}, exact / "model.safetensors")
    texts = [run(opened(folder), max_tokens=20, **GREEDY)[0].text for folder in (exact, small)]
    assert texts[0] == texts[1] and opened(small).module.compute_dtype is torch.float32


def test_other_kinds_of_checkpoints(tmp_path: Path, folder: Path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(GencliError, match="not a text model"):
        opened(tmp_path)
    file = folder / "model.safetensors"
    named = open_model(Source(str(file), file, "file"))
    assert run(named, max_tokens=3, **GREEDY)[0].text == run(opened(folder), max_tokens=3, **GREEDY)[0].text
    lonely = tmp_path / "lonely.safetensors"
    lonely.write_bytes(file.read_bytes())
    with pytest.raises(GencliError, match=r"a folder with config\.json, and there is none beside this file"):
        open_model(Source(str(lonely), lonely, "file"))
