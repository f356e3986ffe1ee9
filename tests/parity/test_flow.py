"""Z-Image, FLUX.1, FLUX.2 klein and PixArt against diffusers: every part within 1e-4, whole images within 2/255; their
noise levels, and their real sizes without a number in them."""

import importlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from gencli.checkpoints import build
from gencli.checkpoints.assets import LoraRef
from gencli.checkpoints.find import Source
from gencli.checkpoints.formats.gguf_draft import plan_own
from gencli.checkpoints.weights import open_file
from gencli.errors import GencliError, UsageError
from gencli.image.diffusion.flow import schedule_of
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.image.prompts.qwen3 import KLEIN_LAYERS, MESSAGE, NO_REASONING
from gencli.image.request import ImageRequest
from gencli.image.resolve import notes, resolve
from gencli.kernels.pack import pack
from gencli.kernels.packed import Packed
from gencli.kernels.scaled import Scaled
from gencli.models import architecture
from tests.oracles.flow import (
    NEGATIVE,
    PROMPT,
    SIZE,
    Checkpoints,
    draw_flux,
    draw_klein,
    draw_sd3,
    draw_z_image,
    flux_texts,
    sd3_texts,
)
from tests.oracles.libraries import diffusers, flux2_klein
from tests.oracles.pipelines import assert_same, draw, generator, opened, opened_once, picture
from tests.tiny import flow
from tests.tiny.hub_cache import COMMIT
from tests.tiny.image import VAE, rewrite_json

NAMES = ("z-image-turbo", "klein", "qwen-image", "chroma", "sigma", "alpha", "sd3.5", "sd3", "flux-dev", "flux-schnell")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Checkpoints(tmp_path_factory.mktemp("flow"))


@pytest.mark.parametrize("name", NAMES)
def test_networks(made, name):
    assert made.network_difference(name) < 1e-4


@pytest.mark.parametrize(
    ("name", "guidance"),
    [
        ("z-image-turbo", 1.0),
        ("z-image-turbo", 3.5),
        ("klein", 1.0),
        ("klein", 3.5),
        ("qwen-image", 1.0),
        ("qwen-image", 4.0),
        ("chroma", 1.0),
        ("chroma", 3.5),
        ("sigma", 4.5),
        ("alpha", 1.0),
        ("sd3.5", 7.0),
        ("sd3", 1.0),
        ("flux-dev", 3.5),
        ("flux-dev", 1.0),
        ("flux-schnell", 1.0),
        ("flux-schnell", 3.5),
    ],
)
def test_images(made, name, guidance, monkeypatch):
    monkeypatch.setattr(made.pipes["klein"].config, "is_distilled", guidance == 1, raising=False)
    assert_same(made.ours(name, guidance=guidance, steps=3), made.theirs(name, guidance=guidance, steps=3))


@pytest.mark.parametrize("name", ["z-image-turbo", "klein"])
@torch.no_grad()
def test_text_encoders(made, name):
    """The template, the ids, and the states of all tokens, padding too where the network reads it."""
    pipe, conditioner = made.pipes[name], opened(made.root / name).main.conditioner
    for text in ("", 'a "fox"\n and 你好  '):
        thinking = name != "klein"
        messages = [{"role": "user", "content": text}]
        templated = pipe.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
        ids = conditioner.ids(text, MESSAGE if thinking else NO_REASONING, None)
        assert ids == pipe.tokenizer(templated)["input_ids"]
        ours = conditioner.encode([text, PROMPT], ImageRequest())
        if name == "klein":
            theirs, _ = pipe.encode_prompt([text, PROMPT])
            torch.testing.assert_close(ours["encoder_hidden_states"], theirs, atol=1e-4, rtol=0)
            continue
        theirs, _ = pipe.encode_prompt([text, PROMPT], do_classifier_free_guidance=False)
        assert ours["lengths"].tolist() == [len(one) for one in theirs]
        for mine, one in zip(ours["caption"], theirs, strict=True):
            torch.testing.assert_close(mine[: len(one)], one, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "length"), [("flux-dev", 512), ("flux-schnell", 256)])
@torch.no_grad()
def test_texts_of_flux(made, name, length):
    """The states of T5 for all of its tokens, padding and all, and CLIP's pooled text; of a long prompt CLIP reads the
    beginning."""
    pipe, conditioner = made.pipes[name], opened(made.root / name).main.conditioner
    tokenizer = made.pipelines[name].checkpoint.tokenizer("tokenizer_2")
    for text in ("", 'A "Fox"\n and 你好  ', "the red apple " * 25):
        ours = conditioner.encode([text], ImageRequest())
        states, pooled = flux_texts(pipe, tokenizer, text, length)
        assert ours["encoder_hidden_states"].shape[1] == length
        torch.testing.assert_close(ours["encoder_hidden_states"], states, atol=1e-4, rtol=0)
        torch.testing.assert_close(ours["text_embeds"], pooled, atol=1e-4, rtol=0)
    with pytest.raises(GencliError, match=f"reads at most {length - 1}"):
        conditioner.encode(["apple " * 600], ImageRequest())


