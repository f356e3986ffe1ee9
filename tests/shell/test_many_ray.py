"""Lines by workers of a Ray cluster: two nodes on this machine, of which workers, a node and the driver are killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.shell.process import LIMIT, environment, gencli, start
from tests.tiny.text import SENTENCES, make_gpt2

pytestmark = pytest.mark.slow

COUNT = 500
LINES = "".join(f"{SENTENCES[i % 3][: 4 + i % 9]} {i}\n" for i in range(COUNT)).encode()


@pytest.fixture(scope="module")
def cluster():
    """Ray's own cluster for tests; the processes that it does not need here stay away."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    before = signal.getsignal(signal.SIGTERM)  # Ray takes it for itself
    less = {"enable_worker_prestart": False, "prestart_worker_first_driver": False}
    head = {"num_cpus": 1, "include_dashboard": False, "no_monitor": True, "include_log_monitor": False}
    found = Cluster(initialize_head=True, head_node_args={**head, "_system_config": less})
    signal.signal(signal.SIGTERM, before)
    yield found
    found.shutdown()
    signal.signal(signal.SIGTERM, before)


def until(condition, process: subprocess.Popen | None = None) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert (process is None or process.poll() is None) and time.monotonic() < end
        time.sleep(0.01)


def holders(model: Path) -> set[int]:
    """The processes that have opened a model: its file is mapped into their memory."""
    found = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if f"{model}/" in maps.read_text():
                found.add(int(maps.parent.name))
    return found


def test_whoever_dies_the_bytes_are_those_of_one_process(cluster, tmp_path):
    model = make_gpt2(tmp_path / "tiny")
    args = ("text", "-m", model, "--lines", "--json", "-s", 5, "-n", 6, "--batch", 2, "--logprobs", 5)
    expected = gencli(*args, stdin=LINES).stdout
    node = cluster.add_node(num_cpus=1)
    env = environment(RAY_ADDRESS=cluster.address)
    source = tmp_path / "lines"
    source.write_bytes(LINES)

    # What is not read holds the driver back, and it the workers: they are in the middle whenever one is killed.
    with source.open("rb") as stdin:
        driver = start(*args, "--on", "ray", "--workers", 2, stdin=stdin, env=env, fresh=True)
    assert driver.stdout and driver.stderr
    records, makers = [], []
    for count, line in enumerate(driver.stdout):
        record = json.loads(line)
        assert record.pop("seconds") >= 0
        makers.append(record.pop("worker"))
        records.append(record)
        if count == 20:
            killed = int(makers[-1].rpartition(":")[2])
            os.kill(killed, signal.SIGKILL)
            until(lambda killed=killed: len(holders(model) - {killed}) == 2, driver)
        if count == 250:
            cluster.remove_node(node, allow_graceful=False)
    errors = driver.stderr.read().decode()
    assert driver.wait(LIMIT) == 0, errors
    assert records == [json.loads(line) for line in expected.splitlines()]
    assert len(set(makers)) >= 3 and errors.count(" ended (") == 2, (set(makers), errors)

    out = tmp_path / "out.jsonl"
    go_on = [word for word in args if word != "--json"] + ["--on", "ray", "--workers", 1, "--resume", out]
    with source.open("rb") as stdin:
        driver = start(*go_on, stdin=stdin, env=env, fresh=True)
    until(lambda: out.exists() and out.stat().st_size > len(expected) // 3, driver)
    driver.kill()
    driver.communicate()
    assert expected.startswith(out.read_bytes()) and out.read_bytes() != expected
    with source.open("rb") as stdin:
        done = gencli(*go_on, stdin=stdin, fresh=True, RAY_ADDRESS=cluster.address)
    assert (done.returncode, done.stdout, out.read_bytes()) == (0, b"", expected), done.stderr
