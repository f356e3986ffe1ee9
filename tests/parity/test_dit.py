"""DiT against diffusers' DiTPipeline (folders) and against its own code's formulas (original files)."""

import json
import shutil

import numpy as np
import pytest
import torch

from gencli.checkpoints import build
from gencli.checkpoints.find import Source
from gencli.errors import GencliError, UsageError
from gencli.image.generate import Picture, generate
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from tests.opening import open_file, open_part
from tests.oracles.libraries import diffusers
from tests.oracles.pipelines import assert_same
from tests.tiny.classes import DIT_SCHEDULER, dit_network, make_dit, make_dit_file
from tests.tiny.image import rewrite_json


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dit") / "dit"
    return folder, make_dit(folder)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    file = tmp_path_factory.mktemp("original") / "DiT-S-2-64x64.safetensors"
    return file, make_dit_file(file)


def opened(folder):
    return load(open_image_checkpoint(Source(folder.name, folder, "folder")), device="cpu")


@pytest.fixture(scope="module")
def pipeline(dit):
    return opened(dit[0])


def draw(pipeline, prompts=None, **values):
    request = resolve(ImageRequest(**{"seed": 3, **values}), pipeline.checkpoint)
    return [event.image for event in generate(pipeline, request, prompts) if isinstance(event, Picture)]


def inputs(batch=3, side=8):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(batch, 4, side, side, generator=generator)
    return x, torch.tensor([0.0, 481.0, 999.0])[:batch], torch.tensor([207, 0, 1000])[:batch]


@pytest.mark.parametrize("side", [8, 12])
@torch.no_grad()
def test_network(dit, side):
    """At its own size, and at another: diffusers squeezes the positions, and so do we."""
    folder, pipe = dit
    x, t, y = inputs(side=side)
    ours = build.load(folder / "transformer")
    torch.testing.assert_close(
        ours(x, t, y), pipe.transformer(x, t.long(), class_labels=y).sample, atol=1e-4, rtol=1e-5
    )


@torch.no_grad()
def test_oblong_pictures(dit):
    """Each row of patches has the positions of that row; diffusers cannot put these together again."""
    folder, _ = dit
    x, t, y = inputs(batch=1, side=12)
    ours = build.load(folder / "transformer")
    assert ours(x[:, :, :8], t, y).shape == (1, 8, 8, 12)
    across, down = ours(x[:, :, :8], t, y), ours(x[:, :, :, :8], t, y)
    assert across.shape == down.transpose(2, 3).shape
    assert not torch.allclose(across, down.transpose(2, 3), atol=1e-2)


def test_saved_positions_are_made_anew(dit, tmp_path):
    from safetensors.torch import load_file, save_file

    folder, pipe = dit
    copy = shutil.copytree(folder / "transformer", tmp_path / "transformer")
    file = next(copy.glob("*.safetensors"))
    save_file(load_file(file) | {"pos_embed.pos_embed": pipe.transformer.pos_embed.pos_embed}, file)
    x, t, y = inputs(1)
    with torch.no_grad():
        assert torch.equal(build.load(copy)(x, t, y), build.load(folder / "transformer")(x, t, y))


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("prompt", ["golden retriever", "207", "  Golden_Retriever "])
def test_pictures(dit, pipeline, prompt, guidance):
    _, pipe = dit
    ours = draw(pipeline, prompt=prompt, guidance=guidance, steps=4)[0]
    generator = torch.Generator("cpu").manual_seed(3)
    theirs = pipe(class_labels=[207], guidance_scale=guidance, generator=generator, num_inference_steps=4).images[0]
    assert_same(ours, theirs)


def test_defaults_are_the_pipelines(pipeline):
    request = resolve(ImageRequest(prompt="1"), pipeline.checkpoint)
    assert (request.guidance, request.steps, request.sampler) == (4.0, 50, "ddim")
    assert (request.width, request.height) == (64, 64)


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
def test_other_samplers(dit, pipeline, sampler):
    """diffusers leaves the learned variance out whatever the scheduler says, so fixed ones are compared here."""
    _, pipe = dit
    kind = {"ddpm": "DDPMScheduler", "dpmpp_2m": "DPMSolverMultistepScheduler"}[sampler]
    scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config)
    other = diffusers.DiTPipeline(transformer=pipe.transformer, vae=pipe.vae, scheduler=scheduler)
    other.set_progress_bar_config(disable=True)
    ours = draw(pipeline, prompt="tench", sampler=sampler, steps=4)[0]
    # diffusers draws each step's noise for the guided half and the other one; ours is of the picture alone
    if sampler == "ddpm":
        theirs = by_ancestral_steps(pipe, 0, 4, learned=False)
    else:
        generator = torch.Generator("cpu").manual_seed(3)
        theirs = other(class_labels=[0], generator=generator, num_inference_steps=4).images[0]
    assert_same(ours, theirs)