@torch.no_grad()
def test_texts_of_stable_diffusion_3(made, tmp_path):
    """Those of T5 may be away: then zeros stand for them, and the image is diffusers' too."""
    pipe, pipeline = made.pipes["sd3.5"], opened(made.root / "sd3.5")
    tokenizer = pipeline.checkpoint.tokenizer("tokenizer_3")
    for text in ("", 'A "Fox"\n and 你好  ', "the red apple " * 25):
        ours = pipeline.main.conditioner.encode([text], ImageRequest())
        states, pooled = sd3_texts(pipe, tokenizer, text)
        assert ours["encoder_hidden_states"].shape[1] == 77 + 256
        torch.testing.assert_close(ours["encoder_hidden_states"], states, atol=1e-4, rtol=0)
        torch.testing.assert_close(ours["text_embeds"], pooled, atol=1e-4, rtol=0)
    shutil.copytree(made.root / "sd3.5", tmp_path / "no t5", ignore=shutil.ignore_patterns("*_3"))
    away = {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    rewrite_json(tmp_path / "no t5" / "model_index.json", lambda raw: raw | away)
    [ours] = draw(tmp_path / "no t5", prompt=PROMPT, negative=NEGATIVE, steps=3, guidance=5.0, **SIZE)
    assert_same(ours.image, draw_sd3(pipe, None, guidance=5.0))


def test_the_largest_image_of_stable_diffusion_3(made):
    """It is told before anything is loaded, and the network refuses it too."""
    with pytest.raises(UsageError, match=r"--width 400: .* draws at most 384 pixels a side"):
        resolve(ImageRequest(prompt="a", width=400, height=64), made.pipelines["sd3"].checkpoint)
    network = made.pipelines["sd3"].main.network
    with pytest.raises(GencliError, match="at most 24 tokens of 2 × 2 latents a side"):
        network(torch.zeros(1, 16, 8, 50), torch.ones(1), torch.zeros(1, 5, 64), torch.zeros(1, 44))


@torch.no_grad()
def test_the_autoencoder_of_flux2(made):
    ours, pipe = build.load(made.root / "klein" / "vae"), made.pipes["klein"]
    x = torch.rand(2, 3, 64, 96) * 2 - 1
    theirs = torch.cat([pipe._encode_vae_image(one[None], None) for one in x])
    torch.testing.assert_close(ours.encode(x), theirs, atol=1e-4, rtol=0)
    mean, std = pipe.vae.bn.running_mean, (pipe.vae.bn.running_var + pipe.vae.config.batch_norm_eps).sqrt()
    z = torch.randn(2, 32, 4, 6)
    unpacked = pipe._unpatchify_latents(z * std.view(1, -1, 1, 1) + mean.view(1, -1, 1, 1))
    torch.testing.assert_close(ours.decode(z), pipe.vae.decode(unpacked).sample, atol=1e-4, rtol=0)
    assert (ours.latent_channels, ours.scale) == (32, 16)


@pytest.mark.parametrize("name", NAMES)
def test_each_of_a_batch_is_as_alone(made, name):
    """Prompts of several lengths together, and a negative prompt of another one."""
    prompts, settings = ["a red apple", "the dog and the girl ran home together", "sun"], {"steps": 2, "guidance": 2.0}
    pipeline = made.pipelines[name]
    together = draw(None, pipeline=pipeline, prompts=prompts, batch=3, negative="a cat", **SIZE, **settings)
    for i, one in enumerate(together):
        [alone] = draw(None, pipeline=pipeline, prompt=prompts[i], seed=3 + i, negative="a cat", **SIZE, **settings)
        assert_same(one.image, alone.image, tolerance=1)


def test_defaults(made, tmp_path):
    """Few steps by model_index.json (klein) or by name (Turbo), else those of the family."""
    few = {"z-image-turbo": (8, 1.0, "euler"), "klein": (4, 1.0, "euler"), "sigma": (20, 4.5, "dpmpp_2m")}
    few |= {"sd3.5": (28, 7.0, "euler"), "flux-dev": (28, 3.5, "euler"), "flux-schnell": (4, 1.0, "euler")}
    for name, expected in few.items():
        request = resolve(ImageRequest(prompt="a"), made.pipelines[name].checkpoint)
        assert (request.steps, request.guidance, request.sampler) == expected
    assert (request.width, request.height) == (1024, 1024)
    shutil.copytree(made.root / "z-image-turbo", tmp_path / "z")
    request = resolve(ImageRequest(prompt="a"), open_image_checkpoint(Source("z", tmp_path / "z", "folder")))
    assert (request.steps, request.guidance, request.width) == (50, 5.0, 1024)


def test_what_older_files_call_pixart(made, tmp_path):
    shutil.copytree(made.root / "alpha", tmp_path / "old")
    keys = {"_class_name": "Transformer2DModel", "double_self_attention": False, "num_vector_embeds": None}
    rewrite_json(tmp_path / "old" / "transformer" / "config.json", lambda raw: raw | keys)
    settings = {"prompt": PROMPT, "steps": 2, **SIZE}
    [old], [new] = draw(tmp_path / "old", **settings), draw(None, pipeline=made.pipelines["alpha"], **settings)
    assert_same(old.image, new.image, tolerance=0)


@pytest.mark.parametrize("strength", [0.6, 1.0])
@torch.no_grad()
def test_from_an_image(made, strength):
    pipe = diffusers.ZImageImg2ImgPipeline(**made.pipes["z-image-turbo"].components)
    pipe.set_progress_bar_config(disable=True)
    settings = {"prompt": PROMPT, "strength": strength}
    given = {**settings, **SIZE, "num_inference_steps": 4, "guidance_scale": 0.0, "generator": generator()}
    theirs = pipe(image=picture(), **given).images[0]
    [ours] = draw(None, init=picture(), pipeline=made.pipelines["z-image-turbo"], steps=4, **settings)
    assert_same(ours.image, theirs)


@pytest.mark.parametrize("strength", [0.6, 1.0])
@torch.no_grad()
def test_flux_from_an_image(made, strength):
    pipe = diffusers.FluxImg2ImgPipeline(**made.pipes["flux-dev"].components)
    pipe.set_progress_bar_config(disable=True)
    pipeline = made.pipelines["flux-dev"]
    states, pooled = flux_texts(pipe, pipeline.checkpoint.tokenizer("tokenizer_2"), PROMPT, 512)
    given = {"prompt_embeds": states, "pooled_prompt_embeds": pooled, "strength": strength, "guidance_scale": 2.5}
    theirs = pipe(image=picture(), num_inference_steps=4, generator=generator(), **SIZE, **given).images[0]
    [ours] = draw(None, init=picture(), pipeline=pipeline, steps=4, prompt=PROMPT, strength=strength, guidance=2.5)
    assert_same(ours.image, theirs)


def test_the_guidance_that_flux_is_told(made):
    """It changes the image; a negative prompt does not, and that is said."""
    pipeline = made.pipelines["flux-dev"]
    one, same, other = (
        draw(None, pipeline=pipeline, prompt=PROMPT, steps=2, **SIZE, **more)[0].image.tobytes()
        for more in ({"guidance": 3.5}, {"guidance": 3.5, "negative": NEGATIVE}, {"guidance": 1.5})
    )
    assert one == same != other
    for what, values in (("the negative prompt", {"negative": "b"}), ("--guidance-rescale", {"guidance_rescale": 0.7})):
        asked = ImageRequest(prompt="a", **values)
        [note] = notes(asked, resolve(asked, pipeline.checkpoint), pipeline.checkpoint)
        assert note.startswith(f"{what} has no effect") and "reads --cfg-scale as a number" in note


def test_prompts_that_other_tools_call_weighted(made):
    """Without a weight they are texts; with one it is refused, as the network would not follow it."""
    checkpoint = made.pipelines["flux-dev"].checkpoint
    assert not resolve(ImageRequest(prompt="a cat", weighted=True), checkpoint).weighted
    with pytest.raises(UsageError, match="--weighted would have no effect on") as refusal:
        resolve(ImageRequest(prompt="a (cat:1.2)", weighted=True), checkpoint)
    assert refusal.value.hint == "--no-weighted takes brackets as text"


# --- networks alone in a file


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Transformers whose matrices are wide enough to be packed, as folders, with diffusers' pipelines."""
    root = tmp_path_factory.mktemp("wide")
    z = flow.make_z_image(root / "z-turbo", axes_dims=[8, 12, 12], dim=96)
    klein = flow.make_klein(root / "klein", attention_head_dim=32, axes_dims_rope=[8, 8, 8, 8])
    return root, {
        "z-turbo": z,
        "klein": klein,
        "sd3.5": flow.make_sd3(root / "sd3.5"),
        "flux-dev": flow.make_flux(root / "flux-dev"),
        "flux-schnell": flow.make_flux(root / "flux-schnell", "schnell"),
    }


def image_of(file):
    [made] = draw(file, pipeline=load(open_image_checkpoint(Source(file.name, file, "file")), device="cpu"), **SETTINGS)
    return made.image


SETTINGS = {"prompt": PROMPT, "steps": 3, **SIZE}


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("z-turbo", ""),
        ("klein", "model.diffusion_model."),
        ("flux-dev", ""),
        ("flux-schnell", "model.diffusion_model."),
    ],
)
def test_original_names(wide, name, prefix):
    """The other parts are those of the folder that the file lies in."""
    root, pipes = wide
    file = flow.write_single(root / name / "one.safetensors", flow.original_names(root / name / "transformer"), prefix)
    if name.startswith("flux"):
        tokenizer = opened(root / name).checkpoint.tokenizer("tokenizer_2")
        theirs = draw_flux(pipes[name], tokenizer, guidance=3.5 if name == "flux-dev" else 1.0)
    elif name == "sd3.5":
        tokenizer = opened(root / name).checkpoint.tokenizer("tokenizer_3")
        theirs = draw_sd3(pipes[name], tokenizer, negative="")
    else:
        theirs = (draw_klein if name == "klein" else draw_z_image)(pipes[name])
    assert_same(image_of(file), theirs)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("name", ["z-turbo", "klein", "flux-dev", "sd3.5"])
