"""Latent diffusion and DDPM's original files as a process: drawn, shown and checked, with pickles and without."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.oracles import ermongroup
from tests.shell.process import gencli
from tests.tiny.ldm import make_ldm_text, to_pickles

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pickled(tmp_path_factory) -> Path:
    """CompVis/ldm-text2im-large-256 as it lies on the hub, small."""
    folder = tmp_path_factory.mktemp("shell") / "ldm"
    make_ldm_text(folder)
    to_pickles(folder)
    return folder


def test_pickles_are_opened_when_it_is_said(pickled: Path) -> None:
    draw = ("image", "a red apple", "-m", pickled, "--steps", 2, "--seed", 3, "--size", "64x48", "-q")
    refused = gencli(*draw)
    assert refused.returncode == 1
    error, hint = refused.stderr.decode().splitlines()
    assert error.startswith("error: ")
    assert "has no weights in safetensors (only" in error
    assert "--allow-pickle" in hint
    done = gencli(*draw, "--allow-pickle")
    assert done.returncode == 0, done.stderr
    assert Image.open(io.BytesIO(done.stdout)).size == (64, 48)


def test_pickles_are_shown_and_checked(pickled: Path) -> None:
    shown = json.loads(gencli("models", "show", pickled, "--allow-pickle", "--json").stdout)
    assert (shown["kind"], shown["family"]) == ("image", "LDMTextToImagePipeline")
    assert shown["problem"] is None
    checked = gencli("models", "check", pickled, "--allow-pickle")
    assert checked.returncode == 0, checked.stdout
    assert b"OK" in checked.stdout


def test_an_original_file_of_ddpm(tmp_path: Path) -> None:
    path = tmp_path / "ema_diffusion_cifar10_model.ckpt"
    torch.save(ermongroup.weights(mult=(1, 1), attends=(1,)), path)
    draw = ("image", "-m", path, "--allow-pickle", "--sampler", "ddpm", "--steps", 2, "--seed", 3, "-q")
    pictures = [gencli(*draw, *more) for more in ((), ("--sampler-option", "variance_type=fixed_small"))]
    assert [Image.open(io.BytesIO(done.stdout)).size for done in pictures] == [(32, 32)] * 2
    assert pictures[0].stdout != pictures[1].stdout
    checked = gencli("models", "check", path, "--allow-pickle")
    assert checked.returncode == 0, checked.stdout
