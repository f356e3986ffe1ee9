"""SDXL's refiner, after the base model and alone, against diffusers: latents within 1e-4, pictures within 2/255."""

import pytest
import torch

from gencli.checkpoints.find import Source
from gencli.errors import GencliError, UsageError
from gencli.image import stages
from gencli.image.generate import Denoised, Noise, Picture, _prepare, generate
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from tests.oracles.pipelines import (
    NEGATIVE,
    PROMPT,
    SCHEDULERS,
    SIZE,
    assert_same,
    draw,
    generator,
    half_mask,
    opened_once,
    picture,
)
from tests.tiny.image import make_stable_diffusion
from tests.tiny.sdxl import make_refiner, make_sdxl


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders and diffusers' pipelines of a base model and its refiner, and ours of both together."""
    root = tmp_path_factory.mktemp("refiner")
    base = make_sdxl(root / "base")
    refiner = make_refiner(root / "refiner", root / "base", base)
    checkpoint = stages.add_refiner(opened(root / "base"), opened(root / "refiner"))
    return root, base, refiner, load(checkpoint, device="cpu")


def opened(folder):
    return open_image_checkpoint(Source(folder.name, folder, "folder"))


def request(pipeline, **values):
    values = {"prompt": PROMPT, "seed": 3, "refiner": "refiner", "steps": 5, **SIZE, **values}
    return resolve(ImageRequest(**values), pipeline.checkpoint)


def latents(pipeline, asked):
    """What the last stage hands to the autoencoder."""
    noise, output = Noise([asked.seed], pipeline.device), None
    with torch.inference_mode():
        for run in _prepare(pipeline, asked, None, None, (), {}):
            walk = run([asked.prompt], 0, noise, output)
            try:
                while True:
                    next(walk)
            except StopIteration as end:
                output = end.value
    return output.x


def schedulers(made, sampler):
    import diffusers

    for pipe in made[1:3]:
        pipe.scheduler = getattr(diffusers, SCHEDULERS[sampler]).from_config(pipe.scheduler.config)


def theirs(made, sampler, start=0.8, steps=5, refiner_steps=None, seed=3, output_type="latent", **values):
    """Base, then refiner, as diffusers' documentation has it."""
    _, base, refiner, _ = made
    schedulers(made, sampler)
    draws = generator(seed)
    values = {"guidance_scale": 5.0, "generator": draws, **values}
    halfway = base(
        PROMPT, num_inference_steps=steps, denoising_end=start, output_type="latent", **values, **SIZE
    ).images
    values |= {"num_inference_steps": refiner_steps or steps, "denoising_start": start}
    return refiner(PROMPT, image=halfway, output_type=output_type, **values, **_original_size()).images


def _original_size():
    return {"original_size": (SIZE["height"], SIZE["width"]), "target_size": (SIZE["height"], SIZE["width"])}


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
@pytest.mark.parametrize(("guidance", "negative"), [(1.0, None), (5.0, None), (5.0, NEGATIVE)])
def test_latents_of_base_and_refiner(made, sampler, guidance, negative):
    ours = latents(made[3], request(made[3], sampler=sampler, guidance=guidance, negative=negative))
    expected = theirs(made, sampler, guidance_scale=guidance, negative_prompt=negative)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_pictures_of_base_and_refiner(made, sampler):
    """Several pictures in batches, each equal to itself alone and to diffusers'."""
    pipeline = made[3]
    asked = request(pipeline, sampler=sampler, count=3, batch=2, refiner_start=0.5)
    events = list(generate(pipeline, asked))
    pictures = [event for event in events if isinstance(event, Picture)]
    for i, made_here in enumerate(pictures):
        [expected] = theirs(made, sampler, start=0.5, seed=3 + i, output_type="pil")
        assert_same(made_here.image, expected)
        [alone] = [event for event in generate(pipeline, made_here.request) if isinstance(event, Picture)]
        assert_same(made_here.image, alone.image, tolerance=1)
    shown = [(event.stage.name, event.index, event.total) for event in events if isinstance(event, Denoised)]
    assert shown[:5] == [("base", 0, 2), ("base", 1, 2), ("refiner", 0, 3), ("refiner", 1, 3), ("refiner", 2, 3)]
    assert {event.stage.count for event in events if isinstance(event, Denoised)} == {2}


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_a_refiner_of_other_steps(made, sampler):
    """It takes the base model's latents as they are, at its own first noise level."""
    asked = request(made[3], sampler=sampler, stage=("refiner:steps=9",))
    torch.testing.assert_close(latents(made[3], asked), theirs(made, sampler, refiner_steps=9), atol=1e-4, rtol=0)


