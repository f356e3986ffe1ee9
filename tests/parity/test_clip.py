"""CLIP against transformers: what pictures become, both towers, logits; in every layout that is met."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from gencli.checkpoints import layout
from gencli.checkpoints.find import Source
from gencli.errors import GencliError
from gencli.image.files.preprocess import CLIP, Preprocessing, from_settings, read_settings
from gencli.image.score import Scorer, open_scorer
from gencli.models.clip import CLIPConfig
from tests.oracles.libraries import transformers
from tests.tiny.clip import KINDS, make_clip, make_pictures
from tests.tiny.image import rewrite_json

TOLERANCE = {"rtol": 0, "atol": 1e-5}
TEXTS = ["red apple", "a blue dog and the cat", "", "sun " * 30, "green star!"]


class Case(NamedTuple):
    folder: Path
    scorer: Scorer
    model: transformers.CLIPModel
    processor: transformers.CLIPImageProcessorPil


def opened(folder: Path) -> Scorer:
    return open_scorer(Source("tiny", folder, "folder"), device="cpu")


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> dict[str, Case]:
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        model, processor = make_clip(folder, kind)
        found[kind] = Case(folder, opened(folder), model, processor)
    return found


def reference(case: Case, pictures: list[Image.Image]) -> Any:
    """What transformers' processor and model make of texts and pictures."""
    ids = transformers.CLIPTokenizer.from_pretrained(case.folder)(TEXTS, padding=True, return_tensors="pt")
    pixels = case.processor(pictures, return_tensors="pt")["pixel_values"]
    model = transformers.CLIPModel.from_pretrained(
        case.folder
    ).eval()  # as the files say: an old file may say it in two ways
    with torch.no_grad():
        return pixels, model(pixel_values=pixels, **ids)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_vectors(cases, kind):
    case, pictures = cases[kind], make_pictures()
    pixels, wanted = reference(case, pictures)
    prepared = [case.scorer.prepare(picture) for picture in pictures]
    assert_close(torch.cat(prepared), pixels, **TOLERANCE)
    texts, seen = case.scorer.texts(TEXTS), case.scorer.pictures(prepared)
    assert_close(texts, wanted.text_embeds, **TOLERANCE)
    assert_close(seen, wanted.image_embeds, **TOLERANCE)
    logits = seen @ texts.T * case.model.logit_scale.exp()
    assert_close(logits, wanted.logits_per_image, rtol=0, atol=1e-4)  # cosines times 14
    assert_close(case.scorer.probabilities(seen @ texts.T), wanted.logits_per_image.softmax(-1), **TOLERANCE)
    assert (seen @ texts.T).std() > 0.05  # the fixture tells pictures and texts apart


def test_a_picture_alone_and_in_a_batch(cases):
    scorer, pictures = cases["patch32"].scorer, make_pictures()
    prepared = [scorer.prepare(picture) for picture in pictures]
    alone = torch.cat([scorer.pictures([one]) for one in prepared])
    assert_close(alone, scorer.pictures(prepared), **TOLERANCE)
    alone = torch.cat([scorer.texts([text]) for text in TEXTS])
    assert_close(alone, scorer.texts(TEXTS), **TOLERANCE)


SETTINGS = [
    {"size": {"shortest_edge": 20}, "crop_size": {"height": 20, "width": 20}},
    {"size": 15, "crop_size": {"height": 20, "width": 21}, "resample": 2},
    {"size": {"height": 12, "width": 31}, "crop_size": 20},
    {"do_resize": False, "crop_size": {"height": 20, "width": 21}},
    {"size": 20, "do_center_crop": False, "do_normalize": False},
    {"size": 20, "crop_size": 10, "rescale_factor": 0.5, "image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 2.0, 3.0]},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=range(len(SETTINGS)))
def test_preprocessing_is_transformers_to_the_bit(settings):
    """Shapes that are cut, that get a border, that round oddly."""
    random = np.random.default_rng(0)
    ours = from_settings(settings, CLIP)
    theirs = transformers.CLIPImageProcessorPil(**settings)
    for width, height in [(17, 40), (40, 17), (33, 33), (20, 20), (3, 5), (1, 9), (50, 49)]:
        picture = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        np.testing.assert_array_equal(ours(picture), theirs(picture, return_tensors="np")["pixel_values"][0])


def test_settings_of_transformers_5_in_one_file(tmp_path):
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"size": 7, "crop_size": 7}}))
    assert read_settings(tmp_path) == {"size": 7, "crop_size": 7}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"size": 0}, "size = 0"),
        ({"size": 10**9}, "size = 1000000000"),
        ({"size": {"height": 8, "width": 10**6}}, "size = "),
        ({"crop_size": "224"}, "crop_size = '224'"),
        ({"resample": 17}, "resample = 17"),
        ({"image_std": [0, 1, 1]}, "image_std"),
        ({"image_mean": [float("nan")] * 3}, "image_mean"),
        ({"image_mean": [0.5] * 10**6}, "image_mean"),
        ({"do_resize": "yes"}, "do_resize = 'yes'"),
        ({"do_pad": True}, "do_pad = True"),
        ({"rescale_factor": None, "size": [1] * 9}, "size = "),
    ],
)
def test_settings_that_make_no_sense_are_named(change, named):
    with pytest.raises(GencliError) as caught:
        from_settings(change, CLIP)
    assert named in caught.value.message and len(caught.value.message) < 250


