"""iGPT against transformers: logits, greedy pictures with and without a cache, colours of pictures; then the recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from gencli.checkpoints.find import Source
from gencli.checkpoints.open import open_checkpoint
from gencli.errors import GencliError, UsageError
from gencli.image.drawers import is_drawer, open_drawer
from gencli.image.drawers.imagegpt import Palette, PixelModel
from gencli.image.generate import Denoised, Picture
from gencli.image.request import ImageRequest
from tests.oracles.libraries import transformers
from tests.oracles.token_parity import measure
from tests.tiny.clip import make_pictures
from tests.tiny.image import rewrite_json
from tests.tiny.imagegpt import COLOURS, SIDE, clusters, make_imagegpt

BEGIN = COLOURS
PIXELS = SIDE * SIDE


class Case(NamedTuple):
    folder: Path
    model: PixelModel
    reference: transformers.ImageGPTForCausalImageModeling
    processor: transformers.ImageGPTImageProcessorPil


def read(folder: Path, **how: Any) -> Palette:
    return open_drawer(open_checkpoint(Source("tiny", folder, "folder"), **how))


def opened(folder: Path, **how: Any) -> PixelModel:
    return read(folder, **how).load(device="cpu")


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    """As the hub has it."""
    folder = tmp_path_factory.mktemp("hub")
    reference, processor = make_imagegpt(folder)
    return Case(folder, opened(folder), reference, processor)


def some_ids(rows: int = 3, length: int = PIXELS) -> torch.Tensor:
    """Begin, then colours: all that the model can read."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(COLOURS, (rows, length - 1), generator=generator)
    return torch.cat([torch.full((rows, 1), BEGIN), colours], 1)


