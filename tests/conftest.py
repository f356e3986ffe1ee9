"""Before torch and the reference libraries are imported: one thread a process, and no network.

The models are too small to share among threads, and pytest-xdist runs a process per core. What Python compiles of
gencli and its tests is kept, whatever the environment says: it is half of the time until the tests begin.
"""

import gc
import os
import sys
import tempfile
from collections.abc import Generator

import pytest

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GENCLI_CONFIG"] = os.devnull
os.environ["OLLAMA_MODELS"] = os.devnull
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")  # what one leaves in the cache is not another's
os.environ["GENCLI_CACHE"] = os.path.join(tempfile.gettempdir(), f"gencli-tests-{WORKER}")
pytest.register_assert_rewrite("tests.oracles", "tests.tiny")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-step", action="store_true", help="walk every sampler in every number of steps")


LONG = (  # half a minute to five seconds each
    "unit/test_kernels.py::test_hostile_bytes", "shell/test_many_ray.py::", "shell/test_handover.py::test_the_same",
    "shell/test_serve.py::test_fuzzed", "shell/test_many.py::", "test_attacks.py::test_templates_that_ask",
    "test_attacks.py::test_what_a_picture_says", "unit/test_train_", "unit/test_kernels.py::test_products",
    "unit/test_sampler_orders.py::test_every_number", "unit/test_checkpoints.py::test_opening_takes_no_memory",
    "unit/test_tab.py::test_it_is_the_parsers", "shell/test_first_day.py::",
)  # fmt: skip


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage while tests are collected: a tenth of that time, and all of it stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long comes first, so that no process is left alone with it in the end."""
    items.sort(key=lambda item: not any(part in item.nodeid for part in LONG))


def pytest_collection_finish() -> None:
    """Let garbage collections leave out what stays to the end: torch, and thousands of tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # building and reading models makes thousands of objects, and little garbage
