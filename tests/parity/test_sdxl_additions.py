"""LoRA, textual inversion and weighted prompts for SDXL, whose prompts go through two text encoders."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gencli.checkpoints.assets import EmbeddingRef, LoraRef
from gencli.errors import GencliError
from gencli.image.generate import Picture, generate
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from tests.oracles import embeddings
from tests.oracles.image_lora import (
    ALL,
    ATTENTION,
    PROJECTIONS,
    assert_same_weights,
    by_diffusers,
    changed_by,
    opened,
    parts_of,
    wanted,
)
from tests.oracles.libraries import diffusers
from tests.oracles.weighted_prompts import expected_chunks
from tests.tiny.lora import diffusers_name, draw_layers, kohya_xl_name, original_names, with_layers, write
from tests.tiny.sdxl import make_sdxl

PARTS = ("unet", "text_encoder", "text_encoder_2")
RESNETS = re.compile(r".*(conv1|conv2|conv_shortcut)")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("xl") / "sdxl"
    return folder, make_sdxl(folder, unet={"layers_per_block": 1, "transformer_layers_per_block": [1, 1, 2]})


FORMS = {
    "diffusers": (diffusers_name, (ATTENTION, PROJECTIONS), None),
    "kohya, diffusers' blocks": (kohya_xl_name, (ATTENTION, PROJECTIONS), 2.0),
    "kohya, the original blocks": (None, (ATTENTION, PROJECTIONS, RESNETS), 2.0),
}


@pytest.mark.parametrize("form", FORMS)
def test_lora_weights_are_those_that_diffusers_fuses(sdxl, tmp_path, form):
    folder, pipe = sdxl
    name, patterns, alpha = FORMS[form]
    layers = draw_layers(parts_of(pipe, PARTS), wanted(*patterns, even=True), alpha=alpha)
    file = write(tmp_path / "lora.safetensors", layers, name or original_names(pipe.unet))
    assert any("lora_unet_input_blocks" in key for key in load_file(file)) == (name is None)
    theirs = by_diffusers(pipe, file)
    assert_same_weights(opened(folder, LoraRef(file, 0.7)), theirs, pipe, changed_by(layers))


def test_lora_of_every_module_and_its_picture(sdxl, tmp_path):
    """Both ends, time and size embeddings, samplers and the projection of the second text encoder: by the formula."""
    folder, pipe = sdxl
    layers = draw_layers(parts_of(pipe, PARTS), wanted(ALL), own=True)
    file = write(tmp_path / "lora.safetensors", layers, original_names(pipe.unet))
    keys = set(load_file(file))
    assert {
        "lora_unet_label_emb_0_2.alpha",
        "lora_te2_text_projection.alpha",
        "lora_unet_output_blocks_1_2_conv.alpha",
    } < keys
    pipeline, theirs = opened(folder, LoraRef(file, 0.2)), with_layers(pipe, layers, 0.2)
    assert_same_weights(pipeline, theirs, pipe, changed_by(layers))
    assert_pictures(pipeline, theirs, prompt="a red apple", negative="dog")


def assert_pictures(pipeline, pipe, prompt, negative):
    """Ours and theirs from one seed, at most 2/255 apart."""
    values = {"prompt": prompt, "negative": negative, "guidance": 5.0, "steps": 3, "seed": 3, "width": 64, "height": 64}
    request = resolve(ImageRequest(**values), pipeline.checkpoint)
    [ours] = [event.image for event in generate(pipeline, request) if isinstance(event, Picture)]
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        prompt,
        negative_prompt=negative,
        guidance_scale=5.0,
        num_inference_steps=3,
        width=64,
        height=64,
        generator=torch.Generator("cpu").manual_seed(3),
    ).images[0]
    ours, theirs = (np.asarray(image).astype(int) for image in (ours, theirs))
    assert ours.std() > 10
    assert np.abs(ours - theirs).max() <= 2


def test_embeddings_of_both_text_encoders(sdxl, tmp_path):
    """diffusers is given each by hand, as its documentation shows. The prompt's end is told to it by the right token:
    with the config's eos_token_id 2 it takes the new word for the end (see test_embeddings)."""
    folder, pipe = sdxl
    tensors = {"clip_l": embeddings.vectors(2, 24), "clip_g": embeddings.vectors(2, 32, 1)}
    save_file(tensors, tmp_path / "toy.safetensors")
    ours = embeddings.opened(folder, EmbeddingRef(tmp_path / "toy.safetensors"))
    theirs = copy.deepcopy(pipe)
    theirs.load_textual_inversion(
        tensors["clip_l"], token="toy", text_encoder=theirs.text_encoder, tokenizer=theirs.tokenizer
    )
    theirs.load_textual_inversion(
        tensors["clip_g"], token="toy", text_encoder=theirs.text_encoder_2, tokenizer=theirs.tokenizer_2
    )
    end = theirs.tokenizer.eos_token_id
    for encoder in (theirs.text_encoder, theirs.text_encoder_2):
        encoder.config.eos_token_id = end
        for module in encoder.modules():
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = end
    prompt = "a red toy, the sun"
    with torch.inference_mode():
        told = ours.main.conditioner.encode([prompt], ImageRequest(width=64, height=64))
        states, _, pooled, _ = theirs.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)
    torch.testing.assert_close(told["encoder_hidden_states"], states, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(told["text_embeds"], pooled, atol=1e-5, rtol=1e-5)
    assert_pictures(ours, theirs, prompt, "toy dog")


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"<toy>": torch.ones(1, 24)}, "its vectors are 24 wide, and the words of sdxl 24 and 32"),
        ({"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280)}, "768 and 1280 wide"),
        ({"clip_l": torch.ones(2, 24), "clip_g": torch.ones(1, 32)}, "has 2 and 1 vectors for its two text encoders"),
    ],
)
def test_embeddings_that_do_not_fit(sdxl, tmp_path, tensors, says):
    save_file(tensors, tmp_path / "toy.safetensors")
    assert says in embeddings.refusal(sdxl[0], EmbeddingRef(tmp_path / "toy.safetensors"))


