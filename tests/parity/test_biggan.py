"""BigGAN-deep against its formulas: images at every truncation, the published sizes, the way from image to image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

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
from gencli.image.drawers.biggan import BOUND, LoadedGAN, slerp
from gencli.image.generate import Denoised, Picture
from gencli.image.request import ImageRequest
from gencli.models.biggan import Config, Model
from tests.oracles.biggan import draw
from tests.tiny.biggan import CONFIG, make_biggan, published, shapes
from tests.tiny.image import rewrite_json


class Case(NamedTuple):
    folder: Path
    tensors: dict[str, Tensor]
    model: LoadedGAN


def opened(path: Path, *, allow_pickle: bool = True) -> LoadedGAN:
    source = Source("tiny", path, "file" if path.is_file() else "folder")
    model = open_drawer(open_checkpoint(source, allow_pickle=allow_pickle)).load(device="cpu")
    assert isinstance(model, LoadedGAN)
    return model


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp("biggan")
    tensors = make_biggan(folder)
    return Case(folder, tensors, opened(folder))


def events(model: LoadedGAN, prompts: list[str] | None = None, *, walk: bool = False, **values: Any) -> list[Any]:
    return [*model.generate(model.drawer.resolve(ImageRequest(**values)), prompts, walk=walk)]


def images(model: LoadedGAN, prompts: list[str] | None = None, **values: Any) -> list[np.ndarray]:
    return [np.asarray(one.image) for one in events(model, prompts, **values) if isinstance(one, Picture)]


# on the grid of statistics; between two; where a quotient of floats misses the grid by 1e-15 (0.14); the ends
@pytest.mark.parametrize("truncation", [0.4, 0.33, 0.14, 1.0, 0.02, 0.001])
def test_images_at_every_truncation(case, truncation):
    generator = torch.Generator().manual_seed(0)
    z, classes = truncation * torch.randn(3, 8, generator=generator), torch.eye(5)[[0, 3, 3]]
    with torch.no_grad():
        found, wanted = case.model.module(z, classes, truncation), draw(case.tensors, CONFIG, z, classes, truncation)
    assert wanted.shape == (3, 3, 32, 32) and 0.1 < wanted.std() < 0.8
    assert_close(found, wanted, rtol=0, atol=2e-5)


def test_a_whole_request(case):
    """Its noise is the truncated normal's: by the seed, within the bound, and of the class that is named."""
    model, request = case.model, case.model.drawer.resolve(ImageRequest(prompt="White Shark", seed=3))
    assert request.truncation == 0.4 and (request.width, request.height) == (32, 32)
    z, classes = model._input(request, 0, request.prompt).split([8, 5], 1)
    assert classes.tolist() == [[0, 0, 1, 0, 0]] and z.abs().max() <= 0.4 * BOUND
    wanted = ((draw(case.tensors, CONFIG, z, classes, 0.4)[0] + 1) * 127.5).movedim(0, -1).numpy()
    (found,) = images(model, prompt="2", seed=3)
    assert np.abs(found - wanted).max() <= 1


def test_noise_is_normal_within_its_bound(case):
    """Its spread is that of the truncated normal distribution, 0.7737 of the mean square."""
    request = ImageRequest(truncation=1.0, seed=0)
    noise = torch.cat([case.model._input(request, number, "0")[:, :8] for number in range(2000)])
    assert noise.abs().max() < BOUND and noise.abs().max() > 0.99 * BOUND
    assert abs(noise.mean()) < 0.03 and noise.square().mean() == pytest.approx(0.7737, abs=0.03)


