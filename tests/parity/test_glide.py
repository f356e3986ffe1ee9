"""GLIDE against its formulas (`tests.oracles.glide`): every part, and whole images, 2/255 apart at most."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from gencli.checkpoints.build import load as load_part
from gencli.checkpoints.find import Source
from gencli.checkpoints.formats import glide as glide_files
from gencli.checkpoints.open import open_checkpoint
from gencli.errors import GencliError, UsageError
from gencli.image import stages
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from gencli.models import architecture
from gencli.tokens import load_tokenizer
from tests.oracles import glide
from tests.oracles.guided_sampling import picture as pixels
from tests.oracles.libraries import transformers
from tests.oracles.pipelines import assert_same, draw, picture
from tests.tiny.classes import write
from tests.tiny.glide import make_glide
from tests.tiny.hub_cache import COMMIT, put

PROMPT, NEGATIVE = "A Girl with her DOG", "soup"
SMALL = {"width": 8, "height": 8}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("glide")


@pytest.fixture(scope="module")
def theirs(root):
    return make_glide(root)


@pytest.fixture(scope="module")
def ids(root, theirs):
    """GPT-2's tokens of a text in lower case, by transformers."""
    tokenizer = transformers.GPT2Tokenizer(str(root / "vocab.json"), str(root / "merges.txt"))
    return lambda text: tokenizer.encode(text.lower(), add_special_tokens=False)


def opened(root, name, **more):
    file = root / f"{name}.safetensors"
    return open_image_checkpoint(Source(file.name, file, "file"), **more)


@pytest.fixture(scope="module")
def loaded(root, theirs):
    kinds = {name: load(opened(root, name), device="cpu") for name in ("base", "base_inpaint")}
    kinds["both"] = load(stages.add_upscaler(opened(root, "base"), opened(root, "upsample")), device="cpu")
    painting = stages.add_upscaler(opened(root, "base_inpaint"), opened(root, "upsample_inpaint"))
    return kinds | {"painting": load(painting, device="cpu")}


@torch.no_grad()
@pytest.mark.parametrize("name", ["base", "base_inpaint", "upsample", "upsample_inpaint"])
def test_parts(root, theirs, ids, name):
    parts = open_checkpoint(Source(name, root / f"{name}.safetensors", "file")).parts
    text, unet = (
        load_part(root, config=parts[part].config, tensors=parts[part].tensors()) for part in ("text_encoder", "unet")
    )
    network, tokens = theirs[name], ids(PROMPT)
    torch.manual_seed(1)
    x, t = torch.randn(2, network.inputs, 8, 12), torch.tensor([981.0, 20.0])
    padded = torch.tensor([[*tokens, *[7] * (16 - len(tokens))], [7] * 16])
    states, embeds = text(padded, torch.arange(16) < torch.tensor([[len(tokens)], [0]]))
    ours = unet(x, t, encoder_hidden_states=states, text_embeds=embeds)
    for i, one in enumerate((tokens, [])):
        expected = network.text(one)
        assert expected[0].std() > 0.1
        torch.testing.assert_close(states[i : i + 1], expected[0], atol=5e-5, rtol=1e-5)
        torch.testing.assert_close(embeds[i : i + 1], expected[1], atol=5e-5, rtol=1e-5)
        expected = torch.cat(network.told(x[i : i + 1], float(t[i]), one), 1)
        torch.testing.assert_close(ours[i : i + 1], expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("guidance", "negative"), [(1.0, ""), (6.0, NEGATIVE)], ids=["unguided", "guided"])
def test_the_first_stage(loaded, theirs, ids, guidance, negative):
    settings = {"prompt": PROMPT, "negative": negative, "guidance": guidance, "steps": 3, **SMALL}
    small = glide.draw(theirs["base"], ids(PROMPT), ids(negative), scale=guidance, steps=3)
    assert_same(draw(None, pipeline=loaded["base"], **settings)[0].image, pixels(small))


def test_both_stages(loaded, theirs, ids):
    """The second, of 27 steps, is not guided, whatever the first is."""
    settings = {"prompt": PROMPT, "negative": NEGATIVE, "guidance": 6.0, "steps": 3, **SMALL}
    large = glide.both(theirs["base"], theirs["upsample"], ids(PROMPT), ids(NEGATIVE), scale=6.0, steps=3)
    assert_same(draw(None, pipeline=loaded["both"], **settings)[0].image, large)