@torch.no_grad()
def test_logits_with_and_without_a_cache(case):
    ids, module = some_ids(), case.model.module
    wanted = case.reference(ids).logits
    assert wanted.shape == (3, PIXELS, COLOURS) and wanted.std() > 0.5
    assert_close(module(ids), wanted, rtol=0, atol=1e-5)
    assert_close(module(ids, last_only=True), wanted[:, -1:], rtol=0, atol=1e-5)
    cache = module.new_cache(3, PIXELS)
    parts = [module(part, cache) for part in ids.split([1, 20, 1, 1, 13], 1)]
    assert_close(torch.cat(parts, 1), wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_as_transformers_saves_today(tmp_path):
    reference, _ = make_imagegpt(tmp_path, old=False)
    model, ids = opened(tmp_path), some_ids(1)
    assert_close(model.module(ids), reference(ids).logits, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(model.drawer.colours, clusters())


@pytest.mark.parametrize(
    "changes",
    [
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"n_inner": 40, "activation_function": "gelu_new"},
        {"layer_norm_epsilon": 0.1},
    ],
    ids=lambda changes: next(iter(changes)),
)
@torch.no_grad()
def test_what_configs_may_change(tmp_path, changes):
    reference, _ = make_imagegpt(tmp_path, **changes)
    ids = some_ids(1)
    assert_close(opened(tmp_path).module(ids), reference(ids).logits, rtol=0, atol=1e-5)


def test_half_precision_keeps_large_activations(tmp_path):
    """Squares of what iGPT adds up leave float16's range; transformers' norm gives zeros there."""
    make_imagegpt(tmp_path)
    module = opened(tmp_path).module.half()
    x = torch.full((1, 1, 32), 400.0, dtype=torch.float16)
    assert_close(module.transformer.ln_f(x)[0, 0], module.transformer.ln_f.weight, rtol=1e-3, atol=0)


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_pictures_are_those_of_transformers(case, use_cache):
    """All colours of a picture equal those of `generate`, which reads its own cache or reads all anew each time."""
    start = torch.tensor([[BEGIN]])
    wanted = case.reference.generate(start, max_length=PIXELS + 1, do_sample=False, use_cache=use_cache)[0, 1:]
    request = case.model.drawer.resolve(ImageRequest(temperature=0, seed=0))
    *_, picture = case.model.generate(request)
    assert isinstance(picture, Picture)
    values = np.array(case.processor.clusters)[wanted.numpy()]
    np.testing.assert_array_equal(np.asarray(picture.image), rendered(values))
    assert len(set(wanted.tolist())) > 2  # a picture of one colour would show nothing


def rendered(values: np.ndarray) -> np.ndarray:
    """As transformers' own example makes pixels of colours."""
    return np.rint(127.5 * (values + 1.0)).reshape(SIDE, SIDE, 3).astype(np.uint8)


def test_colours_of_pictures(case):
    palette = case.model.drawer
    for picture in [*make_pictures(), *make_pictures(1)]:
        wanted = case.processor(picture, return_tensors="pt")["input_ids"][0]
        assert palette.encode(picture) == wanted.tolist()
        np.testing.assert_array_equal(np.asarray(palette.decode(wanted.tolist())), rendered(clusters()[wanted.numpy()]))


def test_the_lower_half_is_completed(case):
    """Kept rows are the picture's own in the palette; the rest continues them as `generate` does."""
    palette, init = case.model.drawer, make_pictures()[0]
    kept = palette.encode(init)
    for rows in (None, 3):
        request = palette.resolve(ImageRequest(temperature=0, seed=0, init="x.png", keep_rows=rows))
        assert request.keep_rows == (rows or SIDE // 2)
        events = list(case.model.generate(request, init=init))
        start = torch.tensor([[BEGIN, *kept[: request.keep_rows * SIDE]]])
        wanted = case.reference.generate(start, max_length=PIXELS + 1, do_sample=False)[0, 1:].tolist()
        np.testing.assert_array_equal(np.asarray(events[-1].image), np.asarray(palette.decode(wanted)))
        assert wanted[: len(start[0]) - 1] == kept[: request.keep_rows * SIDE]
        steps = [event for event in events if isinstance(event, Denoised)]
        assert [step.index for step in steps] == list(range(SIDE - request.keep_rows))
        assert all(step.total == SIDE - request.keep_rows for step in steps)
        drawn = request.keep_rows + 1  # rows, after the first step
        shown = steps[0].x0[0]
        assert_close(
            shown[:, :drawn].permute(1, 2, 0).reshape(-1, 3).double(),
            torch.tensor(clusters())[wanted[: drawn * SIDE]],
            rtol=0,
            atol=1e-6,
        )
        assert (shown[:, drawn:] == 0).all()


def images(model: PixelModel, **values: Any) -> list[np.ndarray]:
    request = model.drawer.resolve(ImageRequest(**values))
    return [np.asarray(event.image) for event in model.generate(request) if isinstance(event, Picture)]


def test_each_of_several_is_made_again_alone(case):
    several = images(case.model, seed=5, count=3, batch=2)
    assert len(several) == 3 and (several[0] != several[1]).any()
    for number, picture in enumerate(several):
        np.testing.assert_array_equal(images(case.model, seed=5 + number)[0], picture)


def test_settings_of_sampling(case):
    greedy = images(case.model, temperature=0)[0]
    for values in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        np.testing.assert_array_equal(images(case.model, seed=1, **values)[0], greedy)
    assert (images(case.model, seed=1)[0] != greedy).any()


def test_picks_follow_the_models_own_probabilities(case):
    """The first pixel of many pictures: its colours as often as the model says."""
    with torch.no_grad():
        wanted = case.reference(torch.tensor([[BEGIN]])).logits[0, -1].softmax(-1)
    palette = case.model.drawer
    request = palette.resolve(ImageRequest(seed=0, count=400, batch=400))
    first = next(case.model.generate(request)).x0[:, :, 0, 0].numpy()
    seen = np.array([np.isclose(first, colour).all(-1).mean() for colour in palette.colours])
    assert seen.sum() == pytest.approx(1)
    assert np.abs(seen - wanted.numpy()).max() < 0.09  # 3.6 standard deviations of 400 draws


def test_own_settings_of_a_checkpoint(tmp_path):
    make_imagegpt(tmp_path)
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"temperature": 0.5, "top_k": 4, "max_length": 65}))
    palette = read(tmp_path)
    found = palette.resolve(ImageRequest(top_k=7))
    assert (found.temperature, found.top_k, found.top_p, found.width, found.height) == (0.5, 7, 1.0, SIDE, SIDE)
    file.write_text(json.dumps({"temperature": -1}))
    with pytest.raises(GencliError, match=r"generation_config.json: temperature -1"):
        read(tmp_path).resolve(ImageRequest())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": "a cat"}, "draws without a prompt"),
        ({"steps": 10, "sampler": "ddim", "guidance": 2.0}, "--steps, --sampler, --cfg-scale would have no effect"),
        ({"init": "x", "mask": "y", "strength": 0.5}, "--mask, --strength would have no effect"),
        ({"vae_tiling": True}, "--vae-tiling would have no effect"),
        ({"sampler_options": {"a": 1}}, "--sampler-options would have no effect"),
        ({"width": 16}, "draws 6x6 pixels and no other size"),
        ({"init": "x", "keep_rows": 6}, "of 6 rows at least one must be left"),
    ],
)
def test_what_such_a_model_cannot_follow(case, values, message):
    with pytest.raises(UsageError, match=message):
        case.model.drawer.resolve(ImageRequest(**values))


