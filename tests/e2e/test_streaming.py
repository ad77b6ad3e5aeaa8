"""Streams to and from a real kubelet, over WebSocket and over SPDY, by tunnel and direct."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.demo.cluster import IMAGE
from sandbox.demo.processes import free_port
from tests.e2e.cluster import needs
from tests.e2e.pods import must, pod, unique
from tests.fakes.terminal import Terminal, on_terminal
from tests.system.load import parallel
from tests.system.parity import STREAMING
from tests.system.world import NAMESPACE, POD, SPDY, World

pytestmark = pytest.mark.parametrize(("way", "spdy"), STREAMING)

BULK = 10_000_000
LARGE = 100_000_000
FILES = 500
CONNECTIONS = 100
ANSWERS = "read line; echo heard $line"
# Answers any path with as many bytes as it says, and keeps its connections.
SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        size = int(self.path[1:])
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        block = bytes(range(256)) * 256
        while size:
            self.wfile.write(block[:size])
            size -= len(block[:size])
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer.request_queue_size = 128
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def terminal(world: World, way: str, *args: str, spdy: bool) -> contextlib.AbstractContextManager[Terminal]:
    environment = {**os.environ, **world.agent, **(SPDY if spdy else {})}
    return on_terminal(world.command(way, *args), environment)


@pytest.mark.parametrize("code", [0, 1, 3, 137, 255])
def test_exec_has_both_outputs_and_the_exit_code(world: World, way: str, spdy: bool, code: int) -> None:
    args = ("exec", POD, "--", "sh", "-c", f"echo out; echo err >&2; exit {code}")
    through = world.kubectl(way, *args, spdy=spdy)
    assert (through.code, through.out) == (code, b"out\n")
    assert through.err.startswith(b"err\n")
    if code in (0, 3):
        assert through == world.kubectl("straight", *args, spdy=spdy)


def test_exec_in_a_missing_container_or_of_a_missing_command_fails_as_straight(
    world: World, way: str, spdy: bool
) -> None:
    for args in (("exec", POD, "-c", "missing", "--", "true"), ("exec", POD, "--", "/missing/command")):
        through, straight = (world.kubectl(by, *args, spdy=spdy) for by in (way, "straight"))
        # A runtime puts ids of the exec into its message.
        assert (through.code, through.out) == (straight.code, straight.out)
        assert through.code != 0
        assert through.err


def test_both_outputs_keep_their_bytes_apart(world: World, way: str, spdy: bool) -> None:
    script = f"head -c {BULK} /dev/zero | tr '\\0' a; head -c {BULK} /dev/zero | tr '\\0' b >&2"
    done = world.kubectl(way, "exec", POD, "--", "sh", "-c", script, spdy=spdy, deadline_s=120)
    assert done.code == 0
    assert hashlib.sha256(done.out).digest() == hashlib.sha256(b"a" * BULK).digest()
    assert hashlib.sha256(done.err).digest() == hashlib.sha256(b"b" * BULK).digest()


def test_stdin_ends_and_keeps_its_bytes(world: World, way: str, spdy: bool) -> None:
    content = os.urandom(BULK)
    done = world.kubectl(way, "exec", "-i", POD, "--", "sha256sum", stdin=content, spdy=spdy, deadline_s=120)
    assert (done.code, done.out.split()[:1]) == (0, [hashlib.sha256(content).hexdigest().encode()]), done.err


def test_a_terminal_has_its_size_its_keys_and_its_colours(world: World, way: str, spdy: bool) -> None:
    # A size is sent apart from all else, and a command that has started may have none yet, straight too.
    sized = 'until [ "$(stty size 2>&1)" = "30 100" ]; do sleep 0.1; done; stty size'
    script = rf"{sized}; read _; stty size; read _; printf '\033[31mred\033[0m\n'; exec cat"
    with terminal(world, way, "exec", "-it", POD, "--", "sh", "-c", script, spdy=spdy) as user:
        user.read_until(rb"30 100\r\n")
        user.resize(120, 40)
        # Apart from the keys, too.
        time.sleep(1)
        user.type(b"\r")
        user.read_until(rb"40 120\r\n")
        user.type(b"\r")
        user.read_until(rb"\x1b\[31mred\x1b\[0m\r\n")
        user.type(b"x\r")
        user.read_until(rb"x\r\nx\r\n")
        user.type(b"\x03")
        user.read_until(rb"exit code 130")
        assert user.process.wait(20) == 130


def test_the_end_of_input_ends_a_terminals_command(world: World, way: str, spdy: bool) -> None:
    with terminal(world, way, "exec", "-it", POD, "--", "cat", spdy=spdy) as user:
        user.type(b"line\r")
        user.read_until(rb"line\r\nline\r\n")
        user.type(b"\x04")
        assert user.process.wait(20) == 0


def test_attach_reaches_the_running_process(world: World, way: str, spdy: bool) -> None:
    script = 'while read line; do echo "got $line"; done'
    name = unique("attached", way, spdy)
    with pod(world, name, "sh", "-c", script, stdin=True, tty=True):
        with terminal(world, way, "attach", "-it", name, spdy=spdy) as user:
            user.type(b"hello\r")
            user.read_until(rb"got hello\r\n")


def test_run_attaches_and_removes_its_pod(world: World, way: str, spdy: bool) -> None:
    name = unique("once", way, spdy)
    run = ("run", name, "-i", "--rm", "--restart=Never", f"--image={IMAGE}", "--command", "--")
    out = must(world, way, *run, "sh", "-c", "cat; sleep 1", stdin=b"to and fro\n", spdy=spdy)
    assert b"to and fro\n" in out
    assert world.kubectl(way, "get", "pod", name).code == 1


@needs("v1/pods/ephemeralcontainers")
def test_debug_starts_a_container_beside_the_others(world: World, way: str, spdy: bool) -> None:
    name = unique("debugged", way, spdy)
    with pod(world, name, "sleep", "3600"):
        debug = ("debug", name, "-i", f"--image={IMAGE}", "-c", "debugger", "--", "sh", "-c", ANSWERS)
        must_answer(world, way, spdy, *debug)


@pytest.mark.real_cluster
def test_debug_of_a_node_starts_a_pod_on_it(world: World, way: str, spdy: bool) -> None:
    node = must(world, way, "get", "nodes", "-o", "jsonpath={.items[0].metadata.name}").decode()
    shell = ("--", "sh", "-c", f"test -d /host/etc && {{ {ANSWERS}; }}")
    must_answer(world, way, spdy, "debug", f"node/{node}", "-i", f"--image={IMAGE}", *shell)


def must_answer(world: World, way: str, spdy: bool, *debug: str) -> None:
    """See that the container that is attached to answers. Its input stays open, as an attach ends with it."""
    process = world.popen(way, *debug, spdy=spdy)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"who\n")
        process.stdin.flush()
        answered = b"heard who\n" in iter(process.stdout.readline, b"")
    finally:
        process.kill()
        _, err = process.communicate()
    assert answered, err


def test_cp_keeps_a_hundred_megabytes_both_ways(world: World, way: str, spdy: bool, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(os.urandom(LARGE))
    remote = f"/tmp/{unique('large', way, spdy)}"
    must(world, way, "cp", str(there), f"{POD}:{remote}", spdy=spdy)
    must(world, way, "cp", f"{POD}:{remote}", str(back), spdy=spdy)
    must(world, way, "exec", POD, "--", "rm", remote)
    assert hashlib.sha256(back.read_bytes()).digest() == hashlib.sha256(there.read_bytes()).digest()


def test_cp_keeps_a_folder_of_many_files(world: World, way: str, spdy: bool, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    there.mkdir()
    for number in range(FILES):
        (there / f"{number}").write_text(f"file {number}\n" * number)
    remote = f"/tmp/{unique('folder', way, spdy)}"
    must(world, way, "cp", str(there), f"{POD}:{remote}", spdy=spdy)
    must(world, way, "cp", f"{POD}:{remote}", str(back), spdy=spdy)
    must(world, way, "exec", POD, "--", "rm", "-r", remote)
    assert {path.name: path.read_text() for path in back.iterdir()} == {
        path.name: path.read_text() for path in there.iterdir()
    }


@contextlib.contextmanager
def forwarded(
    world: World, way: str, spdy: bool, name: str, port: int
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    forward = ("port-forward", f"pod/{name}", f":{port}", "--address=127.0.0.1")
    process = world.popen(way, *forward, spdy=spdy)
    try:
        assert process.stdout is not None
        found = re.search(rb"127\.0\.0\.1:(\d+)", process.stdout.readline())
        assert found is not None
        yield int(found[1]), process
    finally:
        process.kill()
        process.communicate()


def fetch(connection: http.client.HTTPConnection, size: int) -> str:
    connection.request("GET", f"/{size}")
    answer = connection.getresponse()
    digest = hashlib.sha256()
    while block := answer.read(1 << 16):
        digest.update(block)
    return digest.hexdigest()


def expected(size: int) -> str:
    block = bytes(range(256)) * 256
    return hashlib.sha256((block * (size // len(block) + 1))[:size]).hexdigest()


def test_port_forward_carries_what_a_browser_does(world: World, way: str, spdy: bool) -> None:
    inside = free_port()
    with pod(world, unique("served", way, spdy), "python3", "-c", SERVER, str(inside)) as name:
        wait_until_it_listens(world, name, inside)
        with forwarded(world, way, spdy, name, inside) as (port, process):

            def connect() -> contextlib.closing[http.client.HTTPConnection]:
                return contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60))

            def once(number: int) -> str:
                with connect() as connection:
                    return fetch(connection, 1000 + number)

            with connect() as kept:
                assert [fetch(kept, size) for size in (1, 2, 3)] == [expected(size) for size in (1, 2, 3)]
            assert parallel(CONNECTIONS, once) == [expected(1000 + number) for number in range(CONNECTIONS)]
            with connect() as connection:
                assert fetch(connection, LARGE) == expected(LARGE)
            world.administrator("delete", "pod", name, f"--namespace={NAMESPACE}")
            with connect() as connection, contextlib.suppress(OSError, http.client.HTTPException):
                fetch(connection, 1)
            _, err = process.communicate(timeout=60)
            assert b"lost connection to pod" in err
            assert process.returncode != 0


def test_port_forward_to_a_closed_port_says_so(world: World, way: str, spdy: bool) -> None:
    closed = free_port()
    with forwarded(world, way, spdy, POD, closed) as (port, process):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            with pytest.raises((OSError, http.client.HTTPException)):
                fetch(connection, 1)
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert f"{closed}".encode() in err
    assert b"refused" in err


def wait_until_it_listens(world: World, name: str, port: int) -> None:
    script = f"import socket, time\nwhile socket.socket().connect_ex(('127.0.0.1', {port})): time.sleep(0.1)"
    must(world, "straight", "exec", name, "--", "python3", "-c", script)
