"""README.md, its pages and CONTRIBUTING.md tell the truth: options, paths, links, and the sampler written out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from gencli.__main__ import main
from gencli.image.diffusion import samplers
from gencli.image.diffusion.guidance import Prediction
from gencli.image.diffusion.schedule import NoiseSchedule
from gencli.serve import bodies

ROOT = Path(__file__).parents[2]
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
PAGES = (README, CONTRIBUTING, *sorted((ROOT / "gencli" / "docs").glob("*.md")))
COMMANDS = ("text", "image", "chat", "serve", "upscale", "score", "codes")


def test_begins_with_two_commands_of_one_line() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert block.count("\n") == 1, "a block that a newcomer pastes is one line"
    assert "gencli text" in blocks[0] and "pytest" in blocks[1]


def test_every_example_uses_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    pages = {}
    for command in COMMANDS:
        assert main([command, "--help"]) == 0
        pages[command] = capsys.readouterr().out
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    found = re.findall(rf"gencli ({'|'.join(COMMANDS)}) ([^|>`\n]*)", text)
    assert len(found) > 50
    for command, rest in found:
        for option in re.findall(r"(?<![\w'\"-])(--?[a-zA-Z][\w-]*)", rest):
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", pages[command]), (command, option)


def test_paths_that_are_named_exist() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for path in re.findall(r"\b((?:gencli|tests|benchmarks)/[\w./-]*)", text):
            if "NAME" not in path and "plain.py" not in path:
                assert (ROOT / path.rstrip(".")).exists(), f"{page.name} names {path}"
        for path, _, heading in re.findall(r"\]\((?!http)([^)#]+)(#([^)]+))?\)", text):
            assert (page.parent / path).exists(), f"{page.name} leads to {path}"
            titles = re.findall(r"^#+ (.*)", (page.parent / path).read_text(), re.MULTILINE) if heading else []
            assert not heading or heading in [title.lower().replace(" ", "-") for title in titles], heading


def test_lists_in_the_pages_are_whole() -> None:
    """Of samplers, and of what the server takes beside OpenAI's names."""
    images, server = ((ROOT / "gencli" / "docs" / f"{page}.md").read_text("utf-8") for page in ("images", "server"))
    first, row = images.partition("\n\n")[2].partition("The table")[0], server.partition("| route |")[2]
    assert set(re.findall(r"`([\w.]+)`", first)) >= set(samplers.names())
    openai = {"max_tokens", "n", "stop", "seed", "logprobs", "temperature", "top_p", "presence_penalty"}
    openai |= {"frequency_penalty", "logit_bias", "prompt"}
    names = {*bodies.TEXT, *bodies.DRAWN} - openai - {"negative", "guidance", "cfg_scale"}  # which have other names too
    assert set(re.findall(r"`(\w+)`", row.partition("\n\n")[0])) >= names


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
