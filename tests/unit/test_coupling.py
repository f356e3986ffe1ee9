"""Noise that tells how its image is varied stays normal noise, and tells it where the image lies."""

import math

import pytest
import torch

from gencli.train.coupling import Coupling, cosines, couple, low_frequencies


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [1, 2, 4, 16])
def test_low_frequencies_are_the_first_of_the_orthonormal_dct(size: int) -> None:
    import scipy.fft

    latents = torch.randn(3, 4, size, 2 * size, generator=generator(), dtype=torch.float64)
    rows, columns = min(4, size), min(4, 2 * size)
    theirs = scipy.fft.dctn(latents.numpy(), axes=(2, 3), norm="ortho")[:, :, :rows, :columns]
    made = low_frequencies(latents.float()).view(3, 4, rows, columns)
    torch.testing.assert_close(made, torch.from_numpy(theirs).float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(cosines(size) @ cosines(size).T, torch.eye(rows), atol=1e-6, rtol=0)


def varied(count: int, factors: int, shape: tuple[int, ...] = (4, 16, 16)) -> tuple[torch.Tensor, torch.Tensor]:
    """Return latents that factors move by a map of their own, and the factors."""
    told = torch.randn(count, factors, generator=generator(1))
    moves = torch.nn.functional.interpolate(torch.randn(factors, shape[0], 2, 2, generator=generator(2)), shape[1:])
    return (told @ moves.flatten(1)).view(count, *shape) + 0.1 * torch.randn(
        count, *shape, generator=generator(3)
    ), told


def test_coupled_noise_is_normal_tells_its_factors_and_lies_near_its_image() -> None:
    latents, factors = varied(4000, 6)
    coupling = couple(latents, factors)
    torch.testing.assert_close(coupling.directions @ coupling.directions.T, torch.eye(6), atol=1e-5, rtol=0)
    noise = torch.randn(latents.shape, generator=generator(4))
    told = coupling.told(noise, torch.arange(4000))
    torch.testing.assert_close(low_frequencies(told) @ coupling.directions.T, factors, atol=1e-4, rtol=0)
    # what tells nothing is left as it was
    away = low_frequencies(told - noise)
    torch.testing.assert_close(away @ coupling.directions.T @ coupling.directions, away, atol=1e-4, rtol=0)
    high = told - noise - (away.view(4000, 4, 4, 4).transpose(2, 3) @ cosines(16)).transpose(2, 3) @ cosines(16)
    assert high.abs().max() < 1e-4
    # mean 0, deviation 1 and no correlation, as far as 4000 can show: 5 deviations of what is measured
    flat = low_frequencies(told)
    assert flat.mean(0).abs().max() < 5 / math.sqrt(4000)
    assert (flat.T @ flat / 4000 - torch.eye(64)).abs().max() < 5 * math.sqrt(2 / 4000)
    # each factor moves noise and image the same way
    moved = torch.linalg.lstsq(factors, low_frequencies(latents)).solution
    assert ((moved * coupling.directions).sum(1) > 0.5 * moved.norm(dim=1)).all()


def test_noise_with_little_room_tells_what_moves_most() -> None:
    latents, factors = varied(2000, 6, (4, 1, 1))
    moved = torch.linalg.lstsq(factors, latents.flatten(1)).solution.norm(dim=1)
    coupling = couple(latents, factors)
    assert set(coupling.directions.norm(dim=1).argsort()[2:].tolist()) == set(moved.argsort()[2:].tolist())
    told = coupling.told(torch.randn(latents.shape, generator=generator(4)), torch.arange(2000)).flatten(1)
    assert (told.T @ told / 2000 - torch.eye(4)).abs().max() < 5 * math.sqrt(2 / 2000)


def test_a_factor_that_moves_nothing_is_no_harm() -> None:
    latents, factors = varied(500, 3)
    more = torch.cat([factors, torch.randn(500, 1, generator=generator(5))], dim=1)
    coupling = couple(latents, more)
    assert coupling.directions.isfinite().all()
    few = couple(latents[:2], more[:2])  # fewer images than factors
    assert isinstance(few, Coupling) and few.told(torch.randn(2, 4, 16, 16), torch.arange(2)).isfinite().all()
