"""Classifier guidance: the noisy classifier against its definition, its gradient against differences, and pictures
against algorithms 1 and 2 of Dhariwal & Nichol 2021, written out in `test_guided_unet`."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gencli.checkpoints import build
from gencli.checkpoints.find import Source
from gencli.errors import GencliError, UsageError
from gencli.image.diffusion.classifier_guidance import ClassifierGuided, LogLikelihood
from gencli.image.diffusion.guidance import Prediction
from gencli.image.diffusion.samplers.ddpm import ddpm
from gencli.image.diffusion.schedule import Point, Step
from gencli.image.generate import Picture, generate
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint, with_classifier
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from tests.opening import open_file, open_part
from tests.oracles.classes_parity import measure
from tests.oracles.guided_reference import Reference
from tests.oracles.guided_sampling import lead, sample, sample_ddim
from tests.oracles.pipelines import assert_same
from tests.tiny.classes import FLAGS, make_class_unet, make_classifier, make_dit, make_guided, write

CLASSES = 10
DDPM_GRID, DDIM_GRID = [999, 666, 333, 0], [750, 500, 250, 0]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A UNet without classes, one with, and a classifier; each with the same as functions."""
    root = tmp_path_factory.mktemp("guided")
    made = {
        "plain": make_guided(root / "plain.safetensors", FLAGS),
        "told": make_guided(root / "told.safetensors", FLAGS, classes=CLASSES, seed=2),
        "classifier": make_classifier(root / "classifier.safetensors", FLAGS),
    }
    return {name: (root / f"{name}.safetensors", network) for name, network in made.items()}


def source(path, kind="file"):
    return Source(path.name, path, kind)


def led(files, kind="plain"):
    checkpoint = with_classifier(open_image_checkpoint(source(files[kind][0])), source(files["classifier"][0]))
    return load(checkpoint, device="cpu")


def draw(pipeline, prompts=None, **values):
    request = resolve(ImageRequest(**{"seed": 3, **values}), pipeline.checkpoint)
    return [event for event in generate(pipeline, request, prompts) if isinstance(event, Picture)]


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
@pytest.mark.parametrize("updown", [True, False])
@torch.no_grad()
def test_classifier(tmp_path, pool, updown):
    """All pools; where residual blocks change the size, only attention tells the depth by its shape."""
    network = Reference(pool=pool, outputs=7, head=16, updown=updown, mult=(1, 2, 2), depth=2, attended=(2, 4))
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    t = torch.tensor([3.0, 721.5])
    expected = network.classifier(x, t)
    write(tmp_path / "classifier.safetensors", network.state)
    depth = {"classifier_depth": 2} if pool != "attention" and updown else {}
    (tmp_path / "classifier.json").write_text(json.dumps(FLAGS | depth))
    config, tensors = open_part(tmp_path / "classifier.safetensors", "classifier")
    ours = build.load(tmp_path, config=config, tensors=tensors)
    torch.testing.assert_close(ours(x, t), expected, atol=1e-4, rtol=1e-5)
    assert config["pool"] == pool
    if depth:
        (tmp_path / "classifier.json").write_text(json.dumps(FLAGS))
        with pytest.raises(GencliError, match="does not say its depth"):
            open_file(tmp_path / "classifier.safetensors")


