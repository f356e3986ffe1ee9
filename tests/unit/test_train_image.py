"""The picture recipe for seconds: loss falls, a broken run ends as an unbroken one, the result opens anywhere."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from gencli.checkpoints import build
from gencli.checkpoints.find import find
from gencli.errors import GencliError, UsageError
from gencli.image.diffusion.schedule import NoiseSchedule
from gencli.image.generate import Picture, generate
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from gencli.models.autoencoder_kl import AutoencoderKL
from gencli.train import image, score, state
from gencli.train.augment import is_kept, pair_up
from gencli.train.autoencoder import config as autoencoder_config
from gencli.train.captions import find_captions
from gencli.train.clip_tokenizer import add_words
from gencli.train.coupling import couple, low_frequencies
from gencli.train.diffusion import LatentDataset
from gencli.train.optim import Muon, learning_rate_factor, orthogonalize
from gencli.train.pictures import Caption, read_pictures
from gencli.train.recipe import ImageRecipe
from gencli.train.text_to_image import TextToImageModel
from gencli.train.trainer import Progress
from gencli.train.variants import FACTORS
from tests.oracles.libraries import diffusers, transformers
from tests.tiny.image import make_stable_diffusion, make_text_encoder, rewrite_json
from tests.tiny.pictures import COLORS, make_pictures

pytestmark = pytest.mark.slow

STAGES = ("autoencoder", "diffusion", "decoder")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"))


def recipe(out: Path, steps: tuple[int, int, int] = (4, 4, 0), **changes: Any) -> ImageRecipe:
    small = {"widths": (16, 16), "text_width": 16, "text_layers": 1, "vocabulary": 600, "evaluate_every": 2}
    rest = {"out": str(out), "batch": 4, "warmup": 2, "save_every": 1000.0, "device": "cpu", "size": 32}
    stages = {"autoencoder_steps": steps[0], "steps": steps[1], "decoder_steps": steps[2]}
    return ImageRecipe(**{**rest, **small, **stages, "autoencoder_widths": (8, 8, 16), **changes})


def run(pictures: Path, recipe: ImageRecipe, stop: int | None = None) -> list[Progress]:
    steps = image.train(pictures, [], recipe)
    told = list(itertools.islice(steps, stop))
    steps.close()
    return told


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{f.relative_to(folder)}/{name}": tensor for f in files for name, tensor in load_file(f).items()}


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as lines:
        return [{**row, "seconds": ""} for row in csv.DictReader(lines)]


def drawn(folder: Path, prompt: str, **settings: Any) -> np.ndarray:
    checkpoint = open_image_checkpoint(find(str(folder)))
    request = resolve(ImageRequest(prompt=prompt, seed=0, steps=3, **settings), checkpoint)
    events = generate(load(checkpoint, device="cpu"), request, [prompt])
    return np.asarray(next(event.image for event in events if isinstance(event, Picture)).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Progress]]:
    """An unbroken run through all three stages."""
    out = tmp_path_factory.mktemp("run")
    return out, run(pictures, recipe(out, (4, 4, 3)))


def test_resumed_equals_unbroken(pictures: Path, whole: tuple[Path, list[Progress]], tmp_path: Path) -> None:
    """Stopped in every stage."""
    out, told = whole
    assert [(at.stage, at.step) for at in told] == [
        (stage, step) for stage, steps in zip(STAGES, (4, 4, 3), strict=True) for step in range(1, steps + 1)
    ]
    pieces = [run(pictures, recipe(tmp_path, (4, 4, 3)), stop) for stop in (2, 3, 4, None)]
    assert [len(piece) for piece in pieces] == [2, 3, 4, 2]
    assert_equal(weights(out / "checkpoint"), weights(tmp_path / "checkpoint"))
    for name in ("loss.csv", "autoencoder.csv", "decoder.csv"):
        assert rows(out / name) == rows(tmp_path / name)
        assert (tmp_path / name).with_suffix(".png").exists()
    scored = [row["step"] for row in rows(out / "loss.csv") if row["validation_seen"]]
    assert scored == ["2", "4"] and [at.step for at in told if at.validation] == [2, 4]


def test_opens_in_diffusers(whole: tuple[Path, list[Progress]]) -> None:
    folder = whole[0] / "checkpoint"
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    assert theirs.unet.config.sample_size == 8 and theirs.tokenizer.model_max_length == 32
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = theirs("red circle", num_inference_steps=3, guidance_scale=3.0, latents=noise, output_type="np").images[
        0
    ]
    assert np.abs(drawn(folder, "red circle") - (expected * 255).round()).max() <= 2


def test_learns(pictures: Path, tmp_path: Path) -> None:
    told = run(pictures, recipe(tmp_path, (20, 24, 0), evaluate_every=12, lr=1e-2))
    first, second = ([at for at in told if at.stage == stage] for stage in STAGES[:2])
    assert first[-1].loss < 0.7 * first[0].loss
    scores = [at.validation["seen"] for at in second if at.validation]
    assert scores[-1] < scores[0]
    assert sum(at.loss for at in second[-8:]) < 0.9 * sum(at.loss for at in second[:8])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_the_error_of_x0(prediction: str) -> None:
    """Whatever the model says: the same x0 and the same wrong one have, weighed, the same loss, min(SNR, 5) |Δx0|²."""
    schedule = NoiseSchedule(prediction_type=prediction)
    model = TextToImageModel(None, None, schedule, 0)  # type: ignore[arg-type]
    x0, wrong, eps = torch.randn(3, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    level = torch.tensor([0.9999, 0.9, 0.5, 0.1, 0.001], dtype=torch.float64).view(-1, 1, 1, 1)
    noisy = level.sqrt() * x0 + (1 - level).sqrt() * eps
    implied = (noisy - level.sqrt() * wrong) / (1 - level).sqrt()  # the noise that goes with the wrong x0
    error = (model.target(x0, eps, level) - model.target(wrong, implied, level)).square().mean((1, 2, 3))
    snr = (level / (1 - level)).flatten()
    expected = snr.clamp(max=5) * (x0 - wrong).square().mean((1, 2, 3))
    torch.testing.assert_close(model.min_snr_weights(level.flatten(), 5) * error, expected)


def test_held_out_pictures_are_not_seen(pictures: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"hold_out": 0.34, "copies": 1, "pairs": 2}
    collection = image.collect_images(pictures, [], 32, recipe(tmp_path, **changes))
    known, pixels, own, held = collection.captions, collection.images, collection.originals, collection.validation
    assert (own, held) == (4, 2) and len(known) == len(pixels) > 6
    assert [caption.label for caption in known[-2:]] == ["green circle", "gray circle"]
    captions = find_captions(pictures, [])
    for (name, caption), one in itertools.product(captions, range(len(known))):
        if known[one].label == caption.label:
            assert torch.equal(pixels[one], read_pictures(pictures, [name], 32)[0])
    told = run(pictures, recipe(tmp_path, (1, 2, 0), **changes))
    assert set(told[-1].validation or {}) == {"held_out"}
    # what is seen does not depend on what is held out
    labels = {caption.label for caption in known[:-2]}
    assert not {"green circle", "gray circle"} & labels


def test_variants_are_seen_in_place_of_the_pictures(pictures: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path, (1, 2, 0), variants=2, copies=1, pairs=2)
    collection = image.collect_images(pictures, [], 32, made)
    known, pixels, own, held = collection.captions, collection.images, collection.originals, collection.validation
    assert (own, held) == (6, 0) and len(known) == len(pixels) > 18
    assert known[6:18] == [*known[:6], *known[:6]]
    assert not torch.equal(pixels[6:12], pixels[:6]) and not torch.equal(pixels[6:12], pixels[12:18])
    counts = [count for count, _ in collection.groups]
    assert counts[0] == 18 and counts[2] == 2 and sum(counts) == len(known)
    zeros = torch.zeros(len(known), 4, 4, 4)
    latents = LatentDataset(known, zeros, zeros, own, collection.groups)
    picks = torch.cat([latents.pick(made, torch.Generator().manual_seed(seed)) for seed in range(300)])
    assert set(picks.tolist()) == set(range(len(known))) and latents.validation == 0
    painted, pairs = ((picks >= first).float().mean().item() for first in (18, len(known) - 2))
    assert painted == pytest.approx(made.recolor_share + made.pair_share, abs=0.05)
    assert pairs == pytest.approx(made.pair_share, abs=0.05)
    assert {at.step for at in run(pictures, made) if at.stage == "diffusion"} == {1, 2}
    flipped = image.collect_images(pictures, [], 32, recipe(tmp_path, (1, 2, 0), variants=2, random_flip=True))
    assert torch.equal(flipped.images[:6], pixels[:6]) and not torch.equal(flipped.images[6:18], pixels[6:18])


def test_noise_tells_how_an_image_is_varied_unless_it_has_no_caption() -> None:
    factors, noises = torch.randn(40, 10, generator=torch.Generator().manual_seed(1)), torch.Generator().manual_seed(2)
    latents = torch.randn(40, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    captions, groups = [Caption(str(i), (), "") for i in range(40)], ((40, 1.0),)
    coupled = LatentDataset(captions, latents, latents, 40, groups, couple(latents, factors))
    picks, named = torch.arange(40), torch.arange(40) % 2 == 0
    noise = coupled.noise(picks, named, noises)
    apart = LatentDataset(captions, latents, latents, 40, groups).noise(picks, named, torch.Generator().manual_seed(2))
    assert torch.equal(noise[1::2], apart[1::2]) and coupled.coupling
    told = low_frequencies(noise) @ coupled.coupling.directions.T
    torch.testing.assert_close(told[::2], factors[::2], atol=1e-4, rtol=0)
    assert not torch.allclose(told[1::2], factors[1::2], atol=0.1)


def test_muon_takes_a_closure_as_other_optimizers_do() -> None:
    weight = torch.nn.Parameter(torch.eye(3))
    optimizer = Muon([weight], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 3 and closure() < 3
    assert optimizer.step() is None


def test_another_recipe_is_refused_unless_allowed(pictures: Path, tmp_path: Path) -> None:
    run(pictures, recipe(tmp_path, (2, 2, 0)))
    with pytest.raises(GencliError, match=r"other settings: lr 0\.0015, now 0\.1"):
        run(pictures, recipe(tmp_path, (2, 2, 0), lr=0.1))
    with pytest.raises(GencliError, match=r"other settings: steps 2, now 3"):
        run(pictures, recipe(tmp_path, (3, 2, 0)))
    with pytest.raises(GencliError, match=r"other sizes: widths \(16, 16\), now \(16, 32\)"):
        run(pictures, recipe(tmp_path, (2, 2, 0), widths=(16, 32), allow_changes=True))
    assert [at.step for at in run(pictures, recipe(tmp_path, (2, 4, 0), lr=1e-4, allow_changes=True))] == [3, 4]
    with pytest.raises(GencliError, match=r"other settings: hold_out 0\.0, now 0\.4; recolor 0, now 1$"):
        run(pictures, recipe(tmp_path, (2, 4, 0), lr=1e-4, copies=1, hold_out=0.4))
    saved = state.load(tmp_path / "latents.pt") or {}
    state.save(tmp_path / "latents.pt", {**saved, "recipe": {**saved["recipe"], "data": "of others"}})
    with pytest.raises(GencliError, match=r"other settings: the data \(texts, or images and captions\) are others"):
        run(pictures, recipe(tmp_path, (2, 4, 0), lr=1e-4))


def test_latents_are_normalised_and_decode_alike(pictures: Path, whole: tuple[Path, list[Progress]]) -> None:
    from gencli.models import autoencoder_kl

    saved = state.load(whole[0] / "latents.pt") or {}
    torch.testing.assert_close(saved["mean"].mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(saved["mean"].std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    parsed = autoencoder_kl.Config.from_dict(autoencoder_config(recipe(whole[0])))
    raw, normal = autoencoder_kl.Model(parsed), autoencoder_kl.Model(parsed)
    raw.load_state_dict((state.load(whole[0] / "autoencoder.pt") or {})["model"])
    normal.load_state_dict(saved["vae"])
    x = read_pictures(pictures, [f"{color}.png" for color in COLORS], 32).float() / 127.5 - 1
    with torch.no_grad():
        before, after = raw.decode(raw.encode(x)[0]), normal.decode(normal.encode(x)[0])
    torch.testing.assert_close(before, after, atol=1e-3, rtol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_on_from_a_checkpoint(pictures: Path, tmp_path: Path, prediction: str) -> None:
    """Stable Diffusion, as the hub has it: names and precisions are the source's, and what is not trained."""
    source = tmp_path / "source"
    make_stable_diffusion(source, "sd15" if prediction == "epsilon" else "sd21")
    before = weights(source)
    changes = {"init": str(source), "size": 32, "evaluate_every": 2, "lr": 1e-3, "optimizer": "adamw"}
    told = run(pictures, recipe(tmp_path / "whole", (0, 4, 0), **changes))
    assert {at.stage for at in told} == {"diffusion"}
    scores = [at.validation["seen"] for at in told if at.validation]
    assert scores[1] < scores[0]
    pieces = [run(pictures, recipe(tmp_path / "broken", (0, 4, 0), **changes), stop) for stop in (3, None)]
    assert [len(piece) for piece in pieces] == [3, 1]
    after = weights(tmp_path / "whole" / "checkpoint")
    assert_equal(after, weights(tmp_path / "broken" / "checkpoint"))
    assert_equal(before, weights(source))
    kept = {name for name in before if not name.endswith("position_ids")}
    assert {name.rpartition("/")[2] for name in after} == {name.rpartition("/")[2] for name in kept}
    for name, tensor in after.items():
        old = before[name]
        assert (old.dtype, old.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(old, tensor) == name.startswith("vae/"), name
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "whole" / "checkpoint", dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    assert theirs.safety_checker is None
    assert drawn(tmp_path / "whole" / "checkpoint", "red circle", width=32, height=32).shape == (32, 32, 3)


@pytest.mark.parametrize("whole", [False, True])
def test_words_are_learned_without_pictures(pictures: Path, tmp_path: Path, whole: bool) -> None:
    """Before the second stage, which then begins with another text encoder; resumed equals unbroken. With a token for
    each word of the captions, transformers reads the result too."""
    make_stable_diffusion(tmp_path / "source", "sd15")
    make_text_encoder(
        tmp_path / "source" / "text_encoder", changes={"num_hidden_layers": 1, "max_position_embeddings": 16}
    )
    config = tmp_path / "source" / "tokenizer" / "tokenizer_config.json"
    rewrite_json(config, lambda raw: raw | {"model_max_length": 16})
    changes = {"init": str(tmp_path / "source"), "size": 32, "words_steps": 16, "whole_words": whole}
    told = run(pictures, recipe(tmp_path / "whole", (0, 1, 0), **changes))
    words = [at.loss for at in told if at.stage == "words"]
    assert len(words) == 16 and told[-1].stage == "diffusion"
    assert sum(words[-4:]) < 0.8 * sum(words[:4])
    run(pictures, recipe(tmp_path / "broken", (0, 1, 0), **changes), 3)
    assert [at.step for at in run(pictures, recipe(tmp_path / "broken", (0, 1, 0), **changes))] == [*range(4, 17), 1]
    assert_equal(weights(tmp_path / "whole" / "checkpoint"), weights(tmp_path / "broken" / "checkpoint"))
    with pytest.raises(GencliError, match="other sizes: whole_words"):
        run(pictures, recipe(tmp_path / "broken", (0, 1, 0), **changes | {"whole_words": not whole}))
    source, made = (tmp_path / name for name in ("source", "whole/checkpoint"))
    old, new = (transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer") for folder in (source, made))
    assert new.convert_ids_to_tokens([len(new) - 2, len(new) - 1]) == ["<|startoftext|>", "<|endoftext|>"]
    words = ("circle", "round", "Orange", "draw", "circles")
    before, after = ([len(reader(word).input_ids) - 2 for word in words] for reader in (old, new))
    assert after == ([1] * 5 if whole else before) and before != [1] * 5
    assert (len(new) > len(old)) == whole
    encoder = transformers.CLIPTextModel.from_pretrained(made / "text_encoder")
    assert encoder.config.vocab_size == len(new)
    ids = new("a red circle", return_tensors="pt").input_ids
    ours = build.load(made / "text_encoder")
    with torch.inference_mode():
        expected = encoder(ids).last_hidden_state
        torch.testing.assert_close(ours(ids).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    assert drawn(made, "red circle", width=32, height=32).shape == (32, 32, 3)


def test_a_tokenizer_that_takes_no_words_is_refused_at_once(pictures: Path, tmp_path: Path) -> None:
    make_stable_diffusion(tmp_path / "source", "sd15")
    folder = tmp_path / "source" / "tokenizer"
    transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)  # in one file, tokenizer.json
    (folder / "merges.txt").unlink()
    (folder / "vocab.json").unlink()
    changes = {"init": str(tmp_path / "source"), "size": 32, "words_steps": 16, "whole_words": True}
    with pytest.raises(GencliError, match=r"has no merges\.txt"):
        run(pictures, recipe(tmp_path / "run", (0, 1, 0), **changes))
    assert not (tmp_path / "run" / "latents.pt").exists()


def test_a_plural_begins_as_its_singular(tmp_path: Path) -> None:
    """A new word is made of its parts in the old tokenizer, a plural of what its singular is made of; the special
    tokens stay the last."""
    make_stable_diffusion(tmp_path, "sd15")
    words = {"circles": "circle", "circle": "circle", "red": "red"}
    parts = add_words(tmp_path / "tokenizer", tmp_path / "new", words)
    old, new = (transformers.CLIPTokenizer.from_pretrained(tmp_path / name) for name in ("tokenizer", "new"))
    assert len(parts) == len(new) > len(old)
    for word, like in words.items():
        [token] = new(word).input_ids[1:-1]
        assert list(parts[token]) == old(like).input_ids[1:-1]
    assert [parts[-2], parts[-1]] == [(old.bos_token_id,), (old.eos_token_id,)]
    (tmp_path / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(GencliError, match=r"has no merges\.txt"):
        add_words(tmp_path / "tokenizer", tmp_path / "newer", words)


def test_the_decoder_may_learn_too(pictures: Path, tmp_path: Path) -> None:
    """A third stage after --init: of the autoencoder, whose file is an old one, the decoder alone is another."""
    make_stable_diffusion(tmp_path / "source", "sd15")
    told = run(pictures, recipe(tmp_path / "run", (0, 1, 20), init=str(tmp_path / "source"), size=32))
    assert told[-1].stage == "decoder" and told[-1].loss < told[1].loss
    folder = tmp_path / "run" / "checkpoint" / "vae"
    before, after = (build.load(path) for path in (tmp_path / "source" / "vae", folder))
    assert isinstance(after, AutoencoderKL)
    old = before.state_dict()
    changed = {
        name.partition(".")[0] for name, tensor in after.state_dict().items() if not torch.equal(old[name], tensor)
    }
    assert changed == {"decoder", "post_quant_conv"}
    z = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = diffusers.AutoencoderKL.from_pretrained(folder).decode(z).sample
        torch.testing.assert_close(after.decode(z), expected, atol=1e-4, rtol=1e-4)


def test_the_text_encoder_may_be_kept(pictures: Path, tmp_path: Path) -> None:
    make_stable_diffusion(tmp_path / "source", "sd15")
    changes = {"init": str(tmp_path / "source"), "size": 32, "keep_text_encoder": True, "min_snr": 5.0}
    run(pictures, recipe(tmp_path / "run", (0, 2, 0), **changes))
    before, after = weights(tmp_path / "source"), weights(tmp_path / "run" / "checkpoint")
    changed = {name.partition("/")[0] for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"unet"}


def test_what_cannot_be_gone_on_from(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(GencliError, match=r"stories is a text model \(gpt2\), not an image model"):
        run(pictures, recipe(tmp_path / "a", init="stories"))
    make_stable_diffusion(tmp_path / "source", "sd15")
    with pytest.raises(GencliError, match=r"--size 30: .* draws sizes that are multiples of 8"):
        run(pictures, recipe(tmp_path / "b", init=str(tmp_path / "source"), size=30))
    file = tmp_path / "source" / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"in_channels": 9}))
    with pytest.raises(GencliError, match="its UNet reads more than a text and latents"):
        run(pictures, recipe(tmp_path / "c", init=str(tmp_path / "source")))


@pytest.mark.parametrize("least", [514, 522])
def test_the_smallest_vocabularies_train(pictures: Path, tmp_path: Path, least: int) -> None:
    """514 leaves no merge, 522 one."""
    run(pictures, recipe(tmp_path, (1, 1, 0), vocabulary=least))
    assert drawn(tmp_path / "checkpoint", "red circle").shape == (32, 32, 3)


def test_a_model_that_cannot_be_is_refused_before_the_autoencoder(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.json").write_text("{}")
    with pytest.raises(GencliError, match="merges"):
        run(pictures, recipe(tmp_path))
    assert not (tmp_path / "autoencoder.csv").exists()


def test_images_of_which_all_are_held_out_are_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--hold-out 0\.99: of 6 images none is left to train on"):
        run(pictures, recipe(tmp_path / "run", hold_out=0.99))
    assert not (tmp_path / "run").exists()


def test_synonyms_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "words.tsv").write_bytes(b"\x89PNG")
    with pytest.raises(GencliError, match="is not UTF-8"):
        score.read_synonyms(tmp_path / "words.tsv", ["cat"])


def test_pictures_lie_on_white_and_are_cut_square(pictures: Path, tmp_path: Path) -> None:
    pixels = read_pictures(pictures, ["red.png", "blue.png"], 64)
    assert pixels.shape == (2, 3, 64, 64)
    assert pixels[:, :, 0, 0].tolist() == [[255, 255, 255], [255, 255, 255]]
    assert pixels[1, :, 32, 32].tolist() == [0, 0, 255]
    wide = Image.new("RGB", (48, 16), "blue")
    wide.paste("lime", (16, 0, 32, 16))
    wide.save(tmp_path / "wide.png")
    middle = read_pictures(tmp_path, ["wide.png"], 16)[0].permute(1, 2, 0)
    assert (middle == torch.tensor([0, 255, 0])).all()
    (tmp_path / "no.png").write_bytes(b"no")
    with pytest.raises(GencliError, match=r"no\.png is not an image$"):
        read_pictures(tmp_path, ["no.png"], 8)


def test_orthogonalize_brings_singular_values_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((16, 40), (40, 16), (8, 8)):
        for dtype in (torch.float32, torch.bfloat16):
            values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=generator), dtype=dtype))
            assert values.min() > 0.3 and values.max() < 1.5, shape


