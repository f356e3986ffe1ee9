"""All tests in this folder are slow: the reference libraries alone take ten seconds to import. What several files read
and none changes is made once."""

from pathlib import Path

import pytest

from tests.oracles.libraries import transformers
from tests.tiny.janus import TinyJanus, make_janus

HERE = Path(__file__).parent


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Where slow tests are not wanted, these are not even looked at."""
    return True if config.getoption("markexpr") == "not slow" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def janus(tmp_path_factory) -> TinyJanus:
    folder = tmp_path_factory.mktemp("janus")
    reference = make_janus(folder)
    return TinyJanus(folder, reference, transformers.PreTrainedTokenizerFast.from_pretrained(folder))
