"""Textual inversion in every form of file: diffusers' states and pictures; refusals in one line."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from gencli.checkpoints.assets import EmbeddingRef
from gencli.checkpoints.find import Source
from gencli.errors import UsageError
from gencli.image.open import open_image_checkpoint
from gencli.image.prompts.stable_diffusion import token_ids
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from tests.oracles.embeddings import by_diffusers, opened, refusal, told, told_by, vectors, write
from tests.tiny.image import make_ddpm, make_stable_diffusion

KINDS = ["sd15", "sd21"]
WIDTH = {"sd15": 24, "sd21": 32}
PROMPTS = ["a {0} apple", "{0}", "the sun, {0}, a red {0}.", "({0})", "PARTY {0}s dog", "no such word"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    return {kind: (root / kind, make_stable_diffusion(root / kind, kind)) for kind in KINDS}


FORMS = {
    "diffusers": ("learned_embeds.safetensors", "<toy>"),
    "diffusers, bin": ("learned_embeds.bin", "<toy>"),
    "web ui, safetensors": ("toy.safetensors", "toy"),
    "web ui": ("toy.pt", "toy"),
    "the first": ("toy.pt", "toy"),
    "a tensor alone": ("toy.pt", "toy"),
}


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("form", FORMS)
def test_states_are_those_of_diffusers(bases, tmp_path, form, count):
    folder, pipe = bases["sd15"]
    name, word = FORMS[form]
    tensor = vectors(count, 24)
    file = write(tmp_path / name, tensor, form)
    ours = opened(folder, EmbeddingRef(file), allow_pickle=not name.endswith(".safetensors"))
    theirs = by_diffusers(pipe, {word: tensor.detach()})
    # diffusers finds `toy` inside of words too: here a word is a whole one, as in the web UI.
    prompts = [prompt.format(word) for prompt in PROMPTS if word == "<toy>" or "{0}s" not in prompt]
    torch.testing.assert_close(told(ours, prompts), told_by(theirs, prompts), atol=1e-5, rtol=1e-5)
    plain = told_by(pipe, prompts)
    assert (told(ours, prompts) - plain).abs().amax((1, 2)).gt(0.1).tolist() == [word in prompt for prompt in prompts]


def test_it_reads_diffusers_own_files(bases, tmp_path):
    """The same file to both, in the forms that diffusers opens."""
    folder, pipe = bases["sd21"]
    file = write(tmp_path / "learned_embeds.safetensors", vectors(2, 32), "diffusers")
    ours, theirs = opened(folder, EmbeddingRef(file)), by_diffusers(pipe, file)
    torch.testing.assert_close(told(ours, ["red <toy>"]), told_by(theirs, ["red <toy>"]), atol=1e-5, rtol=1e-5)
    file = write(tmp_path / "toy.pt", vectors(2, 32), "web ui")
    ours, theirs = opened(folder, EmbeddingRef(file), allow_pickle=True), by_diffusers(pipe, file)
    torch.testing.assert_close(told(ours, ["red toy"]), told_by(theirs, ["red toy"]), atol=1e-5, rtol=1e-5)


def test_several_and_names_of_ones_own(bases, tmp_path):
    folder, pipe = bases["sd15"]
    first = write(tmp_path / "a.safetensors", vectors(3, 24), "diffusers")
    second = write(tmp_path / "My-Style.safetensors", vectors(2, 24, 1), "web ui, safetensors")
    ours = opened(folder, EmbeddingRef(first, "<one>"), EmbeddingRef(second))
    theirs = by_diffusers(pipe, {"<one>": vectors(3, 24)}, {"my-style": vectors(2, 24, 1)})
    theirs_prompts = ["<one> and my-style", "my-style, my-style"]
    ours_prompts = ["<ONE> and My-Style", "MY-STYLE, my-style"]  # CLIP knows no case
    torch.testing.assert_close(told(ours, ours_prompts), told_by(theirs, theirs_prompts), atol=1e-5, rtol=1e-5)


def test_a_word_is_found_as_a_whole_one(bases, tmp_path):
    folder, pipe = bases["sd15"]
    ours = opened(folder, EmbeddingRef(write(tmp_path / "art.safetensors", vectors(2, 24), "web ui, safetensors")))
    prompts = ["party", "arts", "art_1x", "artful art"]
    changed = (told(ours, prompts) - told_by(pipe, prompts)).abs().amax((1, 2)) > 0.1
    assert changed.tolist() == [False, False, False, True]


def test_with_weights_and_at_the_end_of_a_chunk(bases, tmp_path):
    """Its vectors stay together: those that do not fit into a chunk begin the next one, each with the word's weight."""
    folder, _ = bases["sd15"]
    file = write(tmp_path / "a.safetensors", vectors(5, 24), "diffusers")
    tokenizer, encoder = opened(folder, EmbeddingRef(file)).main.conditioner.text_encoders[0]
    from gencli.image.prompts import weighting

    ids = [tokenizer.backend.token_to_id(word) for word in ("<toy>", "<toy>_1", "<toy>_2", "<toy>_3", "<toy>_4")]
    for before in (69, 70, 71, 74, 75):
        chunks = weighting.split_into_chunks(tokenizer, "red " * before + "(<toy>:1.5)", 77, encoder.config.vocab_size)
        fits = before + 5 <= 75
        assert len(chunks) == (1 if fits else 2)
        start = 1 + before if fits else 1
        assert chunks[-1].ids[start : start + 5] == ids
        assert chunks[-1].weights[start - 1 : start + 6] == [1.0, *[1.5] * 5, 1.0]