def test_learning_rate_rises_stays_and_falls() -> None:
    factors = [learning_rate_factor(step, 100, 10, 0.4) for step in range(100)]
    assert factors[0] == 0.1 and set(factors[10:60]) == {1.0} and factors[-1] < 0.05
    assert factors[:11] == sorted(factors[:11]) and factors[60:] == sorted(factors[60:], reverse=True)


def test_both_halves_of_a_pair_are_recognised(pictures: Path) -> None:
    rows = find_captions(pictures, [])
    labels, images = [caption.label for _, caption in rows], read_pictures(pictures, [name for name, _ in rows], 128)
    named = [Caption(f"x{index}", (), "") for index in range(len(labels))]  # whose pairs tell what they show
    pairs, sheets = pair_up(named, images, torch.zeros(len(images)), len(images), torch.zeros(60, len(FACTORS)), seed=0)
    told = [
        (pair.label.replace("an ", "").replace("a ", "").split(" and "), sheet)
        for pair, sheet in zip(pairs, sheets, strict=True)
    ]
    told = [(names, sheet) for names, sheet in told if len(names) == 2 and names[0] != names[1]]
    assert len(told) > 10
    for (one, other), sheet in told:
        task = score.Task("a pair", (one, other))
        nearest = score.nearest_labels(sheet[None], score.small(images), [name.label for name in named], task)
        assert score.Drawing(task, 0, nearest, None).recognised
        wrong = score.Task("a pair", (other, one))
        assert not score.Drawing(wrong, 0, nearest, None).recognised
        assert not is_kept(one, other)


