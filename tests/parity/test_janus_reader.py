"""Janus's side that reads images, against transformers: the tower, the aligner, ids of answers, its preprocessing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from gencli.checkpoints.find import Source
from gencli.errors import GencliError
from gencli.image.files.preprocess import janus_settings
from gencli.models.janus_reader import Config, JanusReader, Model
from gencli.spec import ModelSpec
from gencli.text.events import Completion, Failed
from gencli.text.generate import generate_all
from gencli.text.load import TextModel, open_model
from gencli.text.request import SamplingParams, TextRequest
from gencli.text.vision import BEGIN, END, PATCH, SYSTEM, look
from tests.oracles.libraries import janus_images
from tests.tiny.clip import make_pictures
from tests.tiny.image import rewrite_json
from tests.tiny.janus import GRID, SIDE, TinyJanus, make_janus

QUESTIONS = ("What is this?", "从前有一个")
SETTINGS: dict[str, Any] = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.4, 0.5], "min_size": 14}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def opened(folder: Path, **how: Any) -> TextModel:
    return open_model(Source("tiny", folder, "folder"), ModelSpec(device="cpu", allow_pickle=True), **how)


@torch.no_grad()
def test_the_tower_and_the_aligner(janus, images):
    model = opened(janus.folder).module
    assert isinstance(model, JanusReader)
    theirs = janus.reference.model.get_image_features(images)
    assert theirs.pooler_output.std() > 0.3
    assert_close(model.vision_model(images), theirs.last_hidden_state, atol=1e-4, rtol=0)
    model.look(images, 3)
    assert_close(model.patches, theirs.pooler_output.flatten(0, 1), atol=1e-4, rtol=0)


def answer(model: TextModel, pixels: torch.Tensor, *questions: str, **values: Any) -> list[list[str]]:
    """The tokens of the likeliest answers, by gencli's own loop."""
    asked = look(model, pixels.numpy(), values.pop("system", None))
    sampling = SamplingParams(temperature=0)
    requests = [TextRequest(prompt=one, sampling=sampling, max_tokens=12, logprobs=0, **values) for one in questions]
    found = []
    for event in generate_all(model, [asked.job(one) for one in requests]):
        assert not isinstance(event, Failed), event
        if isinstance(event, Completion):
            found.append((event.index, event.logprobs.tokens, event.prompt_tokens))
    return [tokens for _, tokens, _ in sorted(found)]


@torch.no_grad()
def wanted(janus: TinyJanus, pixels: torch.Tensor, question: str, system: str = SYSTEM) -> tuple[list[int], list[int]]:
    """Ids of the prompt and of the answer."""
    image = f"{BEGIN}{PATCH * GRID * GRID}{END}\n" * len(pixels)
    said = f"{system}\n\n<|User|>: {image}{question}\n\n<|Assistant|>:"
    ids = janus.tokenizer(said, return_tensors="pt")["input_ids"]
    given = {
        "attention_mask": torch.ones_like(ids),
        "generation_mode": "text",
        "do_sample": False,
        "max_new_tokens": 12,
    }
    out = janus.reference.generate(ids, pixel_values=pixels, **given)[0].tolist()
    return ids[0].tolist(), out[ids.shape[1] :]


@pytest.mark.parametrize("layout", ["new", "old"])
@pytest.mark.parametrize("count", [1, 2])
def test_answers_have_the_ids_of_transformers(janus, images, tmp_path, layout, count):
    folder = janus.folder
    if layout == "old":
        make_janus(tmp_path, old=True)
        folder = tmp_path
    model = opened(folder)
    asked = look(model, images[:count].numpy())
    for question in QUESTIONS:
        ids, out = wanted(janus, images[:count], question)
        assert asked.job(TextRequest(prompt=question)).ids == ids
        assert len(set(out)) > 2  # an answer of one word would show nothing
        assert greedy(model, ids, len(out)) == out