def test_the_end_of_a_text_is_not_the_new_word(bases, tmp_path):
    """Old configs say eos_token_id 2, and the end is looked for as the largest id: new words have larger ones.

    transformers then pools at the word (its issue 24773 says that such configs cannot take new tokens).
    """
    folder, pipe = bases["sd15"]
    assert pipe.text_encoder.config.eos_token_id == 2
    ours = opened(folder, EmbeddingRef(write(tmp_path / "a.safetensors", vectors(1, 24), "diffusers")))
    tokenizer, encoder = ours.main.conditioner.text_encoders[0]
    ids = token_ids(tokenizer, encoder, ["red <toy> dog", "red dog"], None)
    with torch.inference_mode():
        output = encoder(ids)
    for i in range(2):
        at = ids[i].tolist().index(tokenizer.eos_ids[0])
        torch.testing.assert_close(output.pooled[i], output.last_hidden_state[i, at])


def test_half_precision_and_files_that_stay_as_they_are(bases, tmp_path):
    folder, _ = bases["sd15"]
    file = tmp_path / "a.safetensors"
    save_file({"<toy>": vectors(2, 24).bfloat16()}, file)
    before = {path: path.read_bytes() for path in [file, *folder.rglob("*.safetensors")]}
    tokenizer, encoder = opened(folder, EmbeddingRef(file), dtype="float16").main.conditioner.text_encoders[0]
    row = encoder.embeddings.token_embedding.weight[tokenizer.backend.token_to_id("<toy>")]
    torch.testing.assert_close(row, vectors(2, 24).bfloat16().half()[0], atol=0, rtol=0)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"<toy>": torch.ones(1, 768)}, "its vectors are 768 wide, and the words of sd15 24 — it looks as if"),
        ({"<toy>": torch.ones(1, 1024)}, "made for Stable Diffusion 2"),
        ({"clip_l": torch.ones(1, 24), "clip_g": torch.ones(1, 1280)}, "24 and 1280 wide, and the words of sd15 24"),
        ({"a": torch.ones(1, 24), "b": torch.ones(1, 24)}, "holds a, b: not the vectors of one word"),
        ({}, "holds nothing"),
        ({"<toy>": torch.ones(1, 24, dtype=torch.int32)}, "[1, 24] of torch.int32 is not a vectors"),
        ({"<toy>": torch.ones(1, 1, 24)}, "[1, 1, 24]"),
        ({"<toy>": torch.ones(0, 24)}, "[0, 24]"),
        ({"<toy>": torch.ones(76, 24)}, "76 vectors are too many"),
        ({"<toy>": torch.full((1, 24), float("inf"))}, "not numbers"),
        ({"a": torch.ones(1, 24)}, "knows a token 'a' already — name another word with FILE:WORD"),
        ({" ": torch.ones(1, 24)}, "' ' is not a word"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(bases, tmp_path, tensors, says):
    folder, _ = bases["sd15"]
    save_file(tensors, tmp_path / "x.safetensors")
    message = refusal(folder, EmbeddingRef(tmp_path / "x.safetensors"))
    assert says in message and str(tmp_path / "x.safetensors") in message


def test_pickles_and_broken_files_are_refused(bases, tmp_path):
    folder, _ = bases["sd15"]
    file = write(tmp_path / "toy.pt", vectors(1, 24), "web ui")
    assert "--allow-pickle" in refusal(folder, EmbeddingRef(file))
    torch.save({"string_to_param": {"*": vectors(1, 24), "+": vectors(1, 24)}}, file)
    assert "holds" in refusal(folder, EmbeddingRef(file), allow_pickle=True)
    torch.save({"string_to_param": {"*": print}}, file)
    assert "asks for" in refusal(folder, EmbeddingRef(file), allow_pickle=True)
    torch.save([1, 2], file)
    assert "no embedding" in refusal(folder, EmbeddingRef(file), allow_pickle=True)
    file.write_bytes(b"PK\x03\x04 nothing")
    assert "broken" in refusal(folder, EmbeddingRef(file), allow_pickle=True)
    safe = write(tmp_path / "a.safetensors", vectors(1, 24), "diffusers")
    assert "are both called '<toy>'" in refusal(
        folder, EmbeddingRef(safe), EmbeddingRef(write(tmp_path / "b.safetensors", vectors(1, 24), "diffusers"))
    )
    safe.write_bytes(safe.read_bytes()[:-7])
    assert "broken" in refusal(folder, EmbeddingRef(safe))


def test_names_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert EmbeddingRef.parse("a/b.pt") == EmbeddingRef(tmp_path.__class__("a/b.pt"))
    assert EmbeddingRef.parse("a.pt:<x y>").word == "<x y>"
    (tmp_path / "odd:name.pt").touch()
    assert EmbeddingRef.parse("odd:name.pt").word is None
    assert EmbeddingRef.parse("C:\\x.pt:word").word == "word"
    for wrong in ("", ":x", "a.pt:"):
        with pytest.raises(UsageError, match="FILE or FILE:WORD"):
            EmbeddingRef.parse(wrong)


def test_models_that_read_no_prompt_refuse_it(tmp_path):
    make_ddpm(tmp_path)
    checkpoint = open_image_checkpoint(Source("ddpm", tmp_path, "folder"))
    with pytest.raises(UsageError, match="--embedding would have no effect on ddpm"):
        resolve(ImageRequest(embedding=["x.pt"]), checkpoint)
