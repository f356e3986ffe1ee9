"""Janus against transformers: logits, greedy images in both layouts, guidance on and off, codes, published sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from gencli.checkpoints.find import Source
from gencli.checkpoints.open import open_checkpoint
from gencli.checkpoints.report import check, describe
from gencli.errors import GencliError, UsageError
from gencli.image.codes import open_codec
from gencli.image.drawers import open_drawer
from gencli.image.drawers.janus import Janus, JanusTokens
from gencli.image.generate import Denoised, Picture
from gencli.image.request import ImageRequest
from gencli.models.janus import LAYOUT, Config, Model
from gencli.models.vq_model import VQModel
from tests.oracles.libraries import transformers
from tests.tiny.clip import make_pictures
from tests.tiny.image import rewrite_json
from tests.tiny.janus import BEGIN, ENTRIES, GRID, SIDE, TinyJanus, make_janus

TOKENS = GRID * GRID
PROMPTS = ("a red dog", "从前有一个小女孩")


def read(folder: Path) -> Janus:
    drawer = open_drawer(open_checkpoint(Source("tiny", folder, "folder"), allow_pickle=True))
    assert isinstance(drawer, Janus)
    return drawer


def opened(folder: Path, **how: Any) -> JanusTokens:
    return read(folder).load(device="cpu", **how)


@pytest.fixture(scope="module")
def model(janus) -> JanusTokens:
    return opened(janus.folder)


def events(model: JanusTokens, prompts: tuple[str, ...] | None = None, **values: Any) -> list[Any]:
    return [*model.generate(model.drawer.resolve(ImageRequest(**values)), prompts)]


def drawn(model: JanusTokens, prompts: tuple[str, ...] | None = None, **values: Any) -> list[np.ndarray]:
    return [np.asarray(one.image) for one in events(model, prompts, **values) if isinstance(one, Picture)]


def prompt_ids(janus: TinyJanus, prompt: str) -> torch.Tensor:
    return torch.tensor([janus.tokenizer(f"<|User|>: {prompt}\n\n<|Assistant|>:{BEGIN}")["input_ids"]])


def pixels(reference: Any, tokens: torch.Tensor) -> np.ndarray:
    """As its processor makes them of what it returns."""
    with torch.no_grad():
        return ((reference.decode_image_tokens(tokens)[0] * 0.5 + 0.5).clamp(0, 1) * 255).numpy()


@pytest.mark.parametrize("layout", ["new", "shards", "old"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_images_are_those_of_transformers(janus, tmp_path, layout, prompt):
    if layout != "new":
        make_janus(tmp_path, old=layout == "old", shards="1MB" if layout == "shards" else "5GB")
    model, ids = opened(janus.folder if layout == "new" else tmp_path), prompt_ids(janus, prompt)
    mask = torch.ones_like(ids)
    wanted = janus.reference.generate(
        ids, attention_mask=mask, generation_mode="image", guidance_scale=5, do_sample=False
    )
    *rows, picture = events(model, prompt=prompt, temperature=0, seed=0)
    assert len(set(wanted[0].tolist())) > 1  # an image of one token would show nothing
    for number, row in enumerate(rows, 1):
        assert isinstance(row, Denoised) and (row.index, row.total) == (number - 1, GRID)
        seen = torch.full((TOKENS,), -1)
        seen[: number * GRID] = wanted[0][: number * GRID]
        assert row.x0.flatten().tolist() == seen.tolist()
        assert model.decode(row.x0).size == model.sketch(row.x0).size == (SIDE, SIDE)
    assert np.abs(np.asarray(picture.image) - pixels(janus.reference, wanted)).max() <= 1


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.5])
def test_guidance_on_and_off_by_its_formula(janus, model, scale):
    """Without a cache, over a whole sequence: u + s (c − u), and the conditional logits alone from 1 down."""
    theirs, ids = janus.reference, prompt_ids(janus, PROMPTS[0])
    _, mine, kept = model.begin(ImageRequest(guidance=scale), PROMPTS[0], None)
    assert mine == ids[0].tolist() and kept == 0
    tokens = torch.randint(ENTRIES, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    negative = ids.clone()
    negative[:, 1:-1] = theirs.generation_config.pad_token_id
    with torch.no_grad():
        after = theirs.prepare_embeddings_for_image_generation(tokens)
        logits = []
        for row in (ids, negative):
            states = torch.cat([theirs.get_input_embeddings()(row), after], 1)
            hidden = theirs.model.language_model(inputs_embeds=states).last_hidden_state
            logits.append(theirs.model.generation_head(hidden[:, ids.shape[1] - 1 :]))
        cond, uncond = logits
        wanted = uncond + scale * (cond - uncond) if scale > 1 else cond
        decoder, _, _ = model.begin(ImageRequest(guidance=scale), PROMPTS[0], None)
        cache = decoder.new_cache(1, ids.shape[1] + TOKENS)
        found = [decoder(ids, cache, last_only=True), *(decoder(tokens[:, i : i + 1], cache) for i in range(TOKENS))]
    assert wanted.std() > 0.5
    assert_close(torch.cat(found, 1), wanted, rtol=0, atol=1e-4)


def test_each_of_several_is_made_again_alone(model):
    several = drawn(model, PROMPTS, seed=5, count=3, batch=2)
    assert len(several) == 6 and (several[0] != several[1]).any()
    for number, picture in enumerate(several):
        (alone,) = drawn(model, prompt=PROMPTS[number // 3], seed=5 + number)
        assert np.abs(alone.astype(int) - picture).max() <= 1


def test_settings_of_sampling(model):
    (greedy,) = drawn(model, prompt="a dog", temperature=0)
    for values in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        np.testing.assert_array_equal(drawn(model, prompt="a dog", seed=1, **values)[0], greedy)
    assert (drawn(model, prompt="a dog", temperature=0, guidance=1.0)[0] != greedy).any()
    assert (drawn(model, prompt="a cat", temperature=0)[0] != greedy).any()


def test_codes_of_images(janus, tmp_path):
    """As DeepSeek's code finds them: latents and entries of length 1. transformers' own search has no such."""
    codec, theirs = open_codec(Source("tiny", janus.folder, "folder"), device="cpu"), janus.reference.model.vqmodel
    picture = make_pictures()[0].convert("RGB").resize((SIDE, SIDE))
    x = torch.from_numpy(np.asarray(picture) / np.float32(127.5) - 1).movedim(2, 0)[None]
    with torch.no_grad():
        latents = F.normalize(theirs.quant_conv(theirs.encoder(x)), dim=1)
        entries = F.normalize(theirs.quantize.embedding.weight, dim=1)
        wanted = torch.einsum("bchw,kc->bhwk", latents, entries).argmax(-1)[0]
    assert codec.read(picture) == wanted.tolist() and len(wanted.unique()) > 1
    assert np.abs(np.asarray(codec.paint(wanted.tolist())) - pixels(janus.reference, wanted.view(1, -1))).max() <= 1


def test_half_precision_stays_in_the_file(janus, tmp_path):
    """On a CPU large weights are cast as they are used, to the numbers of float32."""
    reference = make_janus(tmp_path)
    reference.bfloat16().save_pretrained(tmp_path)
    model = opened(tmp_path)
    assert model.dtype == torch.float32 and model.module.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    np.testing.assert_array_equal(
        drawn(model, prompt="a dog", seed=1)[0], drawn(opened(tmp_path, dtype="float32"), prompt="a dog", seed=1)[0]
    )


SIZES = {
    "1B": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16},
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 30, "num_attention_heads": 32},
}


@pytest.mark.parametrize(("size", "millions"), [("1B", 1485.0), ("7B", None)])
def test_published_sizes(size, millions):
    text = {**SIZES[size], "vocab_size": 102400, "max_position_embeddings": 16384}
    width = text["hidden_size"]
    vq = {"projection_dim": width, "image_token_embed_dim": width}
    with torch.device("meta"):
        config = transformers.JanusConfig(text_config={"model_type": "llama", **text}, vq_config=vq)
        theirs = transformers.JanusForConditionalGeneration(config).model
        mine = Model(Config.from_dict({**text, "model_type": "janus"}))
    wanted = {f"model.{name}": tuple(one.shape) for name, one in theirs.state_dict().items()}
    wanted = {
        LAYOUT.rename(name)[0]: shape for name, shape in wanted.items() if "generation" in name or "language" in name
    }
    assert {name: tuple(one.shape) for name, one in mine.state_dict().items()} == wanted
    if millions is not None:
        assert sum(one.numel() for one in mine.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_the_published_autoencoder(janus):
    """Its names are read to a VQModel of the published size, and none is left over."""
    from gencli.checkpoints.formats.vq import read_vq
    from gencli.models.vq_model import Config as VQConfig

    with torch.device("meta"):
        theirs = transformers.models.janus.modeling_janus.JanusVQVAE(transformers.JanusVQVAEConfig())
        shapes = {name: tuple(one.shape) for name, one in theirs.state_dict().items()}
        found, unknown = read_vq(shapes, from_latents=True, unit_codebook=True)
        mine = VQModel(VQConfig.from_dict(found.config))
    assert not unknown and mine.state_dict().keys() == found.pieces.keys()
    assert sum(one.numel() for one in mine.parameters()) / 1e6 == pytest.approx(71.9, abs=0.05)


def test_what_models_says(janus, tmp_path):
    what = describe(Source("tiny", janus.folder, "folder"))
    assert (what.kind, what.family, what.problem) == ("image", "janus", None)
    assert [part.family for part in what.components] == ["janus", "VQModel"]
    assert check(Source("tiny", janus.folder, "folder")).problems == ()
    make_janus(tmp_path, old=True)
    assert describe(Source("tiny", tmp_path, "folder"), allow_pickle=True).family == "multi_modality"
    assert check(Source("tiny", tmp_path, "folder"), allow_pickle=True).problems == ()
    with pytest.raises(GencliError, match=r"only pytorch_model\.bin"):
        open_drawer(open_checkpoint(Source("tiny", tmp_path, "folder"))).load(device="cpu")


@pytest.mark.parametrize(
    ("old", "where", "change", "message"),
    [
        (False, "vq_config", {"double_latent": True}, "double_latent = True is not supported"),
        (False, "vq_config", {"hidden_act": "silu"}, "hidden_act = 'silu' is not supported"),
        (False, "vq_config", {"beta": 0.5}, "not supported: beta"),
        (False, "vq_config", {"projection_dim": 64}, "must be equal"),
        (False, "vq_config", {"num_embeddings": 50}, "does not fit its config"),
        (False, "text_config", {"model_type": "qwen2"}, "a language model 'qwen2' is not supported"),
        (False, "text_config", {"attention_sinks": 4}, "not supported: attention_sinks"),
        (False, "vision_config", {"image_size": 72}, "image_size = 72"),
        (False, "vision_config", {"num_image_tokens": 9}, "num_image_tokens = 9 does not fit"),
        (True, "gen_vision_config", {"cls": "VQ-8"}, "gen_vision_config: cls = 'VQ-8' is not supported"),
        (True, "gen_aligner_config", {"params": {"projector_type": "identity"}}, "projector_type = 'identity'"),
        (True, "gen_head_config", {"params": {}}, "does not fit a Janus: 'image_token_embed'"),
    ],
)
def test_configs_that_are_refused(tmp_path, old, where, change, message):
    make_janus(tmp_path, old=old)
    rewrite_json(tmp_path / "config.json", lambda raw: raw | {where: raw[where] | change})
    with pytest.raises(GencliError) as caught:
        opened(tmp_path)
    assert message in caught.value.message and len(caught.value.message) < 400


def test_prompts_that_are_refused(janus, model):
    with pytest.raises(GencliError, match="and tiny reads at most 240"):
        model.check_prompt(ImageRequest(prompt="word " * 300))
    with pytest.raises(UsageError, match="draws token by token and does not denoise: --negative, --steps"):
        model.drawer.resolve(ImageRequest(prompt="a", negative="b", steps=3))
    with pytest.raises(UsageError, match="draws 64x64 pixels and no other size"):
        model.drawer.resolve(ImageRequest(prompt="a", width=32))