def test_pickles_of_the_hub(tmp_path):
    """openai/imagegpt-small has a .bin alone, with masks beside its weights."""
    reference, _ = make_imagegpt(tmp_path, pickle=True)
    with pytest.raises(GencliError, match=r"only pytorch_model\.bin"):
        opened(tmp_path)
    ids = some_ids(1)
    with torch.no_grad():
        assert_close(opened(tmp_path, allow_pickle=True).module(ids), reference(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("preprocessor_config.json", {"clusters": None}, "is not a palette"),
        ("preprocessor_config.json", {"clusters": "red"}, "'red'"),
        ("preprocessor_config.json", {"clusters": [[0, 0, 0]] * 23}, "23 colours do not fit vocab_size = 25"),
        ("preprocessor_config.json", {"clusters": [[0, 0, 0]] * 17_000}, "17000 entries"),
        ("preprocessor_config.json", {"clusters": [[0, 0]] * 24}, "not a colour of three numbers"),
        ("preprocessor_config.json", {"clusters": [[0, 0, 9]] * 24}, "not a colour of three numbers"),
        ("preprocessor_config.json", {"clusters": [[0, 0, float("nan")]] * 24}, "not a colour of three numbers"),
        ("preprocessor_config.json", {"clusters": [["0", "0", "0"]] * 24}, "not a colour of three numbers"),
        ("preprocessor_config.json", {"clusters": [[[0], [0], [0]]] * 24}, "not a colour of three numbers"),
        ("preprocessor_config.json", {"size": 4096}, "does not fit n_positions = 36"),
        ("preprocessor_config.json", {"size": -1}, "size = -1"),
        ("preprocessor_config.json", {"do_resize": False}, "does not say the image size"),
        ("config.json", {"n_positions": 100}, "does not fit n_positions = 100"),
        ("config.json", {"vocab_size": 10**12}, "24 colours do not fit vocab_size"),
        ("config.json", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("config.json", {"add_cross_attention": True}, "add_cross_attention"),
        ("config.json", {"n_layer": 10**9}, "n_layer"),
        ("config.json", {"n_layer": 4}, "lacks tensors: transformer.h.3"),
    ],
)
def test_folders_at_odds_with_themselves(tmp_path, file, change, message):
    make_imagegpt(tmp_path)
    rewrite_json(tmp_path / file, lambda raw: raw | change)
    with pytest.raises(GencliError) as caught:
        opened(tmp_path)
    assert message in caught.value.message and len(caught.value.message) < 400


def test_what_is_told_as_one(tmp_path):
    make_imagegpt(tmp_path)
    assert is_drawer(open_checkpoint(Source("tiny", tmp_path, "folder")))
    rewrite_json(tmp_path / "config.json", lambda raw: raw | {"model_type": "gpt2"})
    assert not is_drawer(open_checkpoint(Source("tiny", tmp_path, "folder")))


def test_the_readmes_figures(tmp_path):
    """The rows of CLIP and of what does not denoise in the table of families."""
    rows = list(measure(tmp_path))
    drawn = ["BigGAN-deep", "Janus (DALL·E's form)", "DALL·E mini and mega"]
    assert [row.family for row in rows] == ["CLIP", "iGPT", *drawn]
    for row in rows:
        assert 0 < row.component < 1e-4 and row.picture <= (row.family in drawn), row