def test_a_lora_of_stable_diffusion_1_says_so(sdxl, tmp_path):
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{key}.lora_down.weight": torch.ones(2, 768), f"{key}.lora_up.weight": torch.ones(64, 2)}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(GencliError, match="does not fit") as caught:
        opened(sdxl[0], LoraRef(tmp_path / "a.safetensors"))
    assert "made for Stable Diffusion 1" in caught.value.hint


@torch.inference_mode()
def test_weighted_states_and_the_first_chunk_pooled(sdxl):
    """Each encoder's last layer but one times the weights, at its own mean; pooled is the first chunk, unweighed."""
    folder, pipe = sdxl
    words = [("red apple", 1.0), ("the sun,", 1.5), ("blue dog", 0.5)] * 12
    prompt = " ".join(text if weight == 1 else f"({text}:{weight})" for text, weight in words)
    told = opened(folder).main.conditioner.encode([prompt], ImageRequest(weighted=True, width=64, height=64))
    joined = []
    for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        tokens = [
            (id, weight) for text, weight in words for id in tokenizer(text, add_special_tokens=False)["input_ids"]
        ]
        chunks = expected_chunks(tokenizer, tokens, tokenizer.pad_token_id)
        assert len(chunks) > 1
        states = []
        for i, (ids, weights) in enumerate(chunks):
            output = encoder(torch.tensor([ids]), output_hidden_states=True)
            if encoder is pipe.text_encoder_2 and i == 0:
                torch.testing.assert_close(told["text_embeds"], output.text_embeds, atol=1e-5, rtol=1e-5)
            z = output.hidden_states[-2]
            weighed = z * torch.tensor(weights)[None, :, None]
            states.append(weighed * (z.mean() / weighed.mean()))
        joined.append(torch.cat(states, dim=1))
    torch.testing.assert_close(told["encoder_hidden_states"], torch.cat(joined, dim=-1), atol=1e-5, rtol=1e-5)
