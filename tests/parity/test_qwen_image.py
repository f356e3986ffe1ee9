"""Qwen-Image against diffusers: the text encoder and the autoencoder within 1e-4, whole images within 2/255; its real
sizes without a number in them. `test_flow.py` has the rest of what it shares with its relatives."""

import importlib
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from gencli.checkpoints import build
from gencli.checkpoints.assets import LoraRef
from gencli.checkpoints.find import Source
from gencli.errors import GencliError
from gencli.image.diffusion.guidance import with_norms
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.image.prompts.qwen_image import BEGIN
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from gencli.kernels.packed import Packed
from gencli.models import architecture
from tests.oracles.flow import NEGATIVE, PROMPT, SIZE
from tests.oracles.libraries import diffusers, transformers
from tests.oracles.pipelines import assert_same, draw, generator, half_mask, opened, picture
from tests.tiny import flow
from tests.tiny.image import rewrite_json
from tests.tiny.qwen_image import QWEN_IMAGE, TEXT, TOWER, VAE, make_qwen2_5_vl, make_qwen_image

TEXTS = ("", 'a "fox"\n and 你好  {}', PROMPT)
SETTINGS = {"prompt": PROMPT, "steps": 3, "negative": NEGATIVE, **SIZE}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen") / "qwen-image"
    pipe = make_qwen_image(folder)
    return folder, pipe, opened(folder)


@torch.no_grad()
def test_the_text_encoder(made):
    """The template, the ids, and the states from the prompt on, of texts alone and in a batch that pads them."""
    folder, pipe, _ = made
    conditioner = opened(folder).main.conditioner
    for text in TEXTS:
        ids = conditioner.ids(text, None)
        assert ids == pipe.tokenizer(pipe.prompt_template_encode.format(text))["input_ids"]
        assert pipe.prompt_template_encode_start_idx == BEGIN
    ours = conditioner.encode(TEXTS, ImageRequest())
    theirs, mask = pipe.encode_prompt(list(TEXTS))
    assert ours["lengths"].tolist() == mask.sum(1).tolist() and len(set(mask.sum(1).tolist())) > 1
    for mine, one, length in zip(ours["caption"], theirs, ours["lengths"].tolist(), strict=True):
        torch.testing.assert_close(mine[:length], one[:length], atol=1e-4, rtol=0)


@torch.no_grad()
def test_long_prompts(made):
    """They are refused with their length; cut at the right they are what diffusers' pipeline reads."""
    folder, pipe, _ = made
    conditioner, text = opened(folder).main.conditioner, "the red apple " * 400
    with pytest.raises(GencliError, match=r"the prompt has \d+ tokens, and this model reads at most 1024"):
        conditioner.encode([text], ImageRequest())
    ours = conditioner.encode([text], ImageRequest(truncate="right"))
    theirs, _ = pipe.encode_prompt([text])
    torch.testing.assert_close(ours["caption"], theirs, atol=1e-4, rtol=0)
    left = conditioner.ids(text, "left")
    assert left[:BEGIN] == conditioner.ids("", None)[:BEGIN] and left[-20:] == conditioner.ids(text + "", "left")[-20:]


@pytest.mark.parametrize("nested", [True, False])
@torch.no_grad()
def test_the_text_model(tmp_path, nested):
    """By itself it continues texts, from both forms of config.json and under the names of new files too; the vision
    tower is no part of it, and nothing of it is read."""
    theirs = make_qwen2_5_vl(tmp_path, nested=nested)
    ids = torch.randint(0, 380, (2, 17), generator=torch.Generator().manual_seed(1))
    ours = build.load(tmp_path)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=0)
    assert not any("visual" in name for name, _ in ours.named_parameters())
    tensors = load_file(tmp_path / "model.safetensors")
    assert sum(name.startswith("visual.") for name in tensors) > 10
    new = {("" if name == "lm_head.weight" else "model.") + name: one for name, one in tensors.items()}
    new = {name.replace("model.model.", "model.language_model."): one for name, one in new.items()}
    save_file(new, tmp_path / "model.safetensors", {"format": "pt"})
    assert torch.equal(build.load(tmp_path)(ids), ours(ids))