def test_gradient(files):
    """Against central differences of log p in float64, in directions of a picture."""
    pipeline = led(files)
    classifier = pipeline.classifier.double()
    classifier.compute_dtype = torch.float64
    generator = torch.Generator().manual_seed(4)
    x, direction = torch.randn(2, 2, 3, 16, 16, generator=generator, dtype=torch.float64)
    classes = torch.tensor([7, 2])
    gradient = LogLikelihood(classifier, classes, 2.5)(x, 300.0)
    assert gradient.shape == x.shape and not gradient.requires_grad

    def likelihood(at):
        return classifier(at, torch.full((2,), 300.0)).log_softmax(-1)[[0, 1], classes]

    with torch.no_grad():
        difference = (likelihood(x + 1e-5 * direction) - likelihood(x - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close((gradient * direction).sum((1, 2, 3)), 2.5 * difference, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["plain", "told"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_pictures(files, kind, sampler):
    """Models that are told the class and models that are not."""
    pipeline = led(files, kind)
    network, guide = files[kind][1], lead(files["classifier"][1], 7, 20.0)
    label = 7 if kind == "told" else None
    more = {"spacing": "linspace"} if sampler == "ddpm" else {}
    ours = draw(pipeline, prompt="7", classifier_scale=20.0, sampler=sampler, steps=4, **more)[0]
    way, grid = (sample, DDPM_GRID) if sampler == "ddpm" else (sample_ddim, DDIM_GRID)
    assert_same(ours.image, way(network, grid, "linear", label, lead=guide))
    alone = np.asarray(way(network, grid, "linear", label)).astype(int)
    assert np.abs(np.asarray(ours.image) - alone).max() > 5  # the classifier was heard
    assert (ours.request.prompt, ours.request.classifier_scale) == ("7", 20.0)


def test_scale_0_is_the_model_alone(files):
    alone = load(open_image_checkpoint(source(files["plain"][0])), device="cpu")
    guided = draw(led(files), prompt="7", classifier_scale=0.0, steps=2)[0]
    assert_same(guided.image, draw(alone, steps=2)[0].image, tolerance=0)
    assert draw(led(files), prompt="7", steps=1)[0].request.classifier_scale == 1.0


def test_the_mean_of_every_step_is_shifted_by_its_variance():
    """fixed_large: Σ = β; the last step, which draws no noise, is not led."""
    x, ahead = torch.zeros(1, 3, 2, 2), Point(2.0, 0.9)
    steps = [Step(0, Point(5.0, 0.5), ahead), Step(1, ahead, Point(-1.0, 1.0))]

    def predict(x, at):
        return Prediction(x, x, gradient=torch.ones_like(x))

    first, last = ddpm(predict, x, steps, draw_noise=lambda: torch.zeros_like(x), variance_type="fixed_large")
    torch.testing.assert_close(first.x, torch.full_like(x, 1 - 0.5 / 0.9))
    torch.testing.assert_close(last.x, first.x)  # x0 = x: nothing but the mean


def test_score_is_shifted_so_that_x0_and_eps_still_make_x():
    x = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    point = Point(5.0, 0.3)
    eps = torch.randn_like(x)
    x0 = (x - point.sqrt_one_minus_alpha_cumprod * eps) / point.sqrt_alpha_cumprod
    guided = ClassifierGuided(lambda x, at: Prediction(x0, eps), lambda x, t: torch.full_like(x, 0.5), mean=False)
    got = guided(x, point)
    torch.testing.assert_close(got.eps, eps - point.sqrt_one_minus_alpha_cumprod * 0.5)
    torch.testing.assert_close(point.mix(got.x0, got.eps), x)
    assert guided(x, Point(5.0, 0.0)).x0 is x0  # zero SNR: nothing to judge


def test_each_of_several_in_every_batch(files):
    """Each picture is led to its own class."""
    pipeline = led(files)
    values = {"steps": 2, "classifier_scale": 20.0}
    together = draw(pipeline, prompts=["7", "1"], batch=2, **values)
    alone = draw(pipeline, prompt="1", seed=4, **values)[0]
    assert_same(together[1].image, alone.image, tolerance=1)


def test_classifier_in_a_folder(files, tmp_path):
    """config.json with the settings and the names of classes, and safetensors."""
    config, _ = open_part(files["classifier"][0], "classifier")
    labels = {"id2label": {str(i): f"kind {i}" for i in range(CLASSES)}}
    (tmp_path / "config.json").write_text(json.dumps({**config, **labels}))
    save_file(files["classifier"][1].state, tmp_path / "model.safetensors")
    checkpoint = with_classifier(open_image_checkpoint(source(files["plain"][0])), source(tmp_path, "folder"))
    by_name = draw(load(checkpoint, device="cpu"), prompt="Kind 7", steps=2, classifier_scale=5.0)[0]
    assert_same(by_name.image, draw(led(files), prompt="7", steps=2, classifier_scale=5.0)[0].image, tolerance=0)


def test_what_does_not_go_together(files, tmp_path):
    plain, told = (open_image_checkpoint(source(files[kind][0])) for kind in ("plain", "told"))
    classifier = source(files["classifier"][0])
    with pytest.raises(GencliError, match="draws nothing by itself") as error:
        open_image_checkpoint(classifier)
    assert "--classifier" in error.value.hint
    with pytest.raises(GencliError, match="is not a classifier of noisy images: it is a UNet"):
        with_classifier(plain, source(files["told"][0]))
    make_class_unet(tmp_path / "unet")
    with pytest.raises(GencliError, match="not a classifier of noisy images but a UNet2DModel"):
        with_classifier(plain, source(tmp_path / "unet", "folder"))
    save_file({"x": torch.zeros(1)}, tmp_path / "odd.safetensors")
    with pytest.raises(GencliError, match="its tensors are none of guided-diffusion's"):
        with_classifier(plain, source(tmp_path / "odd.safetensors"))
    make_classifier(tmp_path / "few.safetensors", FLAGS, outputs=4)
    with pytest.raises(GencliError, match=r"4 classes apart, and told\.safetensors is told 10"):
        with_classifier(told, source(tmp_path / "few.safetensors"))
    make_dit(tmp_path / "dit")
    with pytest.raises(GencliError, match="judges images in pixels"):
        with_classifier(open_image_checkpoint(source(tmp_path / "dit", "folder")), classifier)
    guided = with_classifier(plain, classifier)
    for values, checkpoint, match in [
        ({"prompt": "7", "width": 32}, guided, "judges images of 16x16 pixels, not of 32x16"),
        ({"prompt": "dog"}, guided, "no names of its classes"),
        ({"prompt": "10"}, guided, "no class 10"),
        ({"prompt": "7"}, plain, "without a prompt"),
        ({"classifier_scale": 2.0}, plain, "--classifier-scale without a classifier"),
        ({"prompt": "7", "guidance": 2.0}, guided, "has no class that stands for none: --cfg-scale"),
    ]:
        with pytest.raises(UsageError, match=match):
            resolve(ImageRequest(**values), checkpoint)
    with pytest.raises(UsageError, match="no class is named"):
        draw(led(files), steps=1)


def test_nan_of_the_classifier_is_an_error(files):
    pipeline = led(files)
    with torch.no_grad():
        pipeline.classifier.out[2].c_proj.bias.fill_(float("nan"))
    with pytest.raises(GencliError, match="classifier gave NaN"):
        draw(pipeline, prompt="7", steps=1)


def test_figures_for_the_table(tmp_path):
    """What the README's table says of these families stays within the promised bounds."""
    for measured in measure(tmp_path):
        assert 0 <= measured.component <= 1e-4, measured
        assert 0 <= measured.picture <= 2, measured
