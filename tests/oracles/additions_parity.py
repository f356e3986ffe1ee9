"""How far LoRA, embeddings and weighted prompts are from the reference, for the README's table: `measure(root)`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from gencli.checkpoints.assets import EmbeddingRef, LoraRef
from gencli.checkpoints.embeddings import read_embedding
from gencli.checkpoints.find import Source
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.image.pipeline import Pipeline
from gencli.image.request import ImageRequest
from tests.oracles.ldm_parity import Measured, draw
from tests.oracles.libraries import diffusers
from tests.tiny.image import make_stable_diffusion
from tests.tiny.lora import draw_layers, kohya_name, with_layers, write

PROMPT, NEGATIVE = "a red <toy> on the sun", "blue dog"
SIZE = {"width": 96, "height": 64}


def measure(root: Path) -> Iterator[Measured]:
    """Each of them, on a checkpoint made under `root`."""
    pipe = make_stable_diffusion(root / "sd15")
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    checkpoint = open_image_checkpoint(Source("sd15", root / "sd15", "folder"))

    layers = draw_layers({"unet": pipe.unet, "text_encoder": pipe.text_encoder}, lambda path: True, own=True)
    file = write(root / "lora.safetensors", layers, kohya_name)
    ours = load(checkpoint, device="cpu", loras=[LoraRef(file, 0.5)])
    yield _row(
        "LoRA, on any of the above", "`latent-consistency/lcm-lora-sdv1-5`", ours, with_layers(pipe, layers, 0.5)
    )

    vectors = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    save_file({"<toy>": vectors}, root / "learned_embeds.safetensors")
    words = [read_embedding(EmbeddingRef(root / "learned_embeds.safetensors"))]
    theirs = copy.deepcopy(pipe)
    theirs.load_textual_inversion(root / "learned_embeds.safetensors")
    ours = load(checkpoint, device="cpu", embeddings=words)
    yield _row("textual inversion", "`sd-concepts-library/cat-toy`", ours, theirs)

    yield _weighted(load(checkpoint, device="cpu"), pipe)


def _row(family: str, example: str, ours: Pipeline, pipe: Any, **asked: Any) -> Measured:
    """What the text encoder says, the UNet's output, and a picture."""
    request = ImageRequest(prompt=PROMPT, negative=NEGATIVE, **SIZE)
    with torch.no_grad():
        told = ours.main.conditioner.encode([PROMPT], request)
        states = pipe.encode_prompt(PROMPT, "cpu", 1, False)[0]
        x, t = torch.randn((1, 4, 8, 12), generator=torch.Generator().manual_seed(1)), torch.tensor([759.0])
        outputs = ours.main.predict(x, t, told), pipe.unet(x, t, encoder_hidden_states=states).sample
    component = max(_apart(told["encoder_hidden_states"], states), _apart(*outputs))
    picture = draw(ours, prompt=PROMPT, negative=NEGATIVE, guidance=7.5, **SIZE)
    return Measured(family, example, component, _apart_pictures(picture, pipe, prompt=PROMPT, negative_prompt=NEGATIVE))


def _weighted(ours: Pipeline, pipe: Any) -> Measured:
    """The web UI's formula, written out: each chunk's states times their weights, at the mean that they had."""
    texts = [("red apple,", 1.0), ("the sun", 1.5), ("blue dog", 1.0)]
    ids = [pipe.tokenizer(text, add_special_tokens=False)["input_ids"] for text, _ in texts]
    weights = [1.0, *(weight for one, (_, weight) in zip(ids, texts, strict=True) for _ in one)]
    framed = [pipe.tokenizer.bos_token_id, *(id for one in ids for id in one)]
    framed += [pipe.tokenizer.eos_token_id] * (77 - len(framed))
    with torch.no_grad():
        z, empty = (pipe.encode_prompt(text, "cpu", 1, False)[0] for text in (" ".join(text for text, _ in texts), ""))
        assert torch.equal(z, pipe.text_encoder(torch.tensor([framed])).last_hidden_state)
        weighed = z * torch.tensor(weights + [1.0] * (77 - len(weights)))[None, :, None]
        states = torch.cat([weighed * (z.mean() / weighed.mean()), empty], dim=1)
        prompt = "red apple, (the sun:1.5) blue dog BREAK ,"
        comma = [pipe.tokenizer.bos_token_id, *pipe.tokenizer(",", add_special_tokens=False)["input_ids"]]
        comma += [pipe.tokenizer.eos_token_id] * (77 - len(comma))
        states[:, 77:] = pipe.text_encoder(torch.tensor([comma])).last_hidden_state
        told = ours.main.conditioner.encode([prompt], ImageRequest(weighted=True))["encoder_hidden_states"]
    made = draw(ours, prompt=prompt, weighted=True, guidance=7.5, **SIZE)
    embeds = {"prompt_embeds": states, "negative_prompt_embeds": torch.cat([empty, empty], dim=1)}
    apart = _apart_pictures(made, pipe, **embeds)
    return Measured("weights and long prompts", "AUTOMATIC1111's web UI's formula", _apart(told, states), apart)


def _apart_pictures(ours: Any, pipe: Any, **call: Any) -> int:
    drawn = pipe(**call, num_inference_steps=4, guidance_scale=7.5, generator=torch.Generator().manual_seed(3), **SIZE)
    ours, theirs = (np.asarray(image).astype(int) for image in (ours, drawn.images[0]))
    return int(np.abs(ours - theirs).max())


def _apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return (ours - theirs).abs().max().item()
