"""Prompts as the web UI reads them: what brackets weigh, where chunks end, and the formula of weights.

The oracle is what the web UI documents and does, written out here: `expected_chunks` for where chunks end, and
z' = w·z · mean(z) / mean(w·z) for each chunk.
"""

from __future__ import annotations

import json
import random
import re
import time

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gencli.__main__ import main
from gencli.checkpoints.find import Source
from gencli.cli.image_inputs import note_slips
from gencli.errors import GencliError, UsageError
from gencli.image.generate import Picture, generate
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.image.prompts import weighting
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from tests.oracles.weighted_prompts import expected_chunks
from tests.tiny.flow import make_flux
from tests.tiny.image import make_ddpm, make_stable_diffusion

KINDS = ["sd15", "sd21"]
REQUEST = ImageRequest(weighted=True)


def read(prompt):
    """[(text, weight)], a chunk's end as "BREAK"."""
    return [("BREAK" if piece.text is None else (piece.text, piece.weight)) for piece in weighting.parse(prompt)]


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a (cat)", [("a ", 1.0), ("cat", 1.1)]),
        ("((cat))", [("cat", 1.1**2)]),
        ("[cat]", [("cat", 1 / 1.1)]),
        ("[[cat]] dog", [("cat", 1 / 1.1**2), (" dog", 1.0)]),
        ("a (cat:1.25) b", [("a ", 1.0), ("cat", 1.25), (" b", 1.0)]),
        ("(cat: .5 )(dog:-2)", [("cat", 0.5), ("dog", -2.0)]),
        ("((cat:1.5) dog:0.5)", [("cat", 0.75), (" dog", 0.5)]),
        ("(a [b] c)", [("a ", 1.1), ("b", 1.0), (" c", 1.1)]),
        (r"\(cat\) \[dog\] \\ \x", [(r"(cat) [dog] \ x", 1.0)]),
        (r"(a \(b\):1.3)", [("a (b)", 1.3)]),
        ("(open and closed", [("open and closed", 1.1)]),
        ("a [open", [("a ", 1.0), ("open", 1 / 1.1)]),
        ("closed) only]", [("closed) only]", 1.0)]),
        ("no bracket: 1.5)", [("no bracket: 1.5)", 1.0)]),
        ("time 12:30", [("time 12:30", 1.0)]),
        ("(time 12:30)", [("time 12", 30.0)]),
        ("one  BREAK  two", [("one", 1.0), "BREAK", ("two", 1.0)]),
        # In the web UI a BREAK within brackets is the word "BREAK" at the weight -1.1: here it breaks there too.
        ("(one BREAK two:1.5)", [("one", 1.5), "BREAK", ("two", 1.5)]),
        ("BREAKFAST", [("BREAKFAST", 1.0)]),
        ("(a:1.0) (b)", [("a ", 1.0), ("b", 1.1)]),
        ("()", []),
        ("", []),
    ],
)
def test_brackets(prompt, pieces):
    found = read(prompt)
    assert [piece if piece == "BREAK" else piece[0] for piece in found] == [
        piece if piece == "BREAK" else piece[0] for piece in pieces
    ]
    weights = [[piece[1] for piece in some if piece != "BREAK"] for some in (found, pieces)]
    assert weights[0] == pytest.approx(weights[1], rel=1e-12)


@pytest.mark.parametrize(
    ("prompt", "match"),
    [
        ("(a:1.2.3)", "weight '1.2.3' is not a number"),
        ("(" * 101 + "a", "more than 100 brackets"),
        ("((a:" + "9" * 300 + "):" + "9" * 300 + ")", "too large"),
        ("a [cat:dog:0.5]", r"'\[cat:dog:0.5\]': prompts that change"),
        ("[cat|dog]", "prompts that change"),
        ("[dog:10]", "prompts that change"),
        ("a cat AND a dog", "AND between prompts"),
        ("a <lora:style:0.8>", "'<lora:style' in a prompt is not supported"),
    ],
)
def test_what_cannot_be_followed_is_refused(prompt, match):
    with pytest.raises(GencliError, match=match):
        weighting.parse(prompt)