@torch.no_grad()
def test_the_autoencoder(made):
    """Of one frame, images of even and odd sizes of latents."""
    folder, pipe, _ = made
    ours = build.load(folder / "vae")
    x = torch.rand(2, 3, 64, 88, generator=torch.Generator().manual_seed(2)) * 2 - 1
    mean, logvar = ours.encode(x)
    theirs = pipe.vae.encode(x[:, :, None]).latent_dist
    torch.testing.assert_close(mean, theirs.mean[:, :, 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(logvar, theirs.logvar[:, :, 0], atol=1e-4, rtol=0)
    z = torch.randn(2, 16, 5, 7, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours.decode(z), pipe.vae.decode(z[:, :, None]).sample[:, :, 0], atol=1e-4, rtol=0)
    assert (ours.latent_channels, ours.scale) == (16, 8)
    assert all(parameter.ndim in (1, 4) for parameter in ours.parameters())


@torch.no_grad()
def test_an_image_of_odd_sides(made):
    """Of 3 × 5 tokens, whose middle lies between two."""
    _, pipe, pipeline = made
    size = {"width": 80, "height": 48}
    theirs = pipe(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=3, generator=generator(), **size).images[0]
    [ours] = draw(None, pipeline=pipeline, **SETTINGS | size)
    assert_same(ours.image, theirs)


@torch.no_grad()
def test_several_prompts(made):
    """Of several lengths, with a negative one of another."""
    _, pipe, pipeline = made
    given = {"negative_prompt": [NEGATIVE] * 3, "num_inference_steps": 3, "true_cfg_scale": 4.0, **SIZE}
    theirs = pipe(list(TEXTS), generator=[generator(3 + i) for i in range(3)], **given).images
    ours = draw(None, pipeline=pipeline, prompts=list(TEXTS), batch=3, **SETTINGS)
    for one, expected in zip(ours, theirs, strict=True):
        assert_same(one.image, expected)


def told(settings):
    return {
        "prompt": settings["prompt"], "negative_prompt": settings["negative"], "generator": generator(),
        "num_inference_steps": 4, "true_cfg_scale": 4.0, **SIZE,
    }  # fmt: skip


@pytest.mark.parametrize("strength", [0.5, 1.0])
@torch.no_grad()
def test_from_an_image(made, strength):
    _, pipe, pipeline = made
    pipe = diffusers.QwenImageImg2ImgPipeline(**pipe.components)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(image=picture(), strength=strength, **told(SETTINGS)).images[0]
    [ours] = draw(None, init=picture(), pipeline=pipeline, strength=strength, **SETTINGS | {"steps": 4})
    assert_same(ours.image, theirs)


@pytest.mark.parametrize("strength", [0.5, 0.6, 1.0])
@torch.no_grad()
def test_inpainting(made, strength):
    _, pipe, pipeline = made
    pipe = diffusers.QwenImageInpaintPipeline(**pipe.components)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(image=picture(), mask_image=half_mask(), strength=strength, **told(SETTINGS)).images[0]
    settings = SETTINGS | {"steps": 4, "strength": strength}
    [ours] = draw(None, init=picture(), mask=half_mask(), pipeline=pipeline, **settings)
    assert_same(ours.image, theirs)


def test_norms_of_guidance():
    """Each square of 2 × 2 latents keeps its norm and takes the guided direction."""
    guided, cond = torch.randn(2, 3, 16, 4, 6)
    scaled = with_norms(guided, cond, 2)
    for row, column in ((0, 0), (2, 4)):
        part = (..., slice(row, row + 2), slice(column, column + 2))
        norms = [one[part].flatten(1).norm(dim=1) for one in (scaled, cond, guided)]
        torch.testing.assert_close(norms[0], norms[1])
        torch.testing.assert_close(scaled[part], guided[part] * (norms[1] / norms[2])[:, None, None, None])
    assert torch.equal(with_norms(guided, cond, 0), guided)


def test_defaults(made):
    """As the model card draws: a negative prompt of one space, which the empty one is not."""
    folder, _, pipeline = made
    request = resolve(ImageRequest(prompt="a"), pipeline.checkpoint)
    assert (request.steps, request.guidance, request.sampler, request.negative) == (50, 4.0, "euler", " ")
    assert (request.width, request.height, pipeline.checkpoint.multiple) == (1024, 1024, 16)
    conditioner = opened(folder).main.conditioner
    space, empty = (conditioner.negative(request.replace(negative=text)) for text in (" ", ""))
    assert space["lengths"] == empty["lengths"] + 1
    few = open_image_checkpoint(Source("qwen-image-lightning", folder, "folder"))
    request = resolve(ImageRequest(prompt="a"), few)
    assert (request.steps, request.guidance) == (8, 1.0)


def test_an_image_that_is_too_large_for_its_places(made):
    network = made[2].main.network
    with pytest.raises(GencliError, match="reach place 4106, and this model knows 4096"):
        network(torch.zeros(1, 16, 2, 16384), torch.ones(1), torch.zeros(1, 10, 32), torch.tensor([10]))


# --- the transformer alone in a file


@pytest.fixture(scope="module")
def tensors(made):
    return load_file(made[0] / "transformer" / "diffusion_pytorch_model.safetensors")


def image_of(file, **more):
    opened_file = load(open_image_checkpoint(Source(file.name, file, "file")), device="cpu", **more)
    return draw(file, pipeline=opened_file, **SETTINGS)[0].image


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_file_of_the_transformer(made, tensors, prefix):
    """ComfyUI's names are diffusers'; the other parts are those of the folder that it lies in."""
    file = flow.write_single(made[0] / "one.safetensors", tensors, prefix)
    assert_same(image_of(file), draw(None, pipeline=made[2], **SETTINGS)[0].image, tolerance=1)


def test_gguf(made, tensors):
    """Equal to what the packed matrices stand for; they stay packed in memory."""
    seen = flow.write_gguf(made[0] / "Q8_0.gguf", tensors, "Q8_0", "qwen_image")
    assert sum(seen[one] is not tensors[one] for one in seen) > 30
    plain = flow.write_single(made[0] / "exact.safetensors", seen)
    packed_file = load(open_image_checkpoint(Source("x", made[0] / "Q8_0.gguf", "file")), device="cpu")
    assert isinstance(packed_file.main.network.transformer_blocks[0].attn.to_k.weight, Packed)
    assert_same(draw(None, pipeline=packed_file, **SETTINGS)[0].image, image_of(plain))


@pytest.mark.parametrize("scaled", [False, True])
def test_weights_of_8_bits(made, tensors, monkeypatch, scaled):
    """As ComfyUI's files of it have them, plain, or scaled with a number beside each matrix."""
    monkeypatch.setattr("gencli.image.load.NETWORK_LIMIT", 0)
    small, exact = dict(tensors), dict(tensors)
    for name, one in tensors.items():
        if one.ndim == 2 and name.startswith("transformer_blocks"):
            scale = one.abs().max() / 448 if scaled else torch.tensor(1.0)
            small[name] = (one / scale).to(torch.float8_e4m3fn)
            exact[name] = small[name].float() * scale
            small |= {name.replace(".weight", ".scale_weight"): scale.reshape(1)} if scaled else {}
    small |= {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)} if scaled else {}
    file = flow.write_single(made[0] / "fp8.safetensors", small)
    plain = flow.write_single(made[0] / "exact8.safetensors", exact)
    assert_same(image_of(file), image_of(plain))


def test_files_that_are_none(made, tensors, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "nothing"))
    lone = flow.write_single(tmp_path / "qwen_image.safetensors", tensors)
    with pytest.raises(GencliError, match="is Qwen-Image's transformer without the other parts") as refusal:
        open_image_checkpoint(Source("x", lone, "file"))
    assert "models pull Qwen/Qwen-Image" in (refusal.value.hint or "")
    for said, changed in {
        "lacks tensors": {name: one for name, one in tensors.items() if name != "txt_norm.weight"},
        "has not: time_text_embed.addition": {**tensors, "time_text_embed.addition_t_embedding.weight": torch.ones(1)},
        r"transformer_blocks\.1 is missing": {k: v for k, v in tensors.items() if "blocks.1." not in k},
    }.items():
        with pytest.raises(GencliError, match=said):
            image_of(flow.write_single(made[0] / "broken.safetensors", changed))