@torch.no_grad()
def test_logits_after_an_image(janus, images):
    """Of every position, for two images that tell; and with the beginning of the prompt read before."""
    model, found = opened(janus.folder), []
    ids = torch.tensor([wanted(janus, images[:1], QUESTIONS[0])[0]])
    for image in images[:, None]:
        look(model, image.numpy())
        cache = model.module.new_cache(1, ids.shape[1])
        parts = [model.module(part, cache) for part in ids.split(ids.shape[1] // 2, 1)]
        found.append(torch.cat(parts, 1))
        theirs = janus.reference(input_ids=ids, pixel_values=image, attention_mask=torch.ones_like(ids)).logits
        assert_close(found[-1], theirs, atol=1e-4 * float(theirs.std()), rtol=1e-4)
    assert (found[0] - found[1])[:, -1].abs().max() > 0.01


@torch.no_grad()
def greedy(model: TextModel, ids: list[int], count: int) -> list[int]:
    """Of the cache, token by token."""
    cache = model.module.new_cache(1, len(ids) + count)
    logits, found = model.module(torch.tensor([ids]), cache, last_only=True), []
    for _ in range(count):
        found.append(int(logits[0, -1].argmax()))
        logits = model.module(torch.tensor([found[-1:]]), cache)
    return found


def test_the_loop_of_text_answers(janus, images):
    """Several questions side by side, of which the later share the beginning of the first."""
    model = opened(janus.folder)
    assert answer(model, images[:1], *QUESTIONS) == [pieces(janus, model, images[:1], one) for one in QUESTIONS]
    asked = ("Hm?", "Be brief.")
    assert answer(model, images[:1], asked[0], system=asked[1]) == [pieces(janus, model, images[:1], *asked)]


def pieces(janus: TinyJanus, model: TextModel, pixels: torch.Tensor, *asked: str) -> list[str]:
    """The tokens of the reference's answer, until it ends; a padded vocabulary has some without a text."""
    ids = wanted(janus, pixels, *asked)[1]
    ids = ids[: ids.index(janus.tokenizer.eos_token_id)] if janus.tokenizer.eos_token_id in ids else ids
    return [model.tokenizer.id_to_piece(i) for i in ids if i < model.tokenizer.vocab_size]


def test_packed(janus, images, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    exact, packed = opened(janus.folder).module, opened(janus.folder, quantize="q8_0").module
    for model in (exact, packed):
        model.look(images, 3)
    assert (packed.patches - exact.patches).std() < 0.05 * exact.patches.std()


def test_what_is_refused(janus, images, tmp_path):
    model = opened(janus.folder)
    with pytest.raises(GencliError, match="which stands for images"):
        look(model, images.numpy()).job(TextRequest(prompt=f"a {PATCH}"))
    with pytest.raises(GencliError, match="its images are 64x64 pixels"):
        look(model, images[:, :, :32, :32].numpy())
    make_janus(tmp_path)
    changed = {"use_qk_norm": True}
    rewrite_json(tmp_path / "config.json", lambda raw: {**raw, "vision_config": raw["vision_config"] | changed})
    with pytest.raises(GencliError, match="vision_config: use_qk_norm = True is not supported"):
        opened(tmp_path)


@pytest.mark.parametrize("layout", ["transformers", "deepseek"])
def test_preprocessing(tmp_path, layout):
    """Equal to transformers' for images of several shapes; DeepSeek's file names its own ground."""
    own = {"size": {"height": SIDE, "width": SIDE}, "do_pad": True, "image_processor_type": "JanusImageProcessor"}
    if layout == "deepseek":
        own = {"image_size": SIDE, "background_color": [127, 127, 127], "image_processor_type": "VLMImageProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**SETTINGS, **own}))
    ours = janus_settings(tmp_path)
    processor = janus_images.JanusImageProcessorPil(size={"height": SIDE, "width": SIDE}, **SETTINGS)
    for picture in (*make_pictures(), Image.effect_noise((200, 9), 60).convert("RGB")):
        picture = picture.convert("RGB")
        expected = processor(picture, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(ours(picture), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 10**9}, "size = 1000000000 is not an image size"),
        ({"image_size": None, "size": {"shortest_edge": 64}}, "is not an image size"),
        ({"min_size": -1}, "min_size, background_color"),
        ({"min_size": True}, "min_size, background_color"),
        ({"background_color": [1, 2]}, "min_size, background_color"),
        ({"background_color": [0, 0, 300]}, "min_size, background_color"),
        ({"do_pad": False}, "do_pad is not supported"),
        ({"image_std": [0, 0, 0]}, "would divide by zero"),
        ({"image_mean": [1e9] * 3}, "min_size, background_color"),
        ({"do_flip": True}, "do_flip = True is not supported"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense(tmp_path, change, message):
    """Told in one line, before an image is touched."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**SETTINGS, "image_size": SIDE, **change}))
    with pytest.raises(GencliError, match=message) as refusal:
        janus_settings(tmp_path)
    assert "\n" not in refusal.value.message


def test_published_size():
    """deepseek-community/Janus-Pro-1B: 1652.6 M in the language model and its head, 303.7 M in the tower."""
    text = {"vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
            "num_attention_heads": 16, "max_position_embeddings": 16384, "rms_norm_eps": 1e-6}  # fmt: skip
    with torch.device("meta"):
        model = Model(Config.from_dict({**text, "vision_config": {}}))
    parts = {"tower": model.vision_model, "aligner": model.aligner, "language": model.model, "head": model.lm_head}
    millions = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in parts.items()}
    expected = {"tower": 303.7, "aligner": 6.3, "language": 1442.9, "head": 209.7}
    assert millions == pytest.approx(expected, abs=0.1)