def test_gguf(wide, name, kind):
    """Equal to diffusers with what the packed matrices stand for; they stay packed in memory."""
    root, _ = wide
    tensors = flow.original_names(root / name / "transformer")
    seen = flow.write_gguf(root / name / f"{kind}.gguf", tensors, kind, "lumina2")
    assert sum(seen[one] is not tensors[one] for one in seen) > 15
    plain = flow.write_single(root / name / f"{kind}.safetensors", seen)
    packed = load(open_image_checkpoint(Source("x", root / name / f"{kind}.gguf", "file")), device="cpu")
    settings = SETTINGS | ({"guidance": 1.0} if name == "sd3.5" else {})  # 7 would multiply what rounding does
    exact = load(open_image_checkpoint(Source("x", plain, "file")), device="cpu")
    assert_same(*(draw(None, pipeline=one, **settings)[0].image for one in (exact, packed)))
    network = packed.main.network
    weights = [module.weight for module in network.modules() if isinstance(module, torch.nn.Linear)]
    assert sum(isinstance(weight, Packed) for weight in weights) > 15
    block = network.layers[0].attention if name == "z-turbo" else network.transformer_blocks[0].attn
    side = 128 if name == "sd3.5" else 96
    assert isinstance(block.to_k.weight, Packed) and block.to_k.weight.shape == (side, side)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("large", [False, True])
