"""The real kubectl's streaming commands against the sandbox alone, over WebSocket and over SPDY."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs
import pytest
import yaml

from tests.fakes.terminal import Terminal, on_terminal

pytestmark = pytest.mark.kubectl

DEADLINE_S = 20.0
# kubectl's two transports for streams: WebSocket is the default.
WAYS = {
    "websocket": {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "true", "KUBECTL_PORT_FORWARD_WEBSOCKETS": "true"},
    "spdy": {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false", "KUBECTL_PORT_FORWARD_WEBSOCKETS": "false"},
}


def pod_manifest(name: str, script: str, **container: object) -> dict[str, object]:
    main = {"name": "main", "image": "sandbox", "command": ["sh", "-c", script], **container}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [main], "terminationGracePeriodSeconds": 1},
    }


PODS = [
    pod_manifest("quiet", "echo ready; exec sleep 1000"),
    pod_manifest("echo", 'while read line; do echo "got $line"; done', stdin=True),
    pod_manifest("shell", 'echo welcome; while read line; do echo "got $line"; done', stdin=True, tty=True),
    pod_manifest("follow", 'echo start; while read line; do echo "got $line"; done', stdin=True),
    pod_manifest("lines", "seq 1 5; exec sleep 1000"),
    pod_manifest("crash", "echo last words; test -e once && exec sleep 1000; touch once; exit 3"),
]


@attrs.frozen
class Kubectl:
    """Runs kubectl as the sandbox's administrator."""

    kubeconfig: Path
    home: Path
    environment: Mapping[str, str] = attrs.field(factory=dict)

    def over(self, way: str) -> Kubectl:
        return attrs.evolve(self, environment=WAYS[way])

    def command(self, *args: str) -> list[str]:
        return [str(Path(sys.executable).with_name("kubectl")), f"--kubeconfig={self.kubeconfig}", *args]

    @property
    def full_environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), **self.environment}

    def run(self, *args: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.command(*args),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            env=self.full_environment,
            timeout=DEADLINE_S,
        )

    @contextlib.contextmanager
    def started(self, *args: str) -> Iterator[subprocess.Popen[bytes]]:
        """A kubectl that runs until the block ends."""
        process = subprocess.Popen(
            self.command(*args),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.full_environment,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """A sandbox with PODS in it; each worker has its own."""
    folder = tmp_path_factory.mktemp("sandbox")
    server = subprocess.Popen([sys.executable, "-m", "sandbox", "--dir", folder], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert server.stdout.readline().startswith(b"ready ")
        kubectl = Kubectl(folder / "admin.kubeconfig", folder / "home")
        applied = kubectl.run("apply", "-f", "-", stdin=yaml.safe_dump_all(PODS).encode())
        assert applied.returncode == 0, applied.stderr
        names = [f"pod/{pod['metadata']['name']}" for pod in PODS]  # type: ignore[index]
        waited = kubectl.run("wait", "--for=condition=Ready", *names, "--timeout=15s")
        assert waited.returncode == 0, waited.stderr
        yield kubectl
    finally:
        server.terminate()
        server.communicate(timeout=DEADLINE_S)
        assert server.returncode == 0


@pytest.fixture(params=WAYS)
def kubectl(sandbox: Kubectl, request: pytest.FixtureRequest) -> Kubectl:
    """kubectl over WebSocket, and over SPDY."""
    return sandbox.over(request.param)


def until(condition: Callable[[], bool]) -> None:
    """Poll for a condition that sends no notification."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it does not become so"
        time.sleep(0.02)


@pytest.mark.parametrize("code", [0, 1, 3, 137])
def test_exec_separates_its_outputs_and_returns_the_exit_code(kubectl: Kubectl, code: int) -> None:
    end = "kill -9 $$" if code == 137 else f"exit {code}"
    done = kubectl.run("exec", "quiet", "--", "sh", "-c", f"echo out; echo err >&2; {end}")
    assert done.stdout == b"out\n"
    said = b"" if code == 0 else b"command terminated with exit code %d\n" % code
    assert done.stderr == b"err\n" + said
    assert done.returncode == code


def test_the_end_of_stdin_reaches_the_command(kubectl: Kubectl) -> None:
    done = kubectl.run("exec", "-i", "quiet", "--", "cat", stdin=b"foo\n")
    assert (done.stdout, done.stderr, done.returncode) == (b"foo\n", b"", 0)


def test_a_command_that_does_not_exist_is_an_error_of_the_runtime(kubectl: Kubectl) -> None:
    done = kubectl.run("exec", "quiet", "--", "no-such-command")
    assert done.returncode == 1
    assert b"Internal error occurred: " in done.stderr
    assert b'exec: "no-such-command": executable file not found in $PATH: unknown' in done.stderr


def test_a_container_that_does_not_exist_is_refused(kubectl: Kubectl) -> None:
    done = kubectl.run("exec", "quiet", "-c", "other", "--", "true")
    assert done.returncode == 1
    assert b"container other is not valid for pod quiet" in done.stderr


def test_bulk_data_passes_unchanged_both_ways(kubectl: Kubectl) -> None:
    blob = os.urandom(1 << 20) * 32
    done = kubectl.run("exec", "-i", "quiet", "--", "sha256sum", stdin=blob)
    assert done.stdout.split()[0].decode() == hashlib.sha256(blob).hexdigest()
    script = "head -c 20000000 /dev/zero; head -c 20000000 /dev/zero >&2"
    done = kubectl.run("exec", "quiet", "--", "sh", "-c", script)
    assert (len(done.stdout), len(done.stderr), done.returncode) == (20_000_000, 20_000_000, 0)


def test_files_and_folders_are_copied_both_ways(kubectl: Kubectl, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "one").write_bytes(os.urandom(300_000))
    (source / "inner" / "two").write_text("text")
    # kubectl names a pod's files by paths relative to the container's directory.
    assert kubectl.run("cp", str(source), "quiet:copied").returncode == 0
    back = tmp_path / "back"
    done = kubectl.run("cp", "quiet:copied", str(back))
    assert done.returncode == 0, done.stderr
    assert (back / "one").read_bytes() == (source / "one").read_bytes()
    assert (back / "inner" / "two").read_text() == "text"
    assert kubectl.run("exec", "quiet", "--", "rm", "-r", "copied").returncode == 0


def terminal(kubectl: Kubectl, *args: str) -> contextlib.AbstractContextManager[Terminal]:
    return on_terminal(kubectl.command(*args), kubectl.full_environment)


def test_a_terminal_has_the_users_size_and_interrupts(kubectl: Kubectl) -> None:
    script = "stty size; read _; stty size; read _; echo waiting; exec cat"
    with terminal(kubectl, "exec", "-it", "quiet", "--", "sh", "-c", script) as user:
        # At the start kubectl shrinks and grows the terminal once, so that programs redraw.
        user.read_until(rb"\d+ \d+\r\n")
        user.type(b"\r")
        user.read_until(rb"30 100\r\n")
        user.type(b"\r")
        user.read_until(rb"waiting\r\n")
        user.type(b"x\r")
        user.read_until(rb"x\r\nx\r\n")
        user.type(b"\x03")
        user.read_until(rb"exit code 130")
        assert user.process.wait(DEADLINE_S) == 130


def test_a_new_size_reaches_the_command(kubectl: Kubectl) -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.02; done"
    with terminal(kubectl, "exec", "-it", "quiet", "--", "sh", "-c", script) as user:
        user.read_until(rb"ready\r\n")
        user.resize(123, 45)
        user.read_until(rb"45 123\r\n")


def test_attach_meets_the_running_process(kubectl: Kubectl) -> None:
    with kubectl.started("attach", "-i", "echo") as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"one\ntwo\n")
        client.stdin.flush()
        assert client.stdout.readline() == b"got one\n"
        assert client.stdout.readline() == b"got two\n"


def test_attach_to_a_terminal(kubectl: Kubectl) -> None:
    with terminal(kubectl, "attach", "-it", "shell") as user:
        user.read_until(rb"press(ing)? enter")
        user.type(b"hello\r")
        user.read_until(rb"got hello\r\n")


def test_run_waits_for_its_command_and_removes_the_pod(kubectl: Kubectl) -> None:
    name = f"once-{os.getpid()}-{'w' if kubectl.environment == WAYS['websocket'] else 's'}"
    done = kubectl.run(
        *("run", name, "--image=sandbox", "-i", "--rm", "--restart=Never", "--quiet", "--command", "--"),
        *("sh", "-c", "read line; echo got $line"),
        stdin=b"input\n",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"got input\n")
    assert kubectl.run("get", "pod", name).returncode == 1


def test_a_killed_client_takes_its_command_along(kubectl: Kubectl) -> None:
    with kubectl.started("exec", "quiet", "--", "sh", "-c", "echo $$; sleep 1000 & wait") as client:
        assert client.stdout is not None
        pid = int(client.stdout.readline())
        os.kill(pid, 0)
        client.kill()
        client.wait()
        until(lambda: not Path(f"/proc/{pid}").exists())


class Server:
    """A port of a pod: echoes each connection's bytes in upper case, and closes when they end."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._answer, args=[self._listener.accept()[0]], daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data.upper())

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def forwarded_port(client: subprocess.Popen[bytes], port: int) -> int:
    assert client.stdout is not None
    while line := client.stdout.readline().decode():
        match = re.match(rf"Forwarding from 127\.0\.0\.1:(\d+) -> {port}\n", line)
        if match:
            return int(match[1])
    raise AssertionError(client.stderr.read() if client.stderr is not None else "")


def exchange(port: int, data: bytes) -> bytes:
    """Send while receiving, end our half, and return all received data."""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as connection:

        def send() -> None:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = b""
        while len(received) < len(data) and (more := connection.recv(65536)):
            received += more
        sender.join()
    return received


def test_port_forward_carries_several_connections(kubectl: Kubectl, server: Server) -> None:
    with kubectl.started("port-forward", "quiet", f":{server.port}") as client:
        port = forwarded_port(client, server.port)
        results: dict[int, bytes] = {}

        def use(number: int) -> None:
            results[number] = exchange(port, b"%d" % number * 500_000)

        users = [threading.Thread(target=use, args=[number]) for number in range(8)]
        for user in users:
            user.start()
        for user in users:
            user.join()
        assert results == {number: b"%d" % number * 500_000 for number in range(8)}
        assert exchange(port, b"and one more") == b"AND ONE MORE"


def test_port_forward_reports_a_refused_port(kubectl: Kubectl) -> None:
    # Held, so that no other process listens there meanwhile.
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        closed = held.getsockname()[1]
        with kubectl.started("port-forward", "quiet", f":{closed}") as client:
            with contextlib.suppress(ConnectionError):  # kubectl hangs up, in which way is its own affair
                with socket.create_connection(("127.0.0.1", forwarded_port(client, closed))) as connection:
                    assert connection.recv(1) == b""
            _, err = client.communicate(timeout=DEADLINE_S)
    assert f"dial tcp4 127.0.0.1:{closed}: connect: connection refused".encode() in err
    assert err.endswith(b"error: lost connection to pod\n")
    assert client.returncode == 1


def test_deleting_the_pod_ends_its_streams(kubectl: Kubectl) -> None:
    name = "doomed-" + ("w" if kubectl.environment == WAYS["websocket"] else "s")
    manifest = yaml.safe_dump(pod_manifest(name, "exec sleep 1000")).encode()
    assert kubectl.run("apply", "-f", "-", stdin=manifest).returncode == 0
    assert kubectl.run("wait", "--for=condition=Ready", f"pod/{name}").returncode == 0
    with (
        kubectl.started("exec", name, "--", "sh", "-c", "echo up; exec sleep 1000") as command,
        kubectl.started("port-forward", name, ":1") as forward,
    ):
        assert command.stdout is not None
        assert command.stdout.readline() == b"up\n"
        forwarded_port(forward, 1)
        assert kubectl.run("delete", "pod", name).returncode == 0
        assert command.wait(DEADLINE_S) == 137
        assert forward.wait(DEADLINE_S) == 1


def test_logs_and_their_options(sandbox: Kubectl) -> None:
    # A ready pod means that its command was started, not that it has printed.
    until(lambda: sandbox.run("logs", "lines").stdout == b"1\n2\n3\n4\n5\n")
    for options, expected in (
        ([], b"1\n2\n3\n4\n5\n"),
        (["--tail=2"], b"4\n5\n"),
        (["--limit-bytes=5"], b"1\n2\n3"),
        (["--since=1h"], b"1\n2\n3\n4\n5\n"),
    ):
        done = sandbox.run("logs", "lines", *options)
        assert (done.stdout, done.returncode) == (expected, 0), done.stderr
    stamped = sandbox.run("logs", "lines", "--timestamps", "--tail=1").stdout
    assert re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z 5\n", stamped)


def test_the_log_of_the_run_before(sandbox: Kubectl) -> None:
    done = sandbox.run("logs", "crash", "--previous")
    assert (done.stdout, done.returncode) == (b"last words\n", 0), done.stderr
    done = sandbox.run("logs", "quiet", "--previous")
    assert done.returncode == 1
    assert b'previous terminated container "main" in pod "quiet" not found' in done.stderr


def test_followed_logs_come_line_by_line(sandbox: Kubectl) -> None:
    with sandbox.started("logs", "-f", "follow") as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"start\n"
        with sandbox.started("attach", "-i", "follow") as client:
            assert client.stdin is not None
            for number in range(3):
                client.stdin.write(b"line %d\n" % number)
                client.stdin.flush()
                assert follower.stdout.readline() == b"got line %d\n" % number
        follower.send_signal(signal.SIGINT)
        assert follower.wait(DEADLINE_S) != 0


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", WAYS)
def test_a_gibibyte_through_exec(sandbox: Kubectl, way: str, tmp_path: Path) -> None:
    kubectl = sandbox.over(way)
    size = 1 << 30
    (tmp_path / "blob").write_bytes(os.urandom(1 << 20) * 1024)
    expected = hashlib.sha256((tmp_path / "blob").read_bytes()).hexdigest()
    started = time.monotonic()
    with (tmp_path / "blob").open("rb") as blob:
        done = subprocess.run(
            kubectl.command("exec", "-i", "quiet", "--", "sha256sum"),
            stdin=blob,
            capture_output=True,
            env=kubectl.full_environment,
        )
    assert done.stdout.split()[0].decode() == expected
    assert size / (time.monotonic() - started) > 20e6