def test_each_of_a_batch_is_as_alone(loaded, theirs, ids):
    settings = {"prompt": PROMPT, "steps": 3, **SMALL}
    many = draw(None, pipeline=loaded["both"], count=2, batch=2, **settings)
    for i, one in enumerate(many):
        expected = glide.both(theirs["base"], theirs["upsample"], ids(PROMPT), [], scale=3.0, steps=3, seed=3 + i)
        assert_same(one.image, expected)


def _known(photo, mask, side):
    """As the inpainting forms read it, by pillow's own resizing."""
    resized = photo if photo.size == (side, side) else photo.resize((side, side), Image.Resampling.LANCZOS)
    white = np.asarray(mask.resize((side, side), Image.Resampling.LANCZOS), np.float32) / 255 >= 0.5
    image = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    return glide.Known(image, torch.from_numpy(~white).float()[None, None])


def test_painting(loaded, theirs, ids):
    """What is known goes into every x0, at both sizes; the upsampler's is the whole image in its own size."""
    photo, mask = picture(size=(32, 32)), Image.new("L", (32, 32))
    mask.paste(255, (12, 0, 32, 20))
    settings = {"prompt": PROMPT, "steps": 3, "init": photo, "mask": mask, **SMALL}
    scale, base = 5.0, theirs["base_inpaint"]
    small = glide.draw(base, ids(PROMPT), [], scale=scale, steps=3, side=8, known=_known(photo, mask, 8))
    ours = draw(None, pipeline=loaded["base_inpaint"], **settings)[0].image
    assert_same(ours, pixels(small))
    draws = glide.after(3, 8, 3)
    large = glide.enlarge(theirs["upsample_inpaint"], small, ids(PROMPT), draws, _known(photo, mask, 32))
    ours = np.asarray(draw(None, pipeline=loaded["painting"], **settings)[0].image)
    assert_same(ours, pixels(large))
    assert (ours[24:] == np.asarray(photo)[24:]).all()


def test_the_upsampler_alone(root, loaded, theirs, ids):
    photo = picture(size=(8, 8))
    image = torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    """Without a mask, what paints knows nothing of the image."""
    expected = glide.enlarge(theirs["upsample_inpaint"], image, ids(PROMPT), torch.Generator().manual_seed(3))
    other = load(opened(root, "upsample_inpaint"), device="cpu")
    assert_same(draw(None, pipeline=other, init=photo, prompt=PROMPT)[0].image, pixels(expected))


def test_what_is_asked(root, theirs):
    base, upsampler = opened(root, "base"), opened(root, "upsample")
    request = resolve(ImageRequest(prompt="a"), base)
    assert (request.steps, request.sampler, request.guidance, request.spacing) == (100, "ddpm", 3.0, "linspace")
    assert (request.width, request.height) == (64, 64)
    plans = stages.plan(request, stages.add_upscaler(base, upsampler))
    assert [step.at.t for step in plans[1].steps] == glide.FAST27
    assert (plans[1].sampler.name, plans[1].request.guidance, plans[1].request.width) == ("ddim", 1.0, 256)
    assert resolve(ImageRequest(prompt="a", init="a"), upsampler, (64, 64)).steps == 27
    with pytest.raises(UsageError, match="spacing fast27 has 27 steps, not 9"):
        resolve(ImageRequest(prompt="a", init="a", steps=9), upsampler, (64, 64))
    with pytest.raises(UsageError, match="--noise-level is for upscalers"):
        stages.plan(request.replace(noise_level=20), stages.add_upscaler(base, upsampler))
    with pytest.raises(UsageError, match="paints by a mask"):
        resolve(ImageRequest(prompt="a"), opened(root, "base_inpaint"))