def test_weights_of_8_bits(wide, tmp_path, monkeypatch, dtype, large):
    """As many files of FLUX.1 have them, in ComfyUI's file of a whole model, whose other parts are noted: equal to
    diffusers with what they stand for. Where they are large they stay so; a LoRA's sum is kept in 16 bits."""
    root, _ = wide
    monkeypatch.setattr("gencli.image.load.NETWORK_LIMIT", 0 if large else 1 << 30)
    tensors = flow.original_names(root / "flux-dev" / "transformer")
    small = {name: one.to(dtype) if one.ndim == 2 else one for name, one in tensors.items()}
    file = root / "flux-dev" / "whole.safetensors"
    whole = {f"model.diffusion_model.{name}": one for name, one in small.items()}
    save_file({**whole, "vae.decoder.x": torch.ones(1), "text_encoders.t5xxl.x": torch.ones(1)}, file)
    exact = flow.write_single(root / "flux-dev" / "exact.safetensors", {k: v.float() for k, v in small.items()})
    checkpoint = open_image_checkpoint(Source("x", file, "file"))
    assert any("its own text encoders and autoencoder are not read" in note for note in checkpoint.notes)
    ours = load(checkpoint, device="cpu")
    network = ours.main.network
    assert (network.context_embedder.weight.dtype == dtype) == large
    assert_same(draw(None, pipeline=ours, **SETTINGS)[0].image, image_of(exact), tolerance=0)
    down, up = torch.randn(4, 96), torch.randn(96, 4)
    name = "transformer.transformer_blocks.0.attn.to_out.0"
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path / "lora.safetensors")
    changed = load(checkpoint, device="cpu", loras=[LoraRef(tmp_path / "lora.safetensors")]).main.network
    weight = changed.transformer_blocks[0].attn.to_out[0].weight
    assert weight.dtype == (torch.bfloat16 if large else torch.float32)
    wanted = small["double_blocks.0.img_attn.proj.weight"].float() + up @ down
    torch.testing.assert_close(weight.float(), wanted, atol=1e-2 if large else 1e-5, rtol=1e-2 if large else 1e-5)


@pytest.mark.parametrize("form", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("large", [False, True])
def test_weights_of_8_bits_with_scales(wide, tmp_path, monkeypatch, form, large):
    """As ComfyUI writes them, in its older form and its newer one: equal to diffusers with what they stand for, split
    matrices too. Where they are large they stay so."""
    root, _ = wide
    monkeypatch.setattr("gencli.image.load.NETWORK_LIMIT", 0 if large else 1 << 30)
    packed, exact = {}, {}
    for name, one in flow.original_names(root / "flux-dev" / "transformer").items():
        stem = name.rpartition(".")[0]
        exact[name] = packed[name] = one.float()
        if one.ndim == 2:
            scale = one.float().abs().max() / 448
            packed[name] = (one.float() / scale).to(torch.float8_e4m3fn)
            packed[f"{stem}.{form}"] = scale
            packed[f"{stem}.{form.replace('weight', 'input')}"] = torch.ones(1)
            exact[name] = packed[name].float() * scale
            if form == "weight_scale":
                told = json.dumps({"format": "float8_e4m3fn"}).encode()
                packed[f"{stem}.comfy_quant"] = torch.tensor(list(told), dtype=torch.uint8)
    packed |= {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)} if form == "scale_weight" else {}
    file = flow.write_single(root / "flux-dev" / "scaled.safetensors", packed)
    checkpoint = open_image_checkpoint(Source("x", file, "file"))
    ours = load(checkpoint, device="cpu")
    network = ours.main.network
    attention = network.transformer_blocks[0].attn
    assert all(isinstance(one.weight, Scaled) == large for one in (network.context_embedder, attention.to_k))
    for planned in plan_own(network, "q8_0") if large else ():  # a packed copy of it
        if len(planned.shape) == 2:
            values = network.get_parameter(planned.name).float()
            rows = torch.cat([pack(planned.kind, some.float()) for some in planned.get().split(7)])
            packed_again = planned.kind == "Q8_0"
            again = Packed("Q8_0", rows).values() if packed_again else rows.view(torch.float32).view_as(values)
            torch.testing.assert_close(again, values, atol=2e-2 if packed_again else 0, rtol=0)
    exact_file = flow.write_single(root / "flux-dev" / "exact.safetensors", exact)
    assert_same(draw(None, pipeline=ours, **SETTINGS)[0].image, image_of(exact_file), tolerance=0)
    down, up = torch.randn(4, 96), torch.randn(96, 4)
    name = "transformer.transformer_blocks.0.attn.to_k"
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path / "lora.safetensors")
    changed = load(checkpoint, device="cpu", loras=[LoraRef(tmp_path / "lora.safetensors")]).main.network
    wanted = exact["double_blocks.0.img_attn.qkv.weight"][96:192] + up @ down
    weight = changed.transformer_blocks[0].attn.to_k.weight
    torch.testing.assert_close(weight.float(), wanted, atol=2e-2 if large else 1e-5, rtol=1e-2 if large else 1e-5)


