"""The embedded checkpoints are plain checkpoints: the reference libraries open them and get what gencli gets."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from gencli.checkpoints.build import load as load_module
from gencli.checkpoints.find import embedded_root, find
from gencli.image.generate import Picture, generate
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from gencli.tokens import load_tokenizer

STORIES, EMOJI = embedded_root() / "stories", embedded_root() / "emoji"
PROMPTS = ["Once upon a time", 'The little dog said: "I can\'t find my red ball!"', "Zoë & 小猫 🐈", "\n\n"]


@pytest.mark.parametrize("folder", [STORIES, EMOJI], ids=lambda folder: folder.name)
def test_embedded_checkpoint_is_small_and_has_a_card(folder) -> None:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert size < 23e6
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n") and "license:" in card


def test_stories_in_transformers() -> None:
    from transformers import AutoTokenizer, GPT2LMHeadModel

    reference = GPT2LMHeadModel.from_pretrained(STORIES, dtype=torch.float32).eval()
    ours, tokenizer = load_module(STORIES, dtype=torch.float32), load_tokenizer(STORIES)
    theirs = AutoTokenizer.from_pretrained(STORIES)
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        assert ids == theirs(prompt).input_ids
        assert tokenizer.decode(ids) == prompt
        with torch.no_grad():
            expected = reference(torch.tensor([ids])).logits
        torch.testing.assert_close(ours(torch.tensor([ids])), expected, atol=5e-5, rtol=0)
    config = json.loads((STORIES / "generation_config.json").read_text())
    assert tokenizer.eos_ids == (config["eos_token_id"],)


def test_emoji_in_diffusers() -> None:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(EMOJI, torch_dtype=torch.float32)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    pipeline.set_progress_bar_config(disable=True)
    checkpoint = open_image_checkpoint(find("emoji"))
    ours = load(checkpoint, device="cpu")
    for seed, prompt, negative in ((1, "red apple", ""), (2, "cat face", "dog")):
        request = resolve(ImageRequest(prompt=prompt, negative=negative, seed=seed, steps=8), checkpoint)
        [made] = [event.image for event in generate(ours, request) if isinstance(event, Picture)]
        expected: Image.Image = pipeline(
            prompt,
            negative_prompt=negative,
            num_inference_steps=8,
            guidance_scale=request.guidance,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]
        assert made.size == expected.size == (128, 128)
        difference = pixels(made) - pixels(expected)
        assert difference.abs().max() <= 2
        assert pixels(made).float().std() > 10  # something is drawn


def pixels(image: Image.Image) -> torch.Tensor:
    """(H, W, 3) as whole numbers that can be subtracted."""
    data = bytearray(image.convert("RGB").tobytes())
    return torch.frombuffer(data, dtype=torch.uint8).int().view(image.height, image.width, 3)