def test_the_vocabulary_of_another_gpt2(root, theirs, tmp_path, monkeypatch):
    """Any model in the hub's cache that has it will do; one of its size with other words will not."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    write(tmp_path / "base.pt", theirs["base"].state)
    files = {name: (root / name).read_bytes() for name in ("vocab.json", "merges.txt")}
    folder = put(tmp_path, "distilbert/distilgpt2", COMMIT, {**files, "config.json": b'{"vocab_size": 50257}'}, "main")
    alone = open_image_checkpoint(Source("x", tmp_path / "base.pt", "file"), allow_pickle=True)
    with pytest.raises(GencliError, match="vocabulary, which is GPT-2's"):
        alone.tokenizer()
    ids = load_tokenizer(folder).encode(glide_files.SAMPLE, add_special_tokens=False)
    monkeypatch.setattr(glide_files, "SAMPLE_IDS", ids)
    assert alone.tokenizer().folder == folder


def test_files_that_are_none(root, theirs, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    (tmp_path / "alone").mkdir()
    write(tmp_path / "alone" / "base.pt", theirs["base"].state)
    with pytest.raises(GencliError, match="vocabulary, which is GPT-2's") as raised:
        alone = open_image_checkpoint(Source("x", tmp_path / "alone" / "base.pt", "file"), allow_pickle=True)
        alone.tokenizer()
    assert raised.value.hint.startswith("`gencli models pull openai-community/gpt2` fetches it; or put vocab.json")
    for change, message in (
        ({"input_blocks.0.0.weight": torch.zeros(32, 5, 3, 3)}, "reads 5 channels, and GLIDE's read 3, 7, 6, 10"),
        ({"out.2.weight": torch.zeros(3, 32, 3, 3)}, "makes 3 channels"),
        ({"transformer.resblocks.3.ln_1.weight": torch.zeros(128)}, r"transformer.resblocks.2 is missing"),
        ({"transformer_proj.weight": torch.zeros(128)}, "must have 2 dimensions"),
    ):
        file = tmp_path / f"{len(message)}.safetensors"
        write(file, theirs["base"].state | change)
        with pytest.raises(GencliError, match=message):
            open_image_checkpoint(Source(file.name, file, "file"))
    with pytest.raises(GencliError, match=r"the prompt has \d+ tokens, and this model reads at most 16"):
        draw(None, pipeline=load(opened(root, "base"), device="cpu"), prompt="soup " * 30, steps=2, **SMALL)


@pytest.mark.parametrize(
    ("inputs", "millions"), [(3, 385.03), (7, 385.04), (6, 398.36), (10, 398.37)], ids=["base", "ib", "up", "iup"]
)
def test_real_sizes(inputs, millions):
    """The published files' names and shapes, as the reference makes them, are those of the parts that are built."""
    upsampler = inputs in (6, 10)
    shape = {"mult": (1, 1, 2, 2, 4, 4), "depth": 2, "attended": (8, 16, 32)}
    shape = shape if upsampler else {"mult": (1, 2, 3, 4), "depth": 3, "attended": (2, 4, 8)}
    with torch.device("meta"):
        network = Meta(channels=192, inputs=inputs, text_width=512, places=128, words=50257, layers=16, **shape)
        network.told(torch.zeros(1, inputs, 64, 64), 0.0, [0])
        common = {"model_channels": 192, "num_head_channels": 64, "use_scale_shift_norm": True, "resblock_updown": True}
        common |= {"in_channels": inputs, "out_channels": 6, "encoder_channels": 512, "image_size": 64}
        rows = {"num_res_blocks": shape["depth"], "channel_mult": shape["mult"]}
        unet = architecture("UNetModel")
        unet = unet.Model(unet.Config(**common, **rows, attention_resolutions=shape["attended"]))
        text = architecture("GlideTextModel")
        sizes = {"vocab_size": 50257, "text_ctx": 128, "width": 512, "num_layers": 16, "projection_dim": 768}
        ours = unet.state_dict() | text.Model(text.Config(**sizes)).state_dict()
    assert {name: one.shape for name, one in ours.items()} == {name: one.shape for name, one in network.state.items()}
    assert sum(one.numel() for one in ours.values()) / 1e6 == pytest.approx(millions, abs=0.006)


@dataclasses.dataclass
class Meta(glide.Glide):
    """The reference without numbers."""

    def p(self, name, *shape):
        return self.state.setdefault(name, torch.empty(shape, device="meta"))