@torch.no_grad()
def by_ancestral_steps(pipe, label, steps, *, learned, guidance=4.0):
    """DDPM as Ho et al. 2020 (equation 7) and Nichol & Dhariwal 2021 (equation 15) have it, by the reference."""
    alphas = (1 - torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    grid = list(range(0, 1000, 1000 // steps))[::-1]
    draws = torch.Generator("cpu").manual_seed(3)
    x = torch.randn((1, 4, 8, 8), generator=draws)
    for t, p in zip(grid, [*grid[1:], None], strict=True):
        a, b = alphas[t].item(), 1.0 if p is None else alphas[p].item()
        out = pipe.transformer(torch.cat([x, x]), torch.tensor([t, t]), class_labels=torch.tensor([label, 1000])).sample
        (eps, null), v = out[:, :4].chunk(2), out[:1, 4:]
        eps = null + guidance * (eps - null)
        x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
        beta = 1 - a / b
        x = b**0.5 * beta / (1 - a) * x0 + (a / b) ** 0.5 * (1 - b) / (1 - a) * x
        if p is not None:
            small = beta * (1 - b) / (1 - a)
            share = (v + 1) / 2
            log = share * np.log(beta) + (1 - share) * np.log(small) if learned else torch.tensor(np.log(small))
            x = x + torch.exp(log / 2) * torch.randn((1, 4, 8, 8), generator=draws)
    decoded = pipe.vae.decode((x / pipe.vae.config.scaling_factor).float()).sample[0]
    return ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def test_learned_variance(dit, pipeline):
    """DiT's own way of sampling: ancestral steps whose variance the network says."""
    _, pipe = dit
    options = {"sampler": "ddpm", "sampler_options": {"variance_type": "learned_range"}, "steps": 4}
    ours = draw(pipeline, prompt="tench", **options)[0]
    assert_same(ours, by_ancestral_steps(pipe, 0, 4, learned=True))
    fixed = by_ancestral_steps(pipe, 0, 4, learned=False)
    assert np.abs(np.asarray(ours).astype(int) - fixed).max() > 10  # it does make a difference


def test_lines_and_negative(dit, pipeline):
    """Several classes in a batch, each as alone; a negative prompt takes the place of the class for none."""
    together = draw(pipeline, prompts=["tench", "207"], batch=2, steps=2)
    assert_same(together[1], draw(pipeline, prompt="golden retriever", seed=4, steps=2)[0], tolerance=1)
    plain, against = (draw(pipeline, prompt="tench", negative=n, steps=2)[0] for n in ("", "goldfish"))
    assert np.abs(np.asarray(plain).astype(int) - np.asarray(against)).max() > 5
    assert_same(draw(pipeline, prompt="", guidance=1.0, steps=2)[0], draw(pipeline, steps=2)[0])  # no class is the null


def test_names(pipeline):
    classes = pipeline.checkpoint.classes
    assert [classes.find(name) for name in ("tench", "Tinca tinca", "tench, tinca TINCA", "999")] == [0, 0, 0, 999]
    for prompt, message, hint in [
        ("golden retreiver", "no class 'golden retreiver'", "golden retriever"),
        ("retriever", "no class", "golden retriever, Labrador retriever"),
        ("crane", "several classes", "134 or 517"),
        ("1000", "no class 1000", "0 to 999"),
        ("9" * 5000, "no class", "0 to 999"),
    ]:
        with pytest.raises(UsageError, match=message) as error:
            resolve(ImageRequest(prompt=prompt), pipeline.checkpoint)
        assert hint in error.value.hint
    with pytest.raises(UsageError, match="no class 'dog'"):
        resolve(ImageRequest(prompt="tench", negative="dog"), pipeline.checkpoint)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@torch.no_grad()
def test_original_file(original, tmp_path, suffix):
    """Timesteps as the original tells them: diffusers' class has other wavelengths (freq_shift 1) and other epsilons,
    which the weights were not trained with."""
    file, state = original
    if suffix == "pt":
        file = tmp_path / "DiT-S-2-64x64.pt"
        torch.save(state, file)
    part = open_file(file, allow_pickle=suffix == "pt").parts["transformer"]
    config, tensors = part.config, part.tensors()
    ours = build.load(file, config=config, tensors=tensors)
    x, t, y = inputs()
    torch.testing.assert_close(ours(x, t, y), dit_network(dict(state), x, t, y), atol=1e-4, rtol=1e-5)
    with_shift = build.load(file, config={**config, "freq_shift": 1}, tensors=tensors)
    assert (with_shift(x, t, y) - ours(x, t, y)).abs().max() > 1e-2


def test_original_file_and_converted_folder_draw_alike(original, dit, tmp_path):
    """The file with another's autoencoder, and its tensors in a folder by the names that diffusers gives them."""
    from safetensors.torch import save_file

    file, _ = original
    config, tensors = open_part(file, "transformer")
    folder = shutil.copytree(dit[0], tmp_path / "converted")
    named = {name: tensors.get(name).contiguous().clone() for name in tensors}
    save_file(named, next((folder / "transformer").glob("*.safetensors")))
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    theirs = diffusers.DiTTransformer2DModel.from_pretrained(folder / "transformer")  # it knows these names too
    assert theirs.state_dict().keys() ^ named.keys() == {"pos_embed.pos_embed"}
    vae = Source("vae", dit[0] / "vae", "folder")
    ours = load(open_image_checkpoint(Source("dit", file, "file"), vae=vae), device="cpu")
    for options in ({}, {"sampler": "ddpm", "sampler_options": {"variance_type": "learned_range"}}):
        one, other = (draw(pipeline, prompt="207", steps=2, **options)[0] for pipeline in (ours, opened(folder)))
        assert_same(one, other, tolerance=0)
    plain = draw(ours, prompt="207", steps=2, sampler="ddpm")[0]
    assert_same(plain, draw(ours, prompt="207", steps=2, **options)[0], tolerance=0)  # learned is its own way


def test_files_that_are_refused(original, tmp_path):
    from safetensors.torch import save_file

    file, state = original
    with pytest.raises(GencliError, match="without its autoencoder") as error:
        open_image_checkpoint(Source("dit", file, "file"))
    assert "--vae" in error.value.hint
    pickle = tmp_path / "DiT.pt"
    torch.save(state, pickle)
    with pytest.raises(GencliError, match="is a pickle") as error:
        open_file(pickle)
    assert "--allow-pickle" in error.value.hint
    for change, match in [
        ({"extra.weight": torch.zeros(1)}, "has tensors that a DiT has not: extra.weight"),
        ({"x_embedder.proj.weight": torch.zeros(100, 4, 2, 2)}, "100 wide"),
        ({"blocks.7.attn.proj.bias": torch.zeros(384)}, r"blocks.2 is missing"),
        ({"time_embed.0.weight": torch.zeros(1), "input_blocks.0.0.weight": torch.zeros(1), "out.2.weight":
          torch.zeros(1), "output_blocks.0.0.x": torch.zeros(1)}, "two networks"),
    ]:  # fmt: skip
        broken = tmp_path / "broken.safetensors"
        save_file({**state, **change}, broken)
        with pytest.raises(GencliError, match=match):
            open_file(broken)
    lacking = {name: tensor for name, tensor in state.items() if name != "final_layer.linear.bias"}
    save_file(lacking, tmp_path / "lacking.safetensors")
    config, tensors = open_part(tmp_path / "lacking.safetensors", "transformer")
    with pytest.raises(GencliError, match=r"lacks tensors: proj_out_2\.bias"):
        build.load(tmp_path, config=config, tensors=tensors)


@pytest.mark.parametrize(
    ("file", "change", "match"),
    [
        ("transformer/config.json", {"norm_type": "ada_norm_single"}, "PixArtTransformer2DModel"),
        ("transformer/config.json", {"caption_channels": 4096}, "caption_channels"),
        ("transformer/config.json", {"patch_size": 3}, "patch_size = 3 does not divide 8"),
        ("transformer/config.json", {"in_channels": 16}, "in_channels = 16"),
        ("transformer/config.json", {"num_embeds_ada_norm": 5}, "names a class 5"),
        ("model_index.json", {"id2label": ["tench"]}, "id2label is not a table"),
        ("model_index.json", {"vae": [None, None]}, "without vae"),
    ],
)
def test_folders_that_are_refused_by_name(dit, tmp_path, file, change, match):
    folder = shutil.copytree(dit[0], tmp_path / "odd")
    rewrite_json(folder / file, lambda raw: raw | change)
    with pytest.raises(GencliError, match=match):
        checkpoint = open_image_checkpoint(Source("odd", folder, "folder"))
        assert checkpoint.classes is not None
        load(checkpoint, device="cpu")


def test_the_schedule_of_the_original_is_the_hubs(original):
    scheduler = open_file(original[0]).parts["scheduler"].config
    assert {key: scheduler[key] for key in scheduler if key in DIT_SCHEDULER} == {
        key: value for key, value in DIT_SCHEDULER.items() if key in scheduler
    }


def test_pickled_folder(dit, tmp_path):
    """The weights as .bin, as facebook/DiT-XL-2-256 has them: read where that is allowed."""
    from safetensors.torch import load_file

    folder = shutil.copytree(dit[0], tmp_path / "pickled")
    for file in folder.glob("*/*.safetensors"):
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.unlink()
    source = Source("pickled", folder, "folder")
    with pytest.raises(GencliError, match="no weights in safetensors"):
        load(open_image_checkpoint(source), device="cpu")
    pickled = load(open_image_checkpoint(source, allow_pickle=True), device="cpu")
    assert_same(draw(pickled, prompt="tench", steps=1)[0], draw(opened(dit[0]), prompt="tench", steps=1)[0], 0)
