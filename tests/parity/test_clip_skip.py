"""Clip skip: states of an earlier layer of the text encoder, against diffusers, which counts the layers left out.

gencli counts as the web UI does: 1 is the last layer for Stable Diffusion; SDXL's own is the last but one.
"""

import pytest
import torch

from gencli.errors import UsageError
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from tests.oracles.pipelines import PROMPT, SIZE, assert_same, draw, generator, opened, with_scheduler
from tests.tiny.image import make_stable_diffusion
from tests.tiny.sdxl import make_sdxl


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("skip")
    pipes = {kind: make_stable_diffusion(root / kind, kind) for kind in ("sd15", "sd21")}
    for pipe in pipes.values():  # where diffusers looks for the norm, as transformers had it before version 5
        pipe.text_encoder.__dict__["text_model"] = pipe.text_encoder
    pipes["sdxl"] = make_sdxl(root / "sdxl", "sdxl")
    return {kind: (root / kind, pipe) for kind, pipe in pipes.items()}


@pytest.mark.parametrize(
    ("kind", "ours", "theirs"), [("sd15", 2, 1), ("sd21", 2, 1), ("sdxl", 2, 0), ("sdxl", 1, None)]
)
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_clip_skip(folders, kind, ours, theirs, guidance):
    folder, pipe = folders[kind]
    values = {"prompt": PROMPT, "guidance": guidance, "steps": 3, **SIZE}
    drawn = draw(folder, clip_skip=ours, negative="a dog", **values)[0].image
    expected = with_scheduler(pipe, "ddim")(
        PROMPT, negative_prompt="a dog", guidance_scale=guidance, num_inference_steps=3, generator=generator(),
        clip_skip=theirs, **SIZE,
    ).images[0]  # fmt: skip
    assert_same(drawn, expected)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_chunks_are_of_the_same_layer(folders, kind):
    pipeline = opened(folders[kind][0])
    conditioner = pipeline.main.conditioner
    encoded = [
        conditioner.encode(["an apple"], ImageRequest(clip_skip=2 if kind == "sd15" else 1, weighted=weighted))
        for weighted in (False, True)
    ]
    torch.testing.assert_close(encoded[0]["encoder_hidden_states"], encoded[1]["encoder_hidden_states"])
    last = conditioner.encode(["an apple"], ImageRequest())["encoder_hidden_states"]
    assert torch.equal(last, encoded[0]["encoder_hidden_states"]) == (kind == "sdxl")


def test_more_layers_than_there_are(folders):
    checkpoint = opened(folders["sd15"][0]).checkpoint
    with pytest.raises(UsageError, match="--clip-skip 60: the text_encoder"):
        resolve(ImageRequest(clip_skip=60), checkpoint)