def test_settings_of_the_refiner_alone(made):
    pipeline = made[3]
    plain = latents(pipeline, request(pipeline))
    for setting in ("cfg-scale=1", "sampler=euler", "eta=1", "steps=20"):
        assert (latents(pipeline, request(pipeline, stage=(f"refiner:{setting}",))) - plain).abs().max() > 1e-3, setting
    for setting in ("cfg-scale=5", "sampler=ddim", "eta=0", "steps=5", "spacing=leading"):  # as the base model has them
        torch.testing.assert_close(latents(pipeline, request(pipeline, stage=(f"refiner:{setting}",))), plain)


def test_several_prompts_and_weights(made):
    """Prompts in one batch, of different chunks when weighted, are each as alone; weights change both stages."""
    pipeline = made[3]
    prompts = ["a red apple", "a (blue:1.6) dog " * 20]
    asked = request(pipeline, weighted=True, refiner_start=0.5, batch=2, steps=4)
    together = [event for event in generate(pipeline, asked, prompts) if isinstance(event, Picture)]
    for i, one in enumerate(together):
        assert (one.request.prompt, one.request.seed) == (prompts[i], 3 + i)
        [alone] = [event for event in generate(pipeline, one.request) if isinstance(event, Picture)]
        assert_same(one.image, alone.image, tolerance=1)
    plain, weighted = (
        latents(pipeline, request(pipeline, weighted=on, prompt="a (blue:1.6) dog")) for on in (False, True)
    )
    assert (plain - weighted).abs().max() > 1e-3


def test_what_a_mask_keeps_the_refiner_keeps(made):
    """With a mask all of whose pixels are black nothing changes but by the autoencoder."""
    pipeline = made[3]
    init, black = picture(), half_mask().point(lambda value: 0)
    asked = request(pipeline, init="init.png", mask="mask.png", strength=0.8, steps=10, paste=False)
    *_, drawn = generate(pipeline, asked, init=init, mask=black)
    encoded = pipeline.codec.encode(init)
    kept = encoded.sample(lambda: Noise([3], pipeline.device)(tuple(encoded.mean.shape[1:])), 1)
    assert_same(drawn.image, pipeline.codec.decode(kept), tolerance=0)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_the_refiner_alone(made, guidance, strength):
    root, _, refiner, _ = made
    values = {"strength": strength, "negative": NEGATIVE, "guidance": guidance, "steps": 10}
    ours = draw(root / "refiner", init=picture(), prompt=PROMPT, **values)
    schedulers(made, "ddim")
    [expected] = refiner(
        PROMPT,
        negative_prompt=NEGATIVE,
        image=picture(),
        strength=strength,
        guidance_scale=guidance,
        num_inference_steps=10,
        generator=generator(),
    ).images
    assert_same(ours[0].image, expected)


def test_what_cannot_be_followed(made, tmp_path):
    root, _, _, pipeline = made
    with pytest.raises(UsageError, match="refines an image, and needs one to start from"):
        resolve(ImageRequest(), opened_once(root / "refiner").checkpoint)
    make_stable_diffusion(tmp_path / "sd", "sd15")
    with pytest.raises(GencliError, match="which sd is not"):
        stages.add_refiner(opened(tmp_path / "sd"), opened(root / "refiner"))
    with pytest.raises(GencliError, match="--refiner sd does not continue what base draws"):
        stages.add_refiner(opened(root / "base"), opened(tmp_path / "sd"))
    with pytest.raises(UsageError, match="base has no such stage"):
        stages.plan(request(pipeline, stage=("prior:steps=3",)), pipeline.checkpoint)
    with pytest.raises(UsageError, match=r"none of 5 steps lies between 0.999 and 1"):
        stages.plan(request(pipeline, refiner_start=0.999), pipeline.checkpoint)
    with pytest.raises(UsageError, match="sampler euler has no option eta"):
        stages.plan(request(pipeline, stage=("refiner:sampler=euler", "refiner:eta=1")), pipeline.checkpoint)