@pytest.mark.parametrize(
    "start", ["", "transformer.", "diffusion_model.", "lora_unet_", "base_model.model.", "lycoris_"]
)
@pytest.mark.parametrize("module", ["transformer_blocks.1.attn.to_out.0", "transformer_blocks.0.txt_mlp.net.0.proj"])
def test_lora(made, tensors, tmp_path, start, module):
    """Under the names of diffusers, peft, kohya and ComfyUI: W + alpha / r · B A, as diffusers reads them."""
    weight, name = tensors[f"{module}.weight"], module.replace(".", "_") if start[-1:] == "_" else module
    down, up = torch.randn(4, weight.shape[1]), torch.randn(weight.shape[0], 4)
    peft = start in ("transformer.", "base_model.model.")
    sides = ("lora_A", "lora_B") if peft else ("lora_down", "lora_up")
    state = {f"{start}{name}.{side}.weight": one for side, one in zip(sides, (down, up), strict=True)}
    state |= {} if peft else {f"{start}{name}.alpha": torch.tensor(2.0)}
    save_file(state, tmp_path / "lora.safetensors")
    changed = opened(made[0], loras=[LoraRef(tmp_path / "lora.safetensors", 0.5)]).main.network.state_dict()
    wanted = weight + 0.5 * (1 if peft else 2 / 4) * up @ down
    torch.testing.assert_close(changed[f"{module}.weight"], wanted, atol=1e-5, rtol=1e-5)
    assert sum(not torch.equal(changed[key], tensors[key]) for key in tensors) == 1
    if start in ("", "diffusion_model.", "lora_unet_"):
        names = importlib.import_module("diffusers.loaders.lora_conversion_utils")
        theirs = names._convert_non_diffusers_qwen_lora_to_diffusers(dict(state))
        path = f"transformer.{module}"
        delta = theirs[f"{path}.lora_B.weight"] @ theirs[f"{path}.lora_A.weight"]
        torch.testing.assert_close(wanted, weight + 0.5 * delta, atol=1e-5, rtol=1e-5)


