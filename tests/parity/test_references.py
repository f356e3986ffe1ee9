"""FLUX.1 Kontext, FLUX.1 Fill and the references of FLUX.2 klein against diffusers: whole images within 2/255."""

import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from gencli.checkpoints.find import Source
from gencli.errors import UsageError
from gencli.image.families import FAMILIES
from gencli.image.families.base import References
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from tests.oracles.flow import PROMPT, SIZE, flux_texts
from tests.oracles.libraries import flux_kontext
from tests.oracles.pipelines import assert_same, draw, generator, opened, picture
from tests.tiny.flow import make_flux, make_klein, original_names, write_single
from tests.tiny.hub_cache import COMMIT
from tests.tiny.image import rewrite_json


class Made:
    """A tiny checkpoint, with diffusers' pipeline of it and with ours."""

    def __init__(self, folder, make):
        self.folder, self.pipe, self.pipeline = folder, make(folder), opened(folder)

    def texts(self):
        """The states of the prompt, as FLUX.1's pipelines are given them."""
        states, pooled = flux_texts(self.pipe, self.pipeline.checkpoint.tokenizer("tokenizer_2"), PROMPT, 512)
        return {"prompt_embeds": states, "pooled_prompt_embeds": pooled}


SMALL = ((80, 192), (128, 128), (144, 112), (192, 80))


@pytest.fixture(scope="module")
def kontext(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("references") / "kontext", lambda folder: make_flux(folder, "kontext"))


@pytest.fixture
def small(kontext, monkeypatch):
    """Kontext, which sees images at sizes that take less time than a megapixel."""
    family = replace(kontext.pipeline.checkpoint.family, references=References(1, sizes=SMALL))
    theirs = "diffusers.pipelines.flux.pipeline_flux_kontext.PREFERRED_KONTEXT_RESOLUTIONS"
    monkeypatch.setattr(theirs, list(SMALL))
    return replace(kontext.pipeline, checkpoint=replace(kontext.pipeline.checkpoint, family=family))


def test_the_sizes_of_kontext(kontext):
    assert list(kontext.pipeline.checkpoint.family.references.sizes) == flux_kontext.PREFERRED_KONTEXT_RESOLUTIONS


@pytest.fixture(scope="module")
def fill(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("references") / "fill", lambda folder: make_flux(folder, "fill"))


@pytest.fixture(scope="module")
def klein(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("references") / "klein", make_klein)


def photo(width, height):
    """A picture of any size."""
    return picture().resize((width, height), Image.Resampling.LANCZOS)


@pytest.mark.parametrize("size", [(64, 48), (300, 130)])
@torch.no_grad()
def test_kontext_edits_an_image(kontext, small, size):
    """It is seen at the size that Kontext knows for its shape."""
    image = photo(*size)
    given = {**kontext.texts(), "guidance_scale": 2.5, "num_inference_steps": 2, "generator": generator()}
    theirs = kontext.pipe(image=image, max_area=SIZE["width"] * SIZE["height"], **SIZE, **given).images[0]
    how = {"pipeline": small, "prompt": PROMPT, "steps": 2, **SIZE}
    [ours] = draw(None, init=image, **how)
    assert_same(ours.image, theirs)
    [same] = draw(None, named={"a.png": image}, reference=("a.png",), **how)
    assert_same(same.image, ours.image, tolerance=0)
    [without] = draw(None, **how)
    assert without.image.tobytes() != ours.image.tobytes()


@pytest.mark.parametrize(
    ("size", "drawn"), [((64, 48), (1184, 880)), ((100, 100), (1024, 1024)), ((10, 90), (672, 1568))]
)
def test_kontext_draws_as_large_as_it_sees(kontext, size, drawn):
    resolved = resolve(ImageRequest(prompt="a", init="a.png"), kontext.pipeline.checkpoint, size)
    assert (resolved.width, resolved.height) == drawn
    assert (resolved.steps, resolved.guidance, resolved.strength) == (28, 2.5, None)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"init": "a", "strength": 0.5}, "edits the whole image: --strength would have no effect"),
        ({"init": "a", "mask": "b"}, "edits the whole image: --mask would have no effect"),
        ({"init": "a", "reference": ("b",)}, "looks at 1 image at most, and 2 are given"),
    ],
)
def test_what_kontext_cannot_follow(kontext, asked, said):
    with pytest.raises(UsageError, match=said):
        resolve(ImageRequest(prompt="a", **asked), kontext.pipeline.checkpoint)


@pytest.mark.parametrize("sizes", [[(160, 96)], [(64, 80), (203, 77)], [(1400, 1101)]])
@torch.no_grad()
def test_klein_looks_at_images(klein, sizes):
    """At their own size up to a megapixel, without what is over whole tokens."""
    images = [photo(*size) for size in sizes]
    given = {"prompt": PROMPT, "guidance_scale": 1.0, "num_inference_steps": 1, "generator": generator()}
    theirs = klein.pipe(image=images, **SIZE, **given).images[0]
    named = {f"{i}.png": image for i, image in enumerate(images)}
    how = {"pipeline": klein.pipeline, "prompt": PROMPT, "steps": 1, **SIZE}
    [ours] = draw(None, named=named, reference=tuple(named), **how)
    assert_same(ours.image, theirs)
    if len(images) > 1:
        [other] = draw(None, named=named, reference=tuple(reversed(named)), **how)
        assert other.image.tobytes() != ours.image.tobytes()