def test_a_mirrored_drawing_is_recognised_where_it_may_be(tmp_path: Path) -> None:
    left = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    left[0, :, 10:20, :10], left[1, :, :, :4] = 0, 90
    for name, label in (("fish", "fish"), ("arrow", "left arrow")):
        reference, labels = score._both_ways(left, [Caption(label, (), ""), Caption("wall", (), "")])
        assert labels == (["fish", "wall", "fish", "wall"] if name == "fish" else ["left arrow", "wall", "wall"])
        task = score.Task(label, (label,))
        (nearest,) = score.nearest_labels(left[:1].flip(3), score.small(reference), labels, task)
        assert (nearest[0] == label) == (name == "fish") and len(set(nearest)) == len(nearest) == 2


def test_scores_of_a_checkpoint(pictures: Path, whole: tuple[Path, list[Progress]], tmp_path: Path) -> None:
    model = str(whole[0] / "checkpoint")
    words = tmp_path / "words.tsv"
    words.write_text("red circle\tcrimson disc\nblue circle\tazure disc\n", encoding="utf-8")
    drawn = list(score.score_pictures(model, pictures, [], count=9, steps=2, synonyms=words, seeds=2, seed=5))
    assert {(one.task.prompt, one.task.labels[0]) for one in drawn} == {
        ("crimson disc", "red circle"),
        ("azure disc", "blue circle"),
    }
    assert [one.seed for one in drawn] == [5, 6, 7, 8]
    assert [one.difference is None for one in drawn] == [True, False, True, False]
    first, second = (np.asarray(picture, dtype=float) for picture in two_seeds(model, drawn[0].task.prompt, 5))
    assert drawn[1].difference == pytest.approx(np.abs(first - second).mean(), abs=1e-3)
    pairs = list(score.score_pictures(model, pictures, [], count=9, steps=2, pairs=3))
    assert pairs and all(len(one.nearest) == 2 and " and a" in one.task.prompt for one in pairs)
    assert all(is_kept(*one.task.labels) for one in pairs)
    for line in ("red circle crimson", "no such thing\tword", "red circle\t"):
        words.write_text(line)
        with pytest.raises(GencliError, match="line 1: expected a label of the images"):
            list(score.score_pictures(model, pictures, [], count=1, synonyms=words))


def two_seeds(model: str, prompt: str, seed: int) -> list[Image.Image]:
    checkpoint = open_image_checkpoint(find(model))
    request = resolve(ImageRequest(prompt="", seed=seed, steps=2, batch=25), checkpoint)
    events = generate(load(checkpoint), request, [prompt, prompt])
    return [event.image for event in events if isinstance(event, Picture)]