def test_each_of_several_alone_and_in_batches(case):
    together = images(case.model, ["hen", "1"], seed=5, count=2, batch=2)
    alone = [images(case.model, prompt=p, seed=5 + i)[0] for i, p in enumerate(["hen", "hen", "goldfish", "goldfish"])]
    for one, other in zip(together, alone, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1
    assert (alone[0] != alone[1]).any()


def test_the_way_from_image_to_image(case):
    """Noises along the sphere, classes straight; between images of one prompt and of two."""
    found = events(case.model, ["hen", "ostrich"], seed=1, walk=True, steps=4)
    steps = [one for one in found if isinstance(one, Denoised)]
    assert [(one.index, one.total, one.first) for one in steps] == [(0, 3, 1), (1, 3, 1), (2, 3, 1)]
    request = case.model.drawer.resolve(ImageRequest(seed=1))
    (a, b) = (case.model._input(request, i, p) for i, p in enumerate(["hen", "ostrich"]))
    angle = torch.arccos(a[0, :8] @ b[0, :8] / a[0, :8].norm() / b[0, :8].norm())
    for k, step in enumerate(steps, 1):
        parts = torch.sin(angle * (1 - k / 4)), torch.sin(angle * k / 4)
        z = (parts[0] * a[:, :8] + parts[1] * b[:, :8]) / torch.sin(angle)
        classes = (1 - k / 4) * a[:, 8:] + k / 4 * b[:, 8:]
        assert_close(step.x0, draw(case.tensors, CONFIG, z, classes, 0.4), rtol=0, atol=1e-4)
    plain = images(case.model, ["hen", "ostrich"], seed=1)
    walked = [np.asarray(one.image) for one in found if isinstance(one, Picture)]
    assert all((a == b).all() for a, b in zip(plain, walked, strict=True))
    parallel = torch.ones(1, 8)
    assert_close(slerp(parallel, 3 * parallel, 0.5), 2 * parallel)


@pytest.mark.parametrize(("side", "millions"), [(128, 50.389), (256, 55.881), (512, 56.164)])
def test_published_sizes(side, millions):
    config = published(side)
    with torch.device("meta"):
        model = Model(Config.from_dict(config))
    wanted = {name.replace("weight_orig", "weight"): shape for name, shape in shapes(config)}
    assert {name: tuple(one.shape) for name, one in model.state_dict().items()} == wanted
    weights = sum(one.numel() for name, one in model.named_parameters() if "running" not in name)
    assert weights / 1e6 == pytest.approx(millions, abs=6e-4)
    with torch.device("meta"):
        assert model(torch.empty(2, 128), torch.empty(2, 1000), 0.4).shape == (2, 3, side, side)


@pytest.mark.parametrize("beside", ["biggan-deep-32", None])
def test_the_two_files_of_a_download(case, tmp_path, beside):
    make_biggan(tmp_path, file=beside)
    model = opened(tmp_path / f"{beside + '-' if beside else ''}pytorch_model.bin")
    assert (images(model, prompt="hen", seed=1)[0] == images(case.model, prompt="hen", seed=1)[0]).all()


def test_what_models_says(case, tmp_path):
    source = Source("tiny", case.folder, "folder")
    what = describe(source, allow_pickle=True)
    count = sum(
        t.numel() for name, t in case.tensors.items() if not name.endswith(("_u", "_v")) and "running" not in name
    )
    assert (what.kind, what.family, what.parameters, what.problem) == ("image", "biggan-deep", count, None)
    assert check(source, allow_pickle=True).problems == ()
    assert "only pytorch_model.bin" in (describe(source).problem or "")
    with pytest.raises(GencliError, match=r"only pytorch_model\.bin"):
        opened(case.folder, allow_pickle=False)
    make_biggan(tmp_path, file="biggan-deep-32")
    (tmp_path / "biggan-deep-32-config.json").unlink()
    with pytest.raises(GencliError, match=r"without its config: no biggan-deep-32-config\.json"):
        opened(tmp_path / "biggan-deep-32-pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hier": True}, "not supported: hier"),
        ({"class_embed_dim": 4}, "class_embed_dim = 4"),
        ({"layers": [[True, 16, 4]]}, "does not follow a width"),
        ({"layers": "many"}, "layers = 'many'"),
        ({"layers": [[1, 16, 16]]}, "no rows"),
        ({"layers": [[False, 16, 16]] * 65}, "no rows"),
        ({"output_dim": 64}, "do not fit output_dim = 64"),
        ({"output_dim": 10**9}, "output_dim"),
        ({"attention_layer_position": 6}, "attention_layer_position = 6"),
        ({"channel_width": 2**20}, "channel_width"),
        ({"channel_width": 32}, "does not fit its config"),
        ({"num_classes": 3}, "names a class"),
        ({"num_classes": True}, "num_classes"),
        ({"id2label": [1]}, "id2label"),
    ],
)
def test_configs_that_are_refused(tmp_path, change, message):
    make_biggan(tmp_path)
    rewrite_json(tmp_path / "config.json", lambda raw: raw | change)
    with pytest.raises(GencliError) as caught:
        opened(tmp_path)
    assert message in caught.value.message and len(caught.value.message) < 400


def test_a_norm_without_its_vectors(tmp_path):
    tensors = make_biggan(tmp_path)
    del tensors["generator.gen_z.weight_v"]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(GencliError, match=r"generator\.gen_z\.weight_v is missing"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"guidance": 2.0, "negative": "hen"}, "draws in one pass and does not denoise: --negative, --cfg-scale"),
        ({"prompt": "hens"}, "no class 'hens'"),
        ({"prompt": "5"}, "no class 5"),
        ({"width": 64}, "draws 32x32 pixels and no other size"),
        ({"init": "x.png"}, "--init would have no effect"),
        ({"temperature": 0.5}, "--temperature would have no effect"),
    ],
)
def test_what_it_cannot_follow(case, values, message):
    with pytest.raises(UsageError, match=message):
        case.model.drawer.resolve(ImageRequest(**values))
    for truncation in (0, 1.5):
        with pytest.raises(UsageError, match="truncation"):
            ImageRequest(truncation=truncation)