# --- real sizes

REAL = QWEN_IMAGE | {
    "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56], "joint_attention_dim": 3584, "num_attention_heads": 24,
    "num_layers": 60,
}  # fmt: skip


@pytest.mark.parametrize(("config", "millions"), [(REAL, 20430.4), (VAE | {"base_dim": 96}, 126.9)], ids=["net", "vae"])
def test_names_and_counts(config, millions):
    """The transformer's 20.43 billion; of the autoencoder, all but what is for further frames."""
    module, own = architecture(config["_class_name"]), {k: v for k, v in config.items() if not k.startswith("_")}
    with torch.device("meta"):
        ours = module.Model(module.Config.from_dict(config)).state_dict()
        whole = getattr(diffusers, config["_class_name"])(**own).state_dict()
    theirs = {}
    for name, tensor in whole.items():
        if (renamed := module.LAYOUT.rename(name)) is not None:
            target, change = renamed
            theirs[target] = (tensor if change is None else change(tensor)).shape
    assert {name: tensor.shape for name, tensor in ours.items()} == theirs
    assert sum(tensor.numel() for tensor in whole.values()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_names_and_counts_of_the_text_model():
    """7.6 billion of the 8.3 are the text model's."""
    real = {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_hidden_layers": 28}
    real |= {"num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 128000}
    config = TEXT | real | {"model_type": "qwen2_5_vl", "vision_config": TOWER}
    module = architecture("qwen2_5_vl")
    text = transformers.Qwen2_5_VLTextConfig(**real)
    with torch.device("meta"):
        ours = module.Model(module.Config.from_dict(config))
        theirs = transformers.Qwen2_5_VLForConditionalGeneration(
            transformers.Qwen2_5_VLConfig(text_config=text.to_dict(), vision_config=TOWER | {"out_hidden_size": 3584})
        )
    names = {name: module.LAYOUT.rename(name) for name in theirs.state_dict()}
    assert ours.state_dict().keys() == {renamed[0] for renamed in names.values() if renamed is not None}
    assert sum(one.numel() for one in ours.parameters()) == 7_615_616_512


# --- what is not supported


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("transformer", {"use_additional_t_cond": True}, "use_additional_t_cond"),
        ("transformer", {"use_layer3d_rope": True}, "use_layer3d_rope"),
        ("transformer", {"guidance_embeds": True}, "guidance_embeds"),
        ("transformer", {"in_channels": 32, "out_channels": 8}, "in_channels"),
        ("transformer", {"in_channels": 32}, "in_channels"),
        ("transformer", {"joint_attention_dim": 64}, "joint_attention_dim"),
        ("transformer", {"axes_dims_rope": [8, 8, 8]}, "axes_dims_rope"),
        ("vae", {"attn_scales": [0.5]}, "attn_scales"),
        ("vae", {"dim_mult": 3}, "dim_mult"),
        ("vae", {"latents_std": [1.0]}, "latents_std"),
        ("text_encoder", {"model_type": "qwen2"}, "text_encoder"),
    ],
)
def test_keys_that_are_not_supported_are_refused_by_name(made, tmp_path, part, changes, said):
    shutil.copytree(made[0], tmp_path / "qwen")
    rewrite_json(tmp_path / "qwen" / part / "config.json", lambda raw: raw | changes)
    with pytest.raises(GencliError, match=said):
        opened(tmp_path / "qwen")


def test_its_editors_are_told_in_one_line(made, tensors, tmp_path):
    shutil.copytree(made[0], tmp_path / "edit")
    layered = {"_class_name": "QwenImageLayeredPipeline"}
    rewrite_json(tmp_path / "edit" / "model_index.json", lambda raw: raw | layered)
    with pytest.raises(GencliError, match="pipeline 'QwenImageLayeredPipeline' is not supported"):
        opened(tmp_path / "edit")
    file = flow.write_single(made[0] / "Qwen-Image-Edit-2509.safetensors", tensors)
    with pytest.raises(GencliError, match="it is a Qwen-Image-Edit by its name, which runs as a folder alone"):
        image_of(file)