@pytest.mark.parametrize(("told", "says"), [('{"format": "nvfp4"}', "packed as 'nvfp4'"), ("{", "does not say how")])
def test_other_kinds_of_packing_are_told(tmp_path, told, says):
    tensors = {
        "a.weight": torch.ones(4, 4).to(torch.float8_e4m3fn),
        "a.comfy_quant": torch.tensor(list(told.encode()), dtype=torch.uint8),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(GencliError, match=says):
        open_file(tmp_path / "a.safetensors")


def test_its_other_parts_may_be_in_the_cache(wide, tmp_path, monkeypatch):
    """Of the repository that published them; its own transformer need not be there."""
    root, _ = wide
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--Tongyi-MAI--Z-Image-Turbo"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(
        root / "z-turbo", snapshot, ignore=shutil.ignore_patterns("transformer", "*.gguf", "*_0.safetensors")
    )
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    lone = flow.write_single(tmp_path / "z-turbo.safetensors", flow.original_names(root / "z-turbo" / "transformer"))
    assert_same(image_of(lone), draw(root / "z-turbo", **SETTINGS)[0].image)


@pytest.mark.parametrize("name", ["flux-dev", "flux-schnell"])
def test_a_flux_in_a_file_runs_with_the_other_parts_of_the_other(wide, tmp_path, monkeypatch, name):
    """dev and schnell share them; the noise levels and the guidance are those of the one in the file."""
    root, _ = wide
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    other = "flux-schnell" if name == "flux-dev" else "flux-dev"
    repository = tmp_path / "hub" / f"models--black-forest-labs--FLUX.1-{other.removeprefix('flux-')}"
    shutil.copytree(root / other, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    lone = flow.write_single(tmp_path / "one.safetensors", flow.original_names(root / name / "transformer"))
    opened_alone = open_image_checkpoint(Source("x", lone, "file"))
    asked = [resolve(ImageRequest(prompt="a"), one) for one in (opened_alone, opened(root / name).checkpoint)]
    assert (asked[0].steps, asked[0].guidance) == (asked[1].steps, asked[1].guidance)
    assert_same(image_of(lone), draw(root / name, **SETTINGS)[0].image)


def test_a_network_alone_says_what_it_lacks(wide, tmp_path, monkeypatch):
    root, _ = wide
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "nothing"))
    tensors = flow.original_names(root / "z-turbo" / "transformer")
    lone = flow.write_single(tmp_path / "z_image_turbo.safetensors", tensors)
    with pytest.raises(GencliError, match="without the other parts") as refusal:
        open_image_checkpoint(Source("z", lone, "file"))
    assert "Tongyi-MAI/Z-Image-Turbo" in (refusal.value.hint or "")
    other = flow.write_single(root / "klein" / "z.safetensors", tensors)
    with pytest.raises(GencliError, match="holds a Flux2KleinPipeline"):
        open_image_checkpoint(Source("z", other, "file"))
    broken = {
        "lacks tensors": {name: one for name, one in tensors.items() if name != "layers.1.attention.out.weight"},
        "tensors that Z-Image's transformer has not": {**tensors, "layers.0.nonesuch": torch.ones(1)},
        r"layers\.1 is missing": {name: one for name, one in tensors.items() if not name.startswith("layers.1.")},
    }
    for said, changed in broken.items():
        file = flow.write_single(root / "z-turbo" / "broken.safetensors", changed)
        with pytest.raises(GencliError, match=said):
            image_of(file)
    dev = flow.original_names(root / "klein" / "transformer") | {"guidance_in.in_layer.weight": torch.ones(2, 2)}
    with pytest.raises(GencliError, match="told the guidance"):
        image_of(flow.write_single(root / "klein" / "dev.safetensors", dev))


@pytest.mark.parametrize(
    ("name", "module"),
    [("z-turbo", "transformer.layers.1.attention.to_q"), ("z-turbo", "diffusion_model.layers.0.feed_forward.w1"),
     ("klein", "transformer.transformer_blocks.0.attn.add_k_proj"),
     ("sigma", "transformer.transformer_blocks.2.attn2.to_v"),
     ("klein", "lora_unet_single_transformer_blocks_1_attn_to_out"),
     ("flux-dev", "transformer.single_transformer_blocks.1.proj_mlp"),
     ("sd3.5", "transformer.transformer_blocks.0.attn2.to_q")],
)  # fmt: skip
def test_lora(wide, made, tmp_path, name, module):
    """Equal to the same change made by hand in the folder's weights."""
    root, _ = wide
    folder = made.root / name if name == "sigma" else root / name
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    path = module.partition(".")[2] if "." in module else "single_transformer_blocks.1.attn.to_out"
    weight = tensors[f"{path}.weight"]
    torch.manual_seed(5)
    down, up = torch.randn(4, weight.shape[1]), torch.randn(weight.shape[0], 4)
    sides = (".lora_A.weight", ".lora_B.weight") if "." in module else (".lora_down.weight", ".lora_up.weight")
    save_file({module + sides[0]: down, module + sides[1]: up}, tmp_path / "lora.safetensors")
    shutil.copytree(folder, tmp_path / name)
    changed = tensors | {f"{path}.weight": weight + 0.5 * up @ down}
    save_file(changed, tmp_path / name / "transformer" / "diffusion_pytorch_model.safetensors")
    with_lora = opened(folder, loras=[LoraRef(tmp_path / "lora.safetensors", 0.5)])
    [ours], [expected] = draw(None, pipeline=with_lora, **SETTINGS), draw(tmp_path / name, **SETTINGS)
    assert_same(ours.image, expected.image, tolerance=1)