def test_klein_draws_as_large_as_its_first_reference(klein):
    for size, drawn in {(160, 96): (160, 96), (1400, 1101): (1152, 896), (47, 33): (32, 32)}.items():
        resolved = resolve(ImageRequest(prompt="a", reference=("a.png",)), klein.pipeline.checkpoint, size)
        assert (resolved.width, resolved.height) == drawn


@torch.no_grad()
def test_klein_looks_at_images_beside_the_one_that_it_changes(klein):
    how = {"pipeline": klein.pipeline, "prompt": PROMPT, "steps": 4, "init": picture(), "strength": 0.5}
    seen = {"named": {"a": photo(64, 64)}, "reference": ("a",)}
    [plain], [looked] = draw(None, **how), draw(None, **how, **seen)
    assert plain.image.tobytes() != looked.image.tobytes()
    mask = Image.new("L", picture().size)
    mask.paste(255, (0, 0, mask.width // 2, mask.height))
    [half] = draw(None, **how, **seen, mask=mask)
    assert half.image.tobytes() not in (plain.image.tobytes(), looked.image.tobytes())


@pytest.mark.parametrize("strength", [1.0, 0.5])
@torch.no_grad()
def test_fill_paints_by_a_mask(fill, strength):
    image, mask = picture(), Image.new("L", picture().size)
    mask.paste(255, (11, 5, 53, 40))
    given = {**fill.texts(), "guidance_scale": 30.0, "num_inference_steps": 4, "generator": generator()}
    theirs = fill.pipe(image=image, mask_image=mask, strength=strength, **SIZE, **given).images[0]
    how = {"pipeline": fill.pipeline, "prompt": PROMPT, "steps": 4, "strength": strength, **SIZE}
    [ours] = draw(None, init=image, mask=mask, paste=False, **how)
    assert_same(ours.image, theirs)


def test_fill_needs_an_image_and_a_mask(fill):
    with pytest.raises(UsageError, match="paints by a mask"):
        resolve(ImageRequest(prompt="a", init="a"), fill.pipeline.checkpoint)
    resolved = resolve(ImageRequest(prompt="a", init="a", mask="b"), fill.pipeline.checkpoint, (64, 64))
    assert (resolved.steps, resolved.guidance, resolved.strength) == (50, 30.0, 1.0)


def test_each_of_a_batch_is_as_alone(small, klein):
    for pipeline in (small, klein.pipeline):
        how = {"pipeline": pipeline, "prompt": PROMPT, "steps": 2, "reference": ("a",), **SIZE}
        how["named"] = {"a": photo(32, 32)}
        alone, together = (draw(None, count=2, batch=batch, **how) for batch in (1, 2))
        for one, other in zip(alone, together, strict=True):
            assert_same(one.image, other.image, tolerance=1)


@pytest.mark.parametrize("name", ["fill", "kontext", "dev"])
def test_a_network_in_a_file(request, tmp_path, monkeypatch, name):
    """With the other parts of FLUX.1 dev: Fill is told by its shapes, Kontext by its name."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    made = request.getfixturevalue("kontext" if name == "dev" else name)
    repository = tmp_path / "hub" / "models--black-forest-labs--FLUX.1-dev"
    shutil.copytree(made.folder, repository / "snapshots" / COMMIT)
    rewrite_json(
        repository / "snapshots" / COMMIT / "model_index.json", lambda raw: raw | {"_class_name": "FluxPipeline"}
    )
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    file = write_single(tmp_path / f"flux1-{name}-dev.safetensors", original_names(made.folder / "transformer"))
    alone = load(open_image_checkpoint(Source("x", file, "file")))
    how = {"prompt": PROMPT, "steps": 2, **SIZE}
    if name == "fill":
        mask = Image.new("L", picture().size, 255)
        how |= {"init": picture(), "mask": mask}
    [ours] = draw(None, pipeline=alone, **how)
    [whole] = draw(None, pipeline=made.pipeline, **how, **({"guidance": 3.5} if name == "dev" else {}))
    assert_same(ours.image, whole.image, tolerance=1)
    pipeline = {"fill": "FluxFillPipeline", "kontext": "FluxKontextPipeline", "dev": "FluxPipeline"}[name]
    assert alone.checkpoint.family is FAMILIES[pipeline]


def test_models_that_look_at_no_image(tmp_path):
    make_flux(tmp_path / "dev")
    with pytest.raises(UsageError, match="dev cannot look at images: --reference would have no effect"):
        resolve(ImageRequest(prompt="a", reference=("a.png",)), opened(tmp_path / "dev").checkpoint)
