"""Lines by workers of a Ray cluster: two nodes on this machine, of which workers, a node and the driver are killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.shell.process import LIMIT, environment, gencli, start
from tests.tiny.text import SENTENCES, make_gpt2

pytestmark = pytest.mark.slow

COUNT = 300
SPLIT = [f"{SENTENCES[i % 3][: 4 + i % 9]} {i}\n".encode() for i in range(COUNT)]
LINES, BEGIN, REST = (b"".join(some) for some in (SPLIT, SPLIT[:280], SPLIT[280:]))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Ray's own cluster for tests, which asks for a token; the processes that it does not need here stay away."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("0123456789abcdef" * 4)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("USAGE_STATS_ENABLED", "0"), ("AUTH_MODE", "token"), ("AUTH_TOKEN_PATH", str(token))):
            patch.setenv(f"RAY_{name}", value)
        from ray.cluster_utils import Cluster

        before = signal.getsignal(signal.SIGTERM)  # Ray takes it for itself
        less = {"enable_worker_prestart": False, "prestart_worker_first_driver": False}
        head = {"num_cpus": 1, "include_dashboard": False, "no_monitor": True, "include_log_monitor": False}
        head |= {"ray_client_server_port": port, "_system_config": less}
        found = Cluster(initialize_head=True, head_node_args=head)
        found.client = f"ray://127.0.0.1:{port}"
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
    told = tmp_path / "told"
    with told.open("wb") as stderr:
        driver = start(*args, "--on", "ray", "--workers", 2, stderr=stderr, env=env)
    assert driver.stdin and driver.stdout
    driver.stdin.write(BEGIN)
    driver.stdin.flush()
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
        if count == 100:
            cluster.remove_node(node, allow_graceful=False)
        if count == 260:  # what comes before the rest fits into the pipe
            until(lambda: told.read_bytes().count(b" ended (") == 2, driver)
            driver.stdin.write(REST)
            driver.stdin.close()
    errors = told.read_text()
    assert driver.wait(LIMIT) == 0, errors
    assert records == [json.loads(line) for line in expected.splitlines()]
    assert len(set(makers)) >= 3 and errors.count(" ended (") == 2, (set(makers), errors)

    out = tmp_path / "out.jsonl"
    go_on = [word for word in args if word != "--json"] + ["--on", "ray", "--workers", 1, "--resume", out]
    driver = start(*go_on, env=env)
    assert driver.stdin
    driver.stdin.write(BEGIN)
    driver.stdin.flush()  # and it stays open
    until(lambda: out.exists() and out.stat().st_size > len(expected) // 3, driver)
    driver.kill()
    driver.communicate()
    assert expected.startswith(out.read_bytes()) and out.read_bytes() != expected
    with source.open("rb") as stdin:
        done = gencli(*go_on, stdin=stdin, RAY_ADDRESS=cluster.address)
    assert (done.returncode, done.stdout, out.read_bytes()) == (0, b"", expected), done.stderr


def test_from_a_machine_outside_the_cluster(cluster, tmp_path, monkeypatch):
    """Through Ray's client: a worker is killed, and the driver ended; the head wants the cluster's token."""
    model = make_gpt2(tmp_path / "tiny")
    args = ("text", "-m", "tiny", "--lines", "-s", 5, "-n", 6, "--batch", 2, "--logprobs", 5)
    source = tmp_path / "lines"
    source.write_bytes(b"".join(SPLIT[:120]))
    cluster.add_node(num_cpus=1)
    on = ("--on", cluster.client, "--workers", 2)
    outside = {"RAY_AUTH_MODE": None, "RAY_ADDRESS": None}
    monkeypatch.chdir(tmp_path)  # the model has a relative path

    def begin(*more: object) -> subprocess.Popen:
        with source.open("rb") as stdin:
            return start(*args, *on, *more, stdin=stdin, env=environment(**outside))

    expected = gencli(*args, "--json", stdin=source.read_bytes()).stdout
    driver = begin("--json")
    assert driver.stdout and driver.stderr
    records, makers = [], []
    for count, line in enumerate(driver.stdout):
        record = json.loads(line)
        del record["seconds"]
        makers.append(record.pop("worker"))
        records.append(record)
        if count == 10:
            os.kill(int(makers[-1].rpartition(":")[2]), signal.SIGKILL)
    errors = driver.stderr.read().decode()
    assert driver.wait(LIMIT) == 0, errors
    assert records == [json.loads(line) for line in expected.splitlines()]
    assert len(set(makers)) >= 2 and errors.count("note: ") == errors.count(" ended (") == 1, (makers, errors)

    out = tmp_path / "out.jsonl"
    driver = start(*args, *on, "--resume", out, "--workers", 1, env=environment(**outside))
    assert driver.stdin
    driver.stdin.write(b"".join(SPLIT[:100]))
    driver.stdin.flush()  # and it stays open, so that the driver cannot have come to its end
    until(lambda: out.exists() and out.stat().st_size, driver)
    driver.terminate()
    assert driver.wait(LIMIT) == 143 and driver.communicate()[1] == b""
    until(lambda: not holders(model))
    assert expected.startswith(out.read_bytes()) and out.read_bytes() != expected
    done = begin("--resume", out, "--workers", 1).communicate(timeout=LIMIT)
    assert done == (b"", b"") and out.read_bytes() == expected

    outside["RAY_AUTH_TOKEN"] = "another"
    errors = begin("--json").communicate(timeout=LIMIT)[1].decode()
    assert errors.startswith(f"error: --on {cluster.client}: no cluster can be reached: Invalid or missing auth")
    assert errors.count("\n") == 2 and "hint: the head's token" in errors


def test_a_head_that_dies(cluster, tmp_path):
    """The last of this cluster: no other one is started in its place, and the records are whole."""
    model, out = make_gpt2(tmp_path / "tiny"), tmp_path / "out.jsonl"
    source = tmp_path / "lines"
    source.write_bytes(LINES)
    args = ("text", "-m", model, "--lines", "-n", 30, "--batch", 2, "--resume", out, "--on", cluster.client)
    env = environment(RAY_ADDRESS=None, RAY_CLIENT_RECONNECT_GRACE_PERIOD="1")
    with source.open("rb") as stdin:
        driver = start(*args, "--workers", 1, stdin=stdin, env=env)
    until(lambda: out.exists() and out.stat().st_size, driver)
    cluster.remove_node(cluster.head_node, allow_graceful=False)
    errors = driver.communicate(timeout=LIMIT)[1].decode()
    assert driver.returncode == 1 and errors.splitlines()[-1].startswith(f"error: --on {cluster.client}: the cluster")
    assert {line.partition(":")[0] for line in errors.splitlines()} == {"note", "error"}, errors
    assert all(json.loads(line) for line in out.read_text().splitlines())


def test_a_head_that_says_nothing():
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        waits = {"RAY_CLIENT_INITIAL_CONNECTION_TIMEOUT_S": "1", "RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S": "1"}
        address = f"ray://127.0.0.1:{head.getsockname()[1]}"
        done = gencli("text", "--lines", "--on", address, stdin=b"a\n", **waits)
    assert (done.returncode, done.stdout) == (1, b"")
    said = f"error: --on {address}: no cluster can be reached: ray client connection timeout\n"
    assert done.stderr.decode() == said