FUSED = {  # a name in a file, and the tensor of the authors' layout that it changes
    "z-turbo": {
        "diffusion_model.layers.1.attention.qkv": "layers.1.attention.qkv",
        "diffusion_model.layers.0.attention.out": "layers.0.attention.out",
        "lora_unet_noise_refiner_0_attention_qkv": "noise_refiner.0.attention.qkv",
        "lora_unet_final_layer_adaLN_modulation_1": "final_layer.adaLN_modulation.1",
        "transformer.layers.2.attention.to_qkv": "layers.2.attention.qkv",
    },
    "klein": {
        "diffusion_model.double_blocks.0.img_attn.qkv": "double_blocks.0.img_attn.qkv",
        "diffusion_model.double_blocks.1.txt_attn.qkv": "double_blocks.1.txt_attn.qkv",
        "lora_unet_double_blocks_1_img_attn_qkv": "double_blocks.1.img_attn.qkv",
        "lora_unet_double_blocks_0_txt_mlp_2": "double_blocks.0.txt_mlp.2",
        "single_blocks.1.linear1": "single_blocks.1.linear1",
        "lora_transformer_single_blocks_0_linear2": "single_blocks.0.linear2",
        "diffusion_model.double_stream_modulation_img.lin": "double_stream_modulation_img.lin",
        "diffusion_model.final_layer.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
        "transformer.transformer_blocks.0.attn.to_added_qkv": "double_blocks.0.txt_attn.qkv",
    },
    "sd3.5": {
        "diffusion_model.joint_blocks.0.x_block.attn.qkv": "joint_blocks.0.x_block.attn.qkv",
        "lora_unet_joint_blocks_1_context_block_attn_qkv": "joint_blocks.1.context_block.attn.qkv",
        "lora_unet_joint_blocks_1_x_block_attn2_proj": "joint_blocks.1.x_block.attn2.proj",
        "lora_unet_joint_blocks_2_x_block_mlp_fc1": "joint_blocks.2.x_block.mlp.fc1",
        "lora_unet_joint_blocks_0_context_block_mlp_fc2": "joint_blocks.0.context_block.mlp.fc2",
    },
    "flux-dev": {
        "diffusion_model.double_blocks.0.img_attn.qkv": "double_blocks.0.img_attn.qkv",
        "lora_unet_double_blocks_1_txt_attn_qkv": "double_blocks.1.txt_attn.qkv",
        "lora_unet_double_blocks_0_img_mlp_0": "double_blocks.0.img_mlp.0",
        "lora_unet_double_blocks_0_txt_mod_lin": "double_blocks.0.txt_mod.lin",
        "lora_unet_single_blocks_1_linear1": "single_blocks.1.linear1",
        "diffusion_model.single_blocks.0.linear2": "single_blocks.0.linear2",
        "diffusion_model.single_blocks.0.modulation.lin": "single_blocks.0.modulation.lin",
        "diffusion_model.guidance_in.in_layer": "guidance_in.in_layer",
        "lora_unet_final_layer_adaLN_modulation_1": "final_layer.adaLN_modulation.1",
        "transformer.transformer_blocks.0.attn.to_added_qkv": "double_blocks.0.txt_attn.qkv",
    },
}