@pytest.mark.slow
def test_long_prompts_of_nothing_but_signs_take_no_time():
    start = time.process_time()
    for sign in ("(", ")", "[", "]", "\\", ":", ":1)", " ", "BREAK ", "(a)", "(a:1.1)", "((a)", ":  "):
        try:
            weighting.parse(sign * (40_000 // len(sign)))
        except GencliError as error:
            assert "brackets" in error.message
    assert time.process_time() - start < 10


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """kind → our pipeline and diffusers'."""
    root = tmp_path_factory.mktemp("weighted")
    theirs = {kind: make_stable_diffusion(root / kind, kind) for kind in KINDS}
    sources = {kind: Source(kind, root / kind, "folder") for kind in KINDS}
    return {kind: (load(open_image_checkpoint(sources[kind]), device="cpu"), theirs[kind]) for kind in KINDS}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_end_where_the_web_ui_ends_them(pipelines, kind):
    ours, theirs = pipelines[kind]
    tokenizer, encoder = ours.main.conditioner.text_encoders[0]
    pad = theirs.tokenizer.pad_token_id
    assert (pad == theirs.tokenizer.eos_token_id) == (kind == "sd15")
    random.seed(0)
    lengths = set()
    for _ in range(60):
        parts, words = [], []
        for _ in range(random.randint(0, 12)):
            text = " ".join(
                random.choices(["red", "apple", "sun,", "dog", "x"], (4, 4, 1, 4, 4), k=random.randint(1, 40))
            )
            weight = random.choice([1.0, 1.5, 0.25])
            parts.append(f"({text}:{weight})")
            words += [(token, weight) for token in theirs.tokenizer(text, add_special_tokens=False)["input_ids"]]
            if random.random() < 0.1:
                parts.append(" BREAK ")
                words.append(None)
        chunks = weighting.split_into_chunks(tokenizer, " ".join(parts), 77, encoder.config.vocab_size)
        assert [(chunk.ids, chunk.weights) for chunk in chunks] == expected_chunks(theirs.tokenizer, words, pad)
        lengths.add(len(chunks))
    assert max(lengths) > 3


@pytest.mark.slow
@pytest.mark.parametrize(("before", "moved"), [(54, 0), (55, 19), (74, 0), (75, 0)])
def test_a_comma_of_the_last_twenty_tokens_ends_a_chunk(pipelines, before, moved):
    """`before` words, a comma, then words: 75 tokens and one more."""
    tokenizer, encoder = pipelines["sd15"][0].main.conditioner.text_encoders[0]
    prompt = "red " * before + "," + " dog" * (76 - before - 1)
    first, second = weighting.split_into_chunks(tokenizer, prompt, 77, encoder.config.vocab_size)
    end = tokenizer.eos_ids[0]
    assert first.ids.index(end) == 76 - moved
    assert second.ids.index(end) == 1 + moved + 1


def by_formula(pipe, chunks):
    """z' = w·z · mean(z) / mean(w·z), each chunk alone, joined along the sequence; z from transformers' encoder."""
    joined = []
    for ids, weights in chunks:
        z = pipe.text_encoder(torch.tensor([ids])).last_hidden_state
        weighed = z * torch.tensor(weights)[None, :, None]
        joined.append(weighed * (z.mean() / weighed.mean()))
    return torch.cat(joined, dim=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_states_are_those_of_the_formula(pipelines, kind):
    ours, theirs = pipelines[kind]
    words = [("red apple", 1.0), ("the sun,", 1.5), ("blue dog", 0.5), ("in a", 1.0)] * 9
    prompt = " ".join(text if weight == 1 else f"({text}:{weight})" for text, weight in words)
    tokens = [
        (token, weight)
        for text, weight in words
        for token in theirs.tokenizer(text, add_special_tokens=False)["input_ids"]
    ]
    chunks = expected_chunks(theirs.tokenizer, tokens, theirs.tokenizer.pad_token_id)
    expected = by_formula(theirs, chunks)
    found = ours.main.conditioner.encode([prompt], REQUEST)["encoder_hidden_states"]
    assert found.shape[1] == 77 * len(chunks) > 77
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    plain = by_formula(theirs, [(ids, [1.0] * 77) for ids, _ in chunks])
    assert (plain - expected).abs().max() > 0.1  # the weights do something


@pytest.mark.slow
@torch.inference_mode()
def test_prompts_of_one_batch_do_not_touch_each_other(pipelines):
    conditioner = pipelines["sd15"][0].main.conditioner
    prompts = ["a (red:1.5) apple", "blue dog", "sun " * 100]
    together = conditioner.encode(prompts, REQUEST)["encoder_hidden_states"]
    [empty] = conditioner.encode([""], REQUEST)["encoder_hidden_states"]
    for row, prompt in zip(together, prompts, strict=True):
        [alone] = conditioner.encode([prompt], REQUEST)["encoder_hidden_states"]
        filled = torch.cat([alone, *[empty] * ((len(row) - len(alone)) // 77)])
        torch.testing.assert_close(row, filled, atol=1e-5, rtol=1e-5)


def draw(pipeline, prompts=None, **values):
    request = ImageRequest(**{"seed": 3, "steps": 2, "width": 64, "height": 64, **values})
    events = generate(pipeline, resolve(request, pipeline.checkpoint), prompts)
    return [np.asarray(event.image).astype(int) for event in events if isinstance(event, Picture)]


@pytest.mark.slow
def test_a_prompt_without_weights_gives_the_same_pixels(pipelines):
    pipeline = pipelines["sd15"][0]
    for values in ({"prompt": "red apple"}, {"prompt": "red apple", "negative": "blue", "guidance": 3.0}, {}):
        np.testing.assert_array_equal(draw(pipeline, **values)[0], draw(pipeline, weighted=True, **values)[0])
    assert np.abs(
        draw(pipeline, prompt="red apple")[0] - draw(pipeline, prompt="red (apple:3)", weighted=True)[0]
    ).max()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("longer", ["prompt", "negative"])
def test_pictures_of_long_weighted_prompts(pipelines, kind, longer):
    """diffusers, told the formula's states; the shorter of prompt and negative is filled with empty chunks."""
    ours, pipe = pipelines[kind]
    texts = {"prompt": "red (apple:1.4)", "negative": "blue [dog]"}
    texts[longer] += ", the sun" * 40
    [found] = draw(ours, weighted=True, guidance=5.0, **texts)
    told = {}
    with torch.inference_mode():
        for name, text in texts.items():
            pieces = (
                [(text[: text.index("(")], 1.0), ("apple", 1.4)]
                if name == "prompt"
                else [("blue ", 1.0), ("dog", 1 / 1.1)]
            )
            pieces.append((re.split(r"[)\]]", text)[1], 1.0))
            tokens = [
                (token, weight)
                for piece, weight in pieces
                for token in pipe.tokenizer(piece, add_special_tokens=False)["input_ids"]
            ]
            chunks = expected_chunks(pipe.tokenizer, tokens, pipe.tokenizer.pad_token_id)
            empty = expected_chunks(pipe.tokenizer, [], pipe.tokenizer.pad_token_id)
            assert (len(chunks) > 1) == (name == longer)
            told[name] = by_formula(pipe, chunks), by_formula(pipe, empty)
    length = max(states.shape[1] for states, _ in told.values())
    told = {
        name: torch.cat([states, *[empty] * ((length - states.shape[1]) // 77)], 1)
        for name, (states, empty) in told.items()
    }
    from diffusers import DDIMScheduler

    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    theirs = pipe(
        prompt_embeds=told["prompt"],
        negative_prompt_embeds=told["negative"],
        guidance_scale=5.0,
        num_inference_steps=2,
        width=64,
        height=64,
        generator=torch.Generator("cpu").manual_seed(3),
    ).images[0]
    assert found.std() > 10
    assert np.abs(found - np.asarray(theirs).astype(int)).max() <= 2


@pytest.mark.slow
def test_a_picture_of_a_batch_is_that_of_its_prompt_alone(pipelines):
    pipeline = pipelines["sd15"][0]
    prompts = ["red apple", "blue dog", "the sun " * 60, "(green:1.3) star"]
    together = draw(pipeline, prompts, weighted=True, batch=3)
    assert len(together) == 4
    for i, prompt in enumerate(prompts):
        [alone] = draw(pipeline, prompt=prompt, weighted=True, seed=3 + i)
        assert np.abs(together[i] - alone).max() <= 1


@pytest.mark.slow
def test_without_weighted_brackets_are_text_and_long_prompts_an_error(pipelines):
    pipeline = pipelines["sd15"][0]
    assert np.abs(draw(pipeline, prompt="(apple)")[0] - draw(pipeline, prompt="(apple)", weighted=True)[0]).max() > 2
    with pytest.raises(GencliError, match="at most 75") as caught:
        draw(pipeline, prompt="apple " * 76)
    assert "--weighted" in caught.value.hint


@pytest.mark.slow
def test_a_prompt_that_cannot_be_followed_is_told_before_the_load(pipelines):
    checkpoint = pipelines["sd15"][0].checkpoint
    for values in ({"prompt": "[a|b]"}, {"negative": "(a:1..2)"}):
        with pytest.raises(GencliError, match="prompt"):
            resolve(ImageRequest(weighted=True, **values), checkpoint)


@pytest.mark.slow
def test_models_that_read_no_prompt_refuse_it(tmp_path):
    make_ddpm(tmp_path)
    checkpoint = open_image_checkpoint(Source("ddpm", tmp_path, "folder"))
    with pytest.raises(UsageError, match="--weighted would have no effect on ddpm"):
        resolve(REQUEST, checkpoint)


@pytest.mark.parametrize(
    ("prompt", "weighted", "noted"),
    [
        (r"a my style \(v2\) cat", True, False),
        ("a my style (v2) cat", True, True),  # there the brackets are weights
        ("a my style (v2) cat", False, False),
        (r"a my style \(v2\) cat", False, True),
        ("a (my STYLE \\(v2\\):1.2) cat", True, False),
    ],
)
def test_words_of_embeddings_are_looked_for_in_what_is_read(prompt, weighted, noted):
    notes = []
    note_slips(ImageRequest(prompt=prompt, weighted=weighted), ["my style (v2)"], notes.append)
    assert ["no prompt has the word 'my style (v2)'" in note for note in notes] == ([True] if noted else [])


@pytest.mark.parametrize(
    ("prompt", "weighted", "found"),
    [
        ("a (red:1.3) apple", False, "(red:1.3)"),
        ("a (red:1.3) apple", True, None),
        (r"a \(red:1.3\) apple", False, None),
        ("an apple (at 12:30 o'clock)", False, None),
        ("a (red) apple", False, None),
        ("a (red:" + "1" * 100_000, False, None),  # not by a try for each two of its digits: a minute
    ],
)
def test_a_weight_that_is_read_as_text_is_noted(prompt, weighted, found):
    notes, began = [], time.process_time()
    note_slips(ImageRequest(prompt=prompt, weighted=weighted), [], notes.append)
    assert time.process_time() - began < 1
    assert notes == ([f"{found} in a prompt is text; --weighted reads it as a weight"] if found else [])
    notes.clear()
    note_slips(ImageRequest(prompt=prompt, weighted=weighted), [], notes.append, reads_weights=False)
    assert notes == []


@pytest.mark.slow
def test_weights_that_a_picture_of_another_tool_has_are_text_where_none_are_read(tmp_path, capsys):
    """Nobody asked for them: a picture is drawn, and told."""
    make_flux(tmp_path / "flux")
    said = "a (red:1.4) cat BREAK tree\nNegative prompt: bad\nSteps: 1, Sampler: Restart, CFG scale: 2, "
    text = PngInfo()
    text.add_text("parameters", f"{said}Distilled CFG Scale: 3.5, Seed: 1, Size: 32x32")
    Image.new("RGB", (8, 8)).save(tmp_path / "forge.png", pnginfo=text)
    words = ["image", "--from", str(tmp_path / "forge.png"), "-m", str(tmp_path / "flux"), "--json", "-o"]
    assert main([*words, str(tmp_path / "new.png")]) == 0
    told = capsys.readouterr()
    assert "also says CFG scale: 2, Sampler: Restart, which are left out; Sampler is the model's own\n" in told.err
    assert "flux reads no weights: brackets and BREAK in the prompt are text" in told.err
    settings = json.loads(told.out)
    assert (settings["prompt"], settings["guidance"]) == ("a (red:1.4) cat BREAK tree", 3.5)
    assert main([*words, str(tmp_path / "new.png"), "--weighted"]) == 2
    assert "--weighted would have no effect" in capsys.readouterr().err