def test_a_narrow_picture_does_not_fill_the_memory():
    with pytest.raises(GencliError, match="1x60000 pixels is too narrow"):
        Preprocessing(shortest=224)(Image.new("RGB", (1, 60_000)))


def test_a_text_that_is_too_long_is_told_or_cut(cases):
    scorer = cases["patch32"].scorer
    text = "apple " * 80 + "dog"
    with pytest.raises(GencliError, match="81 tokens, and tiny reads at most 75"):
        scorer.texts([text])
    start, end = scorer.tokenizer.bos_id, scorer.tokenizer.eos_ids[0]
    right, left = scorer.tokenize(text, "right"), scorer.tokenize(text, "left")
    assert len(right) == len(left) == 77
    assert (right[0], right[-1]) == (left[0], left[-1]) == (start, end)
    assert right[-2] == right[1] == left[1] != left[-2]


def test_config_that_a_file_says_twice():
    """As transformers: what stands in `…_config_dict` counts, with its class's defaults for the rest."""
    raw = {
        "model_type": "clip",
        "text_config": {"hidden_size": 8, "num_attention_heads": 2, "vocab_size": 77},
        "text_config_dict": {"hidden_size": 16},
        "vision_config": {"patch_size": 16, "num_hidden_layers": 3},
        "vision_config_dict": None,
    }
    ours, theirs = CLIPConfig.from_dict(raw), transformers.CLIPConfig.from_dict(raw)
    for part in ("text_config", "vision_config"):
        for name, value in dataclasses.asdict(getattr(ours, part)).items():
            assert name == "architectures" or getattr(getattr(theirs, part), name) == value, (part, name)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vision_config": {"patch_size": 0}}, "vision_config: patch_size = 0"),
        ({"vision_config": {"image_size": [224, 224]}}, "image_size = "),
        ({"vision_config": {"image_size": 4096, "patch_size": 1}}, "16777216 patches"),
        ({"vision_config": {"num_channels": 4}}, "num_channels = 4"),
        ({"vision_config": {"mystery": 1}}, "mystery = 1"),
        ({"text_config": {"hidden_act": "relu7"}}, "text_config: hidden_act = 'relu7'"),
        ({"text_config": {"hidden_size": 2**40}}, "text_config: hidden_size"),
        ({"text_config": 3}, "text_config is not JSON object"),
        ({"projection_dim": -1}, "projection_dim = -1"),
        ({"mystery": 1}, "mystery = 1"),
    ],
)
def test_configs_that_are_refused(change, named):
    with pytest.raises(GencliError) as caught:
        CLIPConfig.from_dict({"model_type": "clip", **change})
    assert named in caught.value.message


def test_processor_and_model_at_odds(cases, tmp_path):
    for file in cases["patch32"].folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    rewrite_json(tmp_path / "preprocessor_config.json", lambda raw: raw | {"crop_size": 24})
    with pytest.raises(GencliError, match=r"makes images of 24x24, and its config.json expects 32x32"):
        opened(tmp_path)
    rewrite_json(tmp_path / "preprocessor_config.json", lambda raw: raw | {"do_center_crop": False})
    with pytest.raises(GencliError, match="makes images of any size"):
        opened(tmp_path)


HUB = [
    ".gitattributes",
    "README.md",
    "config.json",
    "flax_model.msgpack",
    "merges.txt",
    "model.safetensors",
    "preprocessor_config.json",
    "pytorch_model.bin",
    "special_tokens_map.json",
    "tf_model.h5",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
]


def test_what_a_download_fetches():
    """openai/clip-vit-large-patch14's files: the settings for pictures too, and no weights twice."""
    chosen = layout.choose(HUB, lambda name: {"model_type": "clip"})
    assert set(chosen) == {
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json", "special_tokens_map.json",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    only_pickle = [name for name in HUB if name != "model.safetensors"]  # as openai/clip-vit-base-patch32
    with pytest.raises(GencliError, match=r"only pytorch_model\.bin"):
        layout.choose(only_pickle, lambda name: {"model_type": "clip"})
    assert "pytorch_model.bin" in layout.choose(only_pickle, lambda name: {"model_type": "clip"}, allow_pickle=True)
