"""DALL·E mini and mega against their formulas, and their autoencoder against diffusers'; the published sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from gencli.checkpoints.find import Source
from gencli.checkpoints.open import open_checkpoint
from gencli.checkpoints.report import check, describe
from gencli.errors import GencliError, UsageError
from gencli.image.drawers import open_drawer
from gencli.image.drawers.min_dalle import MinDalle, MinDalleTokens
from gencli.image.generate import Denoised
from gencli.image.request import ImageRequest
from gencli.models.dalle_bart import Config, Model
from tests.oracles.min_dalle import BEGIN, CODES, decode, logits
from tests.tiny.min_dalle import MERGES, SPECIALS, VOCAB, detoker, half, make_min_dalle

Files = dict[str, dict[str, Tensor]]


def read(path: Path) -> MinDalle:
    source = Source("tiny", path, "file" if path.is_file() else "folder")
    drawer = open_drawer(open_checkpoint(source, allow_pickle=True))
    assert isinstance(drawer, MinDalle)
    return drawer


def opened(path: Path) -> MinDalleTokens:
    return read(path).load(device="cpu")


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> tuple[Path, Files, MinDalleTokens]:
    folder = tmp_path_factory.mktemp("mega")
    files = make_min_dalle(folder)
    return folder, files, opened(folder)


def drawn(model: MinDalleTokens, **values: Any) -> list[Any]:
    return [*model.generate(model.drawer.resolve(ImageRequest(**values)))]


def texts(model: MinDalleTokens, prompt: str) -> Tensor:
    """A text with nothing in it, and the prompt, filled up."""
    ids, rows = model.drawer.encode(prompt), torch.ones(2, 64, dtype=torch.long)
    rows[0, :2], rows[1, : len(ids)] = torch.tensor([ids[0], ids[-1]]), torch.tensor(ids)
    return rows


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_logits_with_guidance_and_without(case, scale):
    _, files, model = case
    tokens = torch.randint(CODES, (2, 20), generator=torch.Generator().manual_seed(0))
    decoder, begun, kept = model.begin(ImageRequest(guidance=scale), "A red dog, a cat", None)
    assert (begun, kept) == ([BEGIN], 0)
    with torch.no_grad():
        rows = texts(model, "A red dog, a cat")
        uncond, cond = (logits(files["encoder"], files["decoder"], row[None].repeat(2, 1), tokens) for row in rows)
        wanted = uncond * (1 - scale) + cond * scale
        cache = decoder.new_cache(2, 21)  # two images of one prompt
        found = [torch.cat([decoder(torch.tensor([begun]), cache.row(i), last_only=True) for i in range(2)])]
        found += [decoder(tokens[:, i : i + 1], cache) for i in range(20)]
    assert wanted.shape == (2, 21, CODES) and wanted.std() > 0.5
    assert_close(torch.cat(found, 1), wanted, rtol=0, atol=1e-4)


def test_a_greedy_image_of_the_mini(tmp_path):
    """Each token is the likeliest after those before it; the image is that of diffusers' autoencoder, in 0..1."""
    files = make_min_dalle(tmp_path, mini=True)
    make_min_dalle(tmp_path)  # the mega's beside them
    assert opened(tmp_path).module.config.image_ids == CODES + 32
    model = opened(tmp_path / "decoder_mini.pt")
    assert model.module.config.image_ids == CODES + 1
    *rows, picture = drawn(model, prompt="a red dog", temperature=0, seed=0)
    assert [row.index for row in rows] == list(range(16)) and all(isinstance(row, Denoised) for row in rows)
    codes = rows[-1].x0.view(1, -1)
    assert len(codes.unique()) > 20
    with torch.no_grad():
        both = logits(files["encoder"], files["decoder"], texts(model, "a red dog"), codes[:, :-1].repeat(2, 1))
        wanted = both[0] + 16 * (both[1] - both[0])
        assert (wanted.argmax(-1) == codes[0]).float().mean() > 0.99  # of equals within rounding either may be taken
        pixels = decode(files["detoker"], codes)
    wanted = (pixels.clamp(0, 1) * 255).movedim(0, -1).numpy()
    assert wanted.std() > 10 and np.abs(np.asarray(picture.image) - wanted).max() <= 1


def test_as_the_package_keeps_the_files(tmp_path):
    files = make_min_dalle(tmp_path, apart=True)
    module = opened(tmp_path / "dalle_bart_mega").module
    assert_close(module.decoder.lm_head.weight.data, files["decoder"]["lm_head.weight"])


def test_words(case):
    """Small ASCII letters, merged by rank within a word; what is unknown is one token, and the rest goes unread."""
    encode, number = case[2].drawer.encode, {word: i for i, word in enumerate(VOCAB)}
    assert tuple(VOCAB[:4]) == SPECIALS and "Ġ dog" in MERGES
    assert encode("A red  DOG") == [0, number["Ġa"], number["Ġred"], number["Ġdog"], 2]
    assert encode("reddog") == [0, *(number[one] for one in ("Ġred", "dog")), 2]
    assert encode("cat? é") == [0, number["Ġcat"], number["<unk>"], 2]
    assert encode("") == [0, 2]


@pytest.mark.parametrize(
    ("sizes", "ids", "millions"),
    [((2048, 4096, 24), (50272, 16416), (1110.2, 1477.7)), ((1024, 2730, 12), (50264, 16385), (202.6, 235.3))],
)
def test_published_sizes(sizes, ids, millions):
    width, inner, layers = sizes
    config = {"width": width, "inner": inner, "layers": layers, "text_ids": ids[0], "image_ids": ids[1]}
    with torch.device("meta"):
        model = Model(Config.from_dict(config))
    wanted = {}
    for name, count, length, size in zip(("encoder", "decoder"), ids, (64, 256), millions, strict=True):
        own = dict(half(name, (*sizes, count, length)))
        wanted |= {f"{name}.{one}": shape for one, shape in own.items()}
        assert sum(torch.Size(shape).numel() for shape in own.values()) / 1e6 == pytest.approx(size, abs=0.06)
    assert {name: tuple(one.shape) for name, one in model.state_dict().items()} == wanted
    count = sum(torch.Size(shape).numel() for _, shape in detoker(128, 256))
    assert count / 1e6 == pytest.approx(46.7, abs=0.05)


def test_what_models_says_and_what_is_refused(case, tmp_path):
    folder, _, model = case
    what = describe(Source("tiny", folder, "folder"), allow_pickle=True)
    assert (what.kind, what.family, what.problem) == ("image", "dalle-mini", None)
    assert [part.family for part in what.components] == ["dalle-mini", "VQModel"]
    assert check(Source("tiny", folder, "folder"), allow_pickle=True).problems == ()
    with pytest.raises(GencliError, match=r"encoder\.pt is not a \.safetensors file"):
        open_drawer(open_checkpoint(Source("tiny", folder, "folder"))).load()
    with pytest.raises(GencliError, match="this model reads 62"):
        model.check_prompt(ImageRequest(prompt="x " * 80))
    with pytest.raises(UsageError, match="draws token by token and does not denoise: --negative"):
        model.drawer.resolve(ImageRequest(negative="b"))
    make_min_dalle(tmp_path)
    (tmp_path / "detoker.pt").unlink()
    with pytest.raises(GencliError, match=r"has no detoker\.pt"):
        opened(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(GencliError, match=r"has no vocab\.json with merges\.txt"):
        opened(tmp_path)
