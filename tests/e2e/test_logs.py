"""Logs of a real kubelet: the options as straight, and following without delay."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator

import pytest

from tests.e2e.pods import must, pod
from tests.system.world import WAYS, World

BURST_LINES = 200_000
PROMPT_S = 2.0
LINES = "i=0; while [ $i -lt 20 ]; do i=$((i+1)); echo line $i; done; exec sleep 3600"
OPTIONS = [
    [],
    ["--tail=3"],
    ["--tail=0"],
    ["--since=1h"],
    ["--since-time=2020-01-01T00:00:00Z"],
    ["--timestamps"],
    ["--limit-bytes=20"],
    ["--all-containers"],
    ["--prefix", "--all-containers"],
    ["-c", "missing"],
]


@pytest.fixture(scope="module")
def talker(world: World) -> Iterator[str]:
    with pod(world, "talker", "sh", "-c", LINES) as name:
        # It is ready before it has said everything.
        following = world.popen("straight", "logs", "--follow", name)
        try:
            assert following.stdout is not None
            assert b"line 20\n" in iter(following.stdout.readline, b"")
        finally:
            following.kill()
            following.communicate()
        yield name


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options) or "plain")
def test_the_options_print_the_same(world: World, talker: str, options: list[str]) -> None:
    straight, through = (world.kubectl(way, "logs", talker, *options) for way in ("straight", "tunnel"))
    assert through == straight


@pytest.mark.parametrize("way", WAYS)
def test_a_selector_takes_the_logs_of_all_its_pods(world: World, talker: str, way: str) -> None:
    args = ("logs", "-l", f"case={talker}", "--max-log-requests=2", "--prefix", "--tail=2")
    through = world.kubectl(way, *args)
    assert through == world.kubectl("straight", *args)
    assert b"line 20" in through.out


@pytest.mark.parametrize("way", WAYS)
def test_the_log_of_the_run_before(world: World, way: str) -> None:
    name = f"crashing-{way}"
    with pod(world, name, "sh", "-c", "echo last words; sleep 2; exit 3"):
        restarted = "--for=jsonpath={.status.containerStatuses[0].restartCount}=1"
        must(world, way, "wait", restarted, f"pod/{name}", "--timeout=60s")
        assert must(world, way, "logs", name, "-p") == b"last words\n"


@pytest.mark.parametrize("way", WAYS)
def test_a_burst_is_followed_to_its_last_line(world: World, way: str) -> None:
    script = f"sleep 1; seq 1 {BURST_LINES}; sleep 1"
    with pod(world, f"bursting-{way}", "sh", "-c", f"{script}; exec sleep 3600") as name:
        process = world.popen(way, "logs", "--follow", name)
        try:
            assert process.stdout is not None
            digest, count = hashlib.sha256(), 0
            while count < BURST_LINES:
                digest.update(process.stdout.readline())
                count += 1
        finally:
            process.kill()
            process.communicate()
    lines = b"".join(b"%d\n" % number for number in range(1, BURST_LINES + 1))
    assert digest.digest() == hashlib.sha256(lines).digest()


@pytest.mark.parametrize("way", WAYS)
def test_a_single_line_is_not_held_back(world: World, way: str) -> None:
    name = f"slow-{way}"
    script = "read line; while read line; do echo $line; done"
    with pod(world, name, "sh", "-c", f"echo up; {script}", stdin=True):
        process = world.popen(way, "logs", "--follow", name)
        talking = world.popen("straight", "attach", "-i", name)
        try:
            assert process.stdout is not None
            assert talking.stdin is not None
            assert process.stdout.readline() == b"up\n"
            for number in range(3):
                line = f"line {number}\n".encode()
                # Attaching takes its time, so the first line is sent until it is seen.
                talking.stdin.write(b"lost\n" * (number == 0) + line)
                talking.stdin.flush()
                written = time.monotonic()
                assert process.stdout.readline() == line
                assert number == 0 or time.monotonic() - written < PROMPT_S
        finally:
            for each in (process, talking):
                each.kill()
                each.communicate()
