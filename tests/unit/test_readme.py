"""README.md and CONTRIBUTING.md tell the truth: help pages, options, paths, and the sampler that is written out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks.update_readme import COMMANDS, README, help_page, section
from gencli.image.diffusion import samplers
from gencli.image.diffusion.guidance import Prediction
from gencli.image.diffusion.schedule import NoiseSchedule

CONTRIBUTING = README.parent / "CONTRIBUTING.md"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_pages_are_current(command: str) -> None:
    written = section(README.read_text(encoding="utf-8"), f"help:{command}")
    assert written == help_page(command), "run `python -m benchmarks.update_readme help`"


def test_begins_with_two_commands_of_one_line() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert block.count("\n") == 1, "a block that a newcomer pastes is one line"
    assert "gencli text" in blocks[0] and "pytest" in blocks[1]


def test_every_example_uses_options_that_exist() -> None:
    text = README.read_text(encoding="utf-8")
    pages = {command: help_page(command) for command in COMMANDS}
    for command, rest in re.findall(r"gencli (text|image) ([^|>\n]*)", text):
        for option in re.findall(r"(?<![\w'\"-])(--?[a-zA-Z][\w-]*)", rest):
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", pages[command]), (command, option)


def test_paths_that_are_named_exist() -> None:
    for page in (README, CONTRIBUTING):
        for path in re.findall(r"\b((?:gencli|tests|benchmarks)/[\w./]*)", page.read_text(encoding="utf-8")):
            if "NAME" not in path and "plain.py" not in path:
                assert (README.parent / path.rstrip(".")).exists(), f"{page.name} names {path}"


def test_the_sampler_of_contributing_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", CONTRIBUTING.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "plain.py").write_text(code)
    monkeypatch.setattr(samplers, "__path__", [*samplers.__path__, str(tmp_path)])
    schedule, x = NoiseSchedule(), torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def last(name: str, **options: float) -> torch.Tensor:
        sampler = samplers.get(name)
        steps = sampler.steps(schedule, 5)
        walk = sampler(lambda x, point: Prediction(x.tanh(), x.sin()), x, steps, draw_noise=lambda: x, **options)
        return [sample.x for sample in walk][-1]

    assert samplers.get("plain").options == {"grey": 0.0}
    torch.testing.assert_close(last("plain"), last("ddim"))
    assert (last("plain", grey=0.5) - last("ddim")).abs().max() > 0.1
