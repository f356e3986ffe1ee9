"""Stable Diffusion in one file: equal to the folder it was made from, to the last bit, and read by diffusers alike.

The files are written by the tables in tests/tiny/single.py, which go the other way than gencli's; that they are true
is shown by diffusers, whose own converter opens the same files.
"""

import functools
import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from gencli.__main__ import main
from gencli.checkpoints import build
from gencli.checkpoints.find import Source
from gencli.errors import GencliError
from gencli.image.generate import Picture, generate
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from gencli.tokens import load_clip_tokenizer, load_tokenizer
from gencli.tokens.clip import vocabulary
from tests.opening import configs, open_file
from tests.oracles.libraries import diffusers, transformers
from tests.oracles.padding import encode_padded
from tests.oracles.pipelines import assert_equal_images, picture
from tests.tiny import single as tiny
from tests.tiny.image import rewrite_json

KINDS = ("sd1", "sd2", "sdxl", "refiner")
PREDICTION = {"sd1": None, "sd2": "v_prediction", "sdxl": None, "refiner": None}
SIZE = {"width": 96, "height": 64}
PROMPT, NEGATIVE = "a red apple on the sun", "blue dog"
# What the folders' files say that changes nothing, and what it is called in the file.
SILENT = {
    "_diffusers_version",
    "torch_dtype",
    "attention_dropout",
    "dropout",
    "initializer_factor",
    "initializer_range",
}
OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Kind → its folder, and the file that is the same; tokenizers lie beside the file."""
    root = tmp_path_factory.mktemp("single")
    found = {}
    for kind in KINDS:
        folder = tiny.make_folder(root / kind, kind)
        place = root / f"{kind}-file"
        place.mkdir()
        for tokenizer in folder.glob("tokenizer*"):
            shutil.copytree(tokenizer, place / tokenizer.name)
        found[kind] = folder, tiny.write_original(place / "model.safetensors", tiny.original(folder, kind))
    return found


def opened(path, **said):
    return open_image_checkpoint(Source(path.name, path, "folder" if path.is_dir() else "file"), **said)


@functools.cache
def pipeline_of(path, prediction=None, betas=None):
    return load(opened(path, prediction=prediction, betas=betas), device="cpu")


def draw(path, sampler="ddim", **said):
    """Our picture."""
    return drawn(pipeline_of(path, **said), sampler)


def drawn(pipeline, sampler="ddim"):
    request = ImageRequest(prompt=PROMPT, negative=NEGATIVE, seed=3, steps=2, sampler=sampler, guidance=5.0, **SIZE)
    init = None
    if pipeline.checkpoint.family.needs_init:
        request, init = request.replace(init="init.png"), picture()
    request = resolve(request, pipeline.checkpoint)
    events = generate(pipeline, request, init=init)
    return next(np.asarray(event.image) for event in events if isinstance(event, Picture))


def in_new_names(tensors):
    """A folder's tensors with today's names of attentions, without buffers."""
    made = {}
    for name, tensor in tensors.items():
        words = [OLD.get(word, word) if "attentions" in name else word for word in name.split(".")]
        made[".".join(words)] = tensor
    made.pop("text_model.embeddings.position_ids", None)
    return made


# --- a file equals its folder ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_are_the_folders(made, kind):
    folder, file = made[kind]
    single = open_file(file, prediction=PREDICTION[kind])
    assert set(single.models) == {path.parent.name for path in folder.glob("*/*.safetensors")}
    for part in single.models:
        tensors = single.parts[part].tensors()
        wanted = in_new_names(load_file(next((folder / part).glob("*.safetensors"))))
        assert set(tensors) == set(wanted)
        for name, tensor in wanted.items():
            assert tensors.shape(name) == tuple(tensor.shape)
            assert torch.equal(tensors.get(name), tensor), name


@pytest.mark.parametrize("kind", KINDS)
def test_configs_are_the_folders(made, kind):
    folder, file = made[kind]
    for part, config in configs(file, prediction=PREDICTION[kind]).items():
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        raw = json.loads((folder / part / name).read_text())
        told = {key: value for key, value in raw.items() if key not in SILENT and value is not None}
        own = {key: value for key, value in config.items() if value is not None}
        if part == "unet" and kind == "sd1":
            assert own.pop("use_linear_projection") is False  # as is so when the key is absent
        if part == "scheduler" and kind == "sd1":
            assert own.pop("prediction_type") == "epsilon"
        assert own == told
    assert (
        open_file(file, prediction=PREDICTION[kind]).family
        == json.loads((folder / "model_index.json").read_text())["_class_name"]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_equal(made, kind):
    """Within one of 255, with two samplers: see `assert_equal_images`."""
    folder, file = made[kind]
    for sampler in ("ddim", "euler"):
        ours = draw(file, sampler, prediction=PREDICTION[kind])
        assert_equal_images(ours, draw(folder, sampler))


@pytest.mark.parametrize("kind", KINDS[:3])  # diffusers' converter asks the hub for the refiner's configs
def test_pictures_against_diffusers(made, kind):
    """diffusers opens the same file with its own converter and draws the same: at most 2/255 apart."""
    measured = tiny.measure(*made[kind], kind, PREDICTION[kind])
    assert measured.component == 0
    assert measured.picture <= 2


def test_the_command_line(made, tmp_path, monkeypatch, capsys):
    """`gencli image` draws the same bytes from both, and `--from` remembers what was said of the file."""
    monkeypatch.chdir(tmp_path)
    (folder, file), call = made["sd2"], ["--steps", "2", "--size", "64x64", "--seed", "5", "--device", "cpu"]
    said = ["--prediction", "v_prediction"]
    assert main(["image", "-m", str(file), PROMPT, *call, *said, "-o", "file.png"]) == 0, capsys.readouterr().err
    assert main(["image", "-m", str(folder), PROMPT, *call, "-o", "folder.png"]) == 0
    assert main(["image", "--from", "file.png", "--device", "cpu", "-o", "again.png"]) == 0, capsys.readouterr().err
    pictures = [np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("file", "folder", "again")]
    assert_equal_images(pictures[0], pictures[1])
    assert np.array_equal(pictures[0], pictures[2])
    assert Image.open(tmp_path / "file.png").text["parameters"].count("Prediction: v_prediction") == 1


def test_predictions_and_betas_are_followed(made):
    """Each changes the picture, of a file and of a folder alike."""
    folder, file = made["sd1"]
    plain = draw(file)
    for said in ({"prediction": "v_prediction"}, {"betas": "linear"}):
        ours = draw(file, **said)
        assert not np.array_equal(ours, plain)
        assert_equal_images(ours, draw(folder, **said))


@pytest.mark.parametrize(("channels", "name"), [(9, "Inpaint"), (8, "InstructPix2Pix")])
def test_variants_run_as_their_folders(tmp_path, monkeypatch, channels, name):
    """UNets that also read a mask, or a picture to edit, told by the channels of their first convolution."""
    monkeypatch.chdir(tmp_path)
    folder = tiny.make_folder(tmp_path / "folder", "sd1", {"in_channels": channels})
    rewrite_json(folder / "model_index.json", lambda raw: raw | {"_class_name": f"StableDiffusion{name}Pipeline"})
    file = tiny.write_original(tmp_path / "model.safetensors", tiny.original(folder, "sd1"))
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save("init.png")
    Image.fromarray(np.uint8(noise > 100) * 255).save("mask.png")
    call = [PROMPT, "--steps", "2", "--seed", "1", "--size", "64x64", "-i", "init.png", "--device", "cpu"]
    call += ["--mask", "mask.png", "--no-paste"] if channels == 9 else []
    assert main(["image", "-m", str(folder), *call, "-o", "a.png"]) == 0
    assert main(["image", "-m", str(file), *call, "-o", "b.png"]) == 0
    pictures = [np.asarray(Image.open(tmp_path / f"{one}.png")) for one in "ab"]
    assert_equal_images(*pictures)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_another_autoencoder(made, tmp_path, kind):
    """--vae in the place of one that is missing: latents are scaled as the family scales them."""
    folder, file = made[kind]
    place = tmp_path / "place"
    shutil.copytree(file.parent, place)
    tensors = {n: t for n, t in tiny.original(folder, kind).items() if not n.startswith(tiny.PREFIXES["vae"])}
    bare = tiny.write_original(place / file.name, tensors)
    with pytest.raises(GencliError, match=r"with no autoencoder in it \(first_stage_model\.\*\)") as caught:
        opened(bare)
    assert "--vae" in caught.value.hint
    for vae in (Source("vae", folder / "vae", "folder"), Source("file", file, "file")):
        checkpoint = opened(bare, vae=vae)
        assert checkpoint.configs["vae"]["scaling_factor"] == tiny.SCALING[kind]
        assert_equal_images(drawn(load(checkpoint, device="cpu")), draw(file))


def test_half_precision_is_kept_and_nothing_is_copied(made, tmp_path):
    """A part's tensors are views of one memory map, the cut ones too; loaded in the file's precision they still are."""
    folder, _ = made["sd2"]
    tensors = {name: tensor.half() for name, tensor in tiny.original(folder, "sd2").items()}
    file = tiny.write_original(tmp_path / "half.safetensors", tensors)
    single = open_file(file, prediction="v_prediction")
    part = single.parts["text_encoder"]
    config, opened = part.config, part.tensors()
    assert {opened.dtype(name) for name in opened} == {"F16"}
    q, k = (opened.get(f"text_model.encoder.layers.3.self_attn.{x}_proj.weight") for x in "qk")
    assert q.untyped_storage().nbytes() == 3 * q.nbytes  # of the whole fused tensor
    assert q.is_contiguous() and torch.equal(
        k, tensors["cond_stage_model.model.transformer.resblocks.3.attn.in_proj_weight"][64:128]
    )
    model = build.load(single.path, config=config, tensors=opened)
    assert next(model.parameters()).dtype == torch.float16
    assert model.encoder.layers[3].self_attn.q_proj.weight.untyped_storage().nbytes() == 3 * q.nbytes


# --- the true shapes -------------------------------------------------------------------------------------------------

# config.json of runwayml/stable-diffusion-v1-5, stabilityai/stable-diffusion-2-1, stable-diffusion-xl-base-1.0 and
# stable-diffusion-xl-refiner-1.0
FACTS = {
    "sd1": {"attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64},
    "sd2": {
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "sample_size": 96,
        "use_linear_projection": True,
    },
    "sdxl": {
        **tiny.UNETS["sdxl"],
        "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048,
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
        "transformer_layers_per_block": [1, 2, 10],
    },
    "refiner": {
        **tiny.UNETS["refiner"],
        "addition_time_embed_dim": 256,
        "attention_head_dim": [6, 12, 24, 24],
        "block_out_channels": [384, 768, 1536, 1536],
        "cross_attention_dim": 1280,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "projection_class_embeddings_input_dim": 2560,
        "sample_size": 128,
        "transformer_layers_per_block": [1, 4, 4, 4],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    },
}
TEXT_FACTS = {
    ("sd1", "text_encoder"): (768, 3072, 12, 12, "quick_gelu"),
    ("sd2", "text_encoder"): (1024, 4096, 16, 23, "gelu"),
    ("sdxl", "text_encoder"): (768, 3072, 12, 12, "quick_gelu"),
    ("sdxl", "text_encoder_2"): (1280, 5120, 20, 32, "gelu"),
    ("refiner", "text_encoder_2"): (1280, 5120, 20, 32, "gelu"),
}
PARAMETERS = {  # as their model cards and folders have them
    "sd1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
    "refiner": {"unet": 2_259_526_660, "vae": 83_653_863, "text_encoder_2": 694_659_840},
}


def text_model(kind, part, **more):
    width, hidden, heads, layers, act = TEXT_FACTS[kind, part]
    sizes = {"hidden_size": width, "intermediate_size": hidden, "num_attention_heads": heads, "hidden_act": act}
    config = transformers.CLIPTextConfig(**sizes, num_hidden_layers=layers, projection_dim=width, vocab_size=49408)
    model = (transformers.CLIPTextModelWithProjection if part.endswith("2") else transformers.CLIPTextModel)(
        config
    ).state_dict()
    return {name if part.endswith("2") else f"text_model.{name}": tensor for name, tensor in model.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_true_shapes(tmp_path, kind):
    """A file as large as the real one, of which nothing but the header is there: configs as published, every tensor's
    shape as in diffusers and transformers, and as many parameters as are known."""
    base = tiny.UNET_BASE | FACTS[kind]
    with torch.device("meta"):
        parts = {
            "unet": diffusers.UNet2DConditionModel(**base).state_dict(),
            "vae": diffusers.AutoencoderKL(**tiny.VAE_BASE).state_dict(),
            **{part: text_model(kind, part) for of, part in TEXT_FACTS if of == kind},
        }
        tensors = tiny.original_parts(base, parts["unet"], parts["vae"])
        for part, prefix in ((p, tiny.TEXT_PREFIXES[kind, p]) for p in parts if p.startswith("text")):
            named = tiny.original_open_clip(parts[part]) if prefix.endswith("model.") else parts[part]
            tensors |= {prefix + name: tensor for name, tensor in named.items()}
    file = tiny.write_header(tmp_path / "whole.safetensors", {name: tensor.shape for name, tensor in tensors.items()})
    single = open_file(file, prediction=PREDICTION[kind])
    for part, wanted in parts.items():
        config, opened = single.parts[part].config, single.parts[part].tensors()
        assert {name: opened.shape(name) for name in opened} == {n: tuple(t.shape) for n, t in wanted.items()}
        assert sum(math.prod(file.shapes[name]) for name, file in opened.stored().items()) == PARAMETERS[kind][part]
        if part.startswith("text"):
            keys = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "hidden_act")
            assert tuple(config[key] for key in keys) == TEXT_FACTS[kind, part]
    unet = {key: value for key, value in single.parts["unet"].config.items() if not key.startswith("_")}
    if kind == "sd1":
        assert unet.pop("use_linear_projection") is False
    assert unet == base
    vae = tiny.VAE_BASE | {"sample_size": 8 * base["sample_size"], "scaling_factor": tiny.SCALING[kind]}
    assert {key: value for key, value in single.parts["vae"].config.items() if key != "_class_name"} == vae


# --- tokenizers ------------------------------------------------------------------------------------------------------

TEXTS = (
    "a photo of an astronaut riding a horse on mars, 8k, Trending on ArtStation!!!",
    "  two   spaces\tand\na line; it's 1984 & 50% off: naïve café, ÀÉÎ, straße — “quotes”…",
    "日本の桜 🌸 привет мир <|endoftext|> émigré x̂",
    "",
)


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_the_vocabulary_inside(tmp_path, pad):
    """The merges that gencli carries make CLIP's 49408 tokens; ids are transformers', with either padding."""
    vocab, merges = vocabulary()
    assert len(vocab) == 49408 and len(merges) == 48894
    known = {"!": 0, "a</w>": 320, "photo</w>": 1125, "astronaut</w>": 18376, "<|startoftext|>": 49406}
    assert {token: vocab[token] for token in known} == known
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs, ours = transformers.CLIPTokenizer.from_pretrained(tmp_path), load_clip_tokenizer(pad)
    assert (ours.pad_id, ours.max_length) == (theirs.pad_token_id, 77)
    for text in TEXTS:
        ids = theirs(text, padding="max_length", max_length=77, truncation=True)["input_ids"]
        assert encode_padded(ours, text)[0] == ids
        assert ours.encode(text) == load_tokenizer(tmp_path).encode(text)


def test_tokenizers_beside_the_file(made, tmp_path):
    """A folder of its own first, then its two files bare, and else CLIP's own; SD 2 and XL's second pad with "!"."""
    folder, file = made["sd2"]
    assert opened(file, prediction="epsilon").tokenizer().pad_id == 0
    alone = tmp_path / file.name
    shutil.copy(file, alone)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(folder / "tokenizer" / name, tmp_path / name)
    bare = opened(alone, prediction="epsilon").tokenizer()
    assert (bare.pad_id, bare.vocab_size) == (0, 544)
    shapes = {name: tuple(tensor.shape) for name, tensor in tiny.original(made["sdxl"][0], "sdxl").items()}
    for name in ("conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
                 "conditioner.embedders.1.model.token_embedding.weight"):  # fmt: skip
        shapes[name] = (49408, shapes[name][1])
    place = tmp_path / "alone"
    place.mkdir()
    single = open_file(tiny.write_header(place / "xl.safetensors", without_schedule(shapes)))
    assert [single.tokenizer(part).pad_id for part in single.tokenizers] == [49407, 0]
    # Files of the same names that are GPT-2's are for another model.
    (place / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 50256}))
    (place / "merges.txt").write_text("#version: 0.2\na b\n")
    single = open_file(place / "xl.safetensors")
    assert [single.tokenizer(part).vocab_size for part in single.tokenizers] == [49408, 49408]


def without_schedule(shapes):
    """Zeros are no noise schedule."""
    return {name: shape for name, shape in shapes.items() if name not in ("betas", "alphas_cumprod")}