@pytest.mark.parametrize(
    ("name", "module", "method"),
    [
        *((name, module, "lora") for name in FUSED for module in FUSED[name]),
        *((name, next(iter(FUSED[name])), method) for name in FUSED for method in ("lokr", "dora")),
    ],
)
def test_lora_of_fused_names(wide, tmp_path, name, module, method):
    """Equal to the same change made in the authors' file, whose matrices are then split; and to diffusers' own
    splitting, where it does that."""
    root, _ = wide
    tensors = flow.original_names(root / name / "transformer")
    target = f"{FUSED[name][module]}.weight"
    weight, dotted = tensors[target], "." in module
    generator = torch.Generator().manual_seed(5)
    down, up = (torch.randn(*shape, generator=generator) for shape in ((4, weight.shape[1]), (weight.shape[0], 4)))
    sides = (".lora_A.weight", ".lora_B.weight") if dotted else (".lora_down.weight", ".lora_up.weight")
    state, delta = {module + sides[0]: down, module + sides[1]: up, f"{module}.alpha": torch.tensor(2.0)}, up @ down / 2
    if method == "lokr":
        small = torch.randn(weight.shape[0] // 2, weight.shape[1] // 2, generator=generator)
        one = torch.randn(2, 2, generator=generator)
        state, delta = {f"{module}.lokr_w1": one, f"{module}.lokr_w2": small}, torch.kron(one, small)
    changed = weight + 0.5 * delta
    if method == "dora":
        magnitude = torch.rand(len(weight), 1, generator=generator) + 0.5
        state[f"{module}.dora_scale"] = magnitude
        changed = changed / changed.norm(dim=1, keepdim=True) * magnitude
    save_file(state, tmp_path / "lora.safetensors")
    with_lora = opened(root / name, loras=[LoraRef(tmp_path / "lora.safetensors", 0.5)]).main.network.state_dict()
    file = flow.write_single(root / name / "changed.safetensors", {**tensors, target: changed})
    wanted = load(open_image_checkpoint(Source("x", file, "file")), device="cpu").main.network.state_dict()
    differ = 0
    for key, value in opened_once(root / name).main.network.state_dict().items():
        torch.testing.assert_close(with_lora[key], wanted[key], atol=1e-4, rtol=1e-4)
        differ += not torch.equal(value, wanted[key])
    assert differ == (3 if "qkv" in module else 4 if name == "flux-dev" and "linear1" in module else 1)


@pytest.mark.parametrize(
    "module", ["double_blocks.0.img_attn.qkv", "double_blocks.1.txt_attn.qkv", "single_blocks.1.linear1"]
)
def test_fused_names_are_split_as_diffusers_splits_them(wide, tmp_path, module):
    lora_names = importlib.import_module("diffusers.loaders.lora_conversion_utils")
    root, _ = wide
    weight = flow.original_names(root / "klein" / "transformer")[f"{module}.weight"]
    down, up = torch.randn(4, weight.shape[1]), torch.randn(weight.shape[0], 4)
    state = {f"diffusion_model.{module}.lora_A.weight": down, f"diffusion_model.{module}.lora_B.weight": up}
    save_file(state, tmp_path / "lora.safetensors")
    with_lora = opened(root / "klein", loras=[LoraRef(tmp_path / "lora.safetensors")]).main.network.state_dict()
    plain = opened_once(root / "klein").main.network.state_dict()
    theirs = lora_names._convert_non_diffusers_flux2_lora_to_diffusers(state)
    for name in {key.rpartition(".lora_")[0] for key in theirs}:
        path = f"{name.removeprefix('transformer.')}.weight"
        delta = theirs[f"{name}.lora_B.weight"] @ theirs[f"{name}.lora_A.weight"]
        torch.testing.assert_close(with_lora[path], plain[path] + delta, atol=1e-4, rtol=1e-4)


# --- noise levels


@pytest.mark.parametrize("num", [1, 2, 4, 8, 28, 50, 1000])
@pytest.mark.parametrize("tokens", [64, 256, 1024, 4096, 4400])
def test_dynamic_shift(tokens, num):
    raw = flow.DYNAMIC
    reference = diffusers.FlowMatchEulerDiscreteScheduler.from_config(raw)
    sigmas = torch.linspace(1, 1 / num, num, dtype=torch.float64).numpy()
    share = (tokens - 256) / (4096 - 256)
    laws = {
        "twice": 0.5 + share * 0.65,
        "linear": 0.5 + share * 0.65,
        "steps": flux2_klein.compute_empirical_mu(tokens, num),
    }
    for law, mu in laws.items():
        for terminal in (None, 0.02) if num > 1 else (None,):
            reference.register_to_config(shift_terminal=terminal)
            reference.set_timesteps(num, sigmas=sigmas, mu=mu)
            ours = schedule_of({**raw, "shift_terminal": terminal}).for_image(tokens, law).steps(num)
            found = torch.tensor([step.at.t / 1000 for step in ours] + [0.0])
            torch.testing.assert_close(found, reference.sigmas, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
def test_a_shift_of_what_was_shifted(shift):
    """As Stable Diffusion 3's pipeline has it."""
    reference = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    for num in (1, 3, 28, 1000):
        reference.set_timesteps(num)
        ours = schedule_of({**flow.FLOW, "shift": shift}).for_image(64, "twice").steps(num)
        found = torch.tensor([step.at.t / 1000 for step in ours] + [0.0])
        torch.testing.assert_close(found, reference.sigmas, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
def test_static_shift(shift):
    reference = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    for num in (1, 3, 8, 50):
        reference.set_timesteps(num, sigmas=torch.linspace(1, 1 / num, num, dtype=torch.float64).numpy())
        ours = schedule_of({**flow.FLOW, "shift": shift}).steps(num)
        found = torch.tensor([step.at.t / 1000 for step in ours] + [0.0])
        torch.testing.assert_close(found, reference.sigmas, atol=1e-5, rtol=0)


# --- real sizes

Z_IMAGE = flow.Z_IMAGE | {
    "axes_dims": [32, 48, 48], "cap_feat_dim": 2560, "dim": 3840, "n_heads": 30, "n_kv_heads": 30, "n_layers": 30,
}  # fmt: skip
KLEIN = flow.FLUX2 | {
    "attention_head_dim": 128, "axes_dims_rope": [32, 32, 32, 32], "in_channels": 128, "joint_attention_dim": 7680,
    "num_attention_heads": 24, "num_layers": 5, "num_single_layers": 20,
}  # fmt: skip
FLUX = flow.FLUX | {
    "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56], "joint_attention_dim": 4096, "num_attention_heads": 24,
    "num_layers": 19, "num_single_layers": 38, "pooled_projection_dim": 768,
}  # fmt: skip
SCHNELL = FLUX | {"guidance_embeds": False}
SD35_LARGE = flow.SD3 | {
    "caption_projection_dim": 2432, "dual_attention_layers": [], "joint_attention_dim": 4096,
    "num_attention_heads": 38, "num_layers": 38, "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
    "sample_size": 128,
}  # fmt: skip
SD35_MEDIUM = SD35_LARGE | {
    "caption_projection_dim": 1536, "dual_attention_layers": [*range(13)], "num_attention_heads": 24, "num_layers": 24,
    "pos_embed_max_size": 384,
}  # fmt: skip
SIGMA = flow.PIXART | {
    "attention_head_dim": 72, "caption_channels": 4096, "cross_attention_dim": 1152, "num_attention_heads": 16,
    "num_layers": 28,
}  # fmt: skip
ALPHA = SIGMA | {"use_additional_conditions": True}
WIDE = {"block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32}
FLUX2_VAE = VAE | WIDE | {"_class_name": "AutoencoderKLFlux2", "latent_channels": 32}


@pytest.mark.parametrize(
    ("config", "billions"),
    [
        (Z_IMAGE, 6.155),
        (FLUX, 11.901),
        (SCHNELL, 11.891),
        (FLUX | {"in_channels": 384, "out_channels": 64}, 11.902),
        (SD35_LARGE, 8.146),
        (SD35_MEDIUM, 2.470),
        (KLEIN, 3.876),
        (SIGMA, 0.611),
        (ALPHA, 0.611),
        (FLUX2_VAE, 0.084),
    ],
    ids=[
        "z-image",
        "flux-dev",
        "flux-schnell",
        "flux-fill",
        "sd3.5-large",
        "sd3.5-medium",
        "klein",
        "sigma",
        "alpha",
        "flux2-vae",
    ],
)
def test_names_and_counts(config, billions):
    module, own = architecture(config["_class_name"]), {k: v for k, v in config.items() if k != "_class_name"}
    with torch.device("meta"):
        ours = module.Model(module.Config.from_dict(config)).state_dict()
        theirs = getattr(diffusers, config["_class_name"])(**own).state_dict()
    theirs = {name: tensor.shape for name, tensor in theirs.items() if module.LAYOUT.rename(name) is not None}
    assert {name: tensor.shape for name, tensor in ours.items()} == theirs
    assert sum(tensor.numel() for tensor in ours.values()) / 1e9 == pytest.approx(billions, abs=0.0011)
    assert config is FLUX2_VAE or not set(KLEIN_LAYERS) - set(range(36))


# --- what is not supported


@pytest.mark.parametrize(
    ("name", "part", "changes", "said"),
    [
        ("klein", "transformer", {"guidance_embeds": True}, "guidance_embeds"),
        ("klein", "transformer", {"axes_dims_rope": [4, 4, 8]}, "axes_dims_rope"),
        ("klein", "transformer", {"joint_attention_dim": 64}, "joint_attention_dim"),
        ("klein", "vae", {"decoder_block_out_channels": [8, 8]}, "decoder_block_out_channels"),
        ("klein", "text_encoder", {"num_hidden_layers": 12}, "num_hidden_layers"),
        ("z-image-turbo", "transformer", {"siglip_feat_dim": 16}, "siglip_feat_dim"),
        ("z-image-turbo", "transformer", {"n_kv_heads": 1}, "n_kv_heads"),
        ("z-image-turbo", "transformer", {"in_channels": 32}, "in_channels"),
        ("z-image-turbo", "transformer", {"cap_feat_dim": 64}, "cap_feat_dim"),
        ("z-image-turbo", "scheduler", {"invert_sigmas": True}, "invert_sigmas"),
        ("flux-dev", "transformer", {"in_channels": 384}, "in_channels"),
        ("flux-dev", "transformer", {"joint_attention_dim": 96}, "joint_attention_dim"),
        ("flux-dev", "transformer", {"pooled_projection_dim": 32}, "pooled_projection_dim"),
        ("flux-dev", "transformer", {"axes_dims_rope": [8, 8, 8]}, "axes_dims_rope"),
        ("flux-dev", "transformer", {"out_channels": 32}, "out_channels"),
        ("sigma", "transformer", {"attention_type": "gated"}, "attention_type"),
        ("sigma", "transformer", {"caption_channels": 32}, "caption_channels"),
        ("sigma", "transformer", {"nonesuch": 3}, "nonesuch"),
    ],
)
def test_keys_that_are_not_supported_are_refused_by_name(made, tmp_path, name, part, changes, said):
    shutil.copytree(made.root / name, tmp_path / name)
    file = "scheduler_config.json" if part == "scheduler" else "config.json"
    rewrite_json(tmp_path / name / part / file, lambda raw: raw | changes)
    with pytest.raises(GencliError, match=said):
        opened(tmp_path / name)


@pytest.mark.parametrize(
    "pipeline",
    ["StableDiffusion3ControlNetPipeline", "FluxControlPipeline", "QwenImageLayeredPipeline", "SanaPipeline"],
)
def test_other_wiring_is_told_in_one_line(made, tmp_path, pipeline):
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": pipeline, "transformer": ["diffusers", "X"], "scheduler": ["diffusers", "Y"]})
    )
    for part, file in (("transformer", "config.json"), ("scheduler", "scheduler_config.json")):
        (tmp_path / part).mkdir()
        (tmp_path / part / file).write_text("{}")
    with pytest.raises(GencliError) as refusal:
        opened(tmp_path)
    assert pipeline in refusal.value.message and "Flux2KleinPipeline" in (refusal.value.hint or "")
