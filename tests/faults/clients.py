"""kubectl at work on something whose every byte is known, and the judgement on what came of it.

    with ExecEcho(world, 1) as work:
        ...                         # whatever may befall the tunnel
    assert work.judgement.verdict is Verdict.WHOLE

Each is one of kubectl's ways to stream, paced, so that it lasts as long as a test wants to break things.
Leaving the block ends it as its user would, and waits until kubectl has ended.
"""

from __future__ import annotations

import abc
import base64
import contextlib
import enum
import hashlib
import http.client
import json
import random
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, ClassVar

import attrs
import yaml

from tests.faults.world import CLUSTER, FaultWorld
from tests.system.world import NAMESPACE, POD, Result

# From the user's end to kubectl's.
END_WITHIN_S = 60.0
# Copies what comes to stdout, and says at the end which sum it had inside.
ECHO_SCRIPT = "mkfifo f$$; sha256sum <f$$ >s$$ & tee f$$; wait; cat s$$; rm f$$ s$$"


# What a request hears that comes while there is no tunnel, and no hope of one.
AWAY = b"is not back yet"
# What `kubectl cp` says (1.37) when it has waited 30 s for whether its target is a folder, before it copies.
IMPATIENT = b"context deadline exceeded"


class Verdict(enum.Enum):
    """What a user would say."""

    WHOLE = "whole"
    BROKEN = "broken"
    """kubectl ended with an error, or said something, or ended before it should."""
    CORRUPT = "corrupt"
    """kubectl said nothing, and bytes are missing, too many or others. The worst of all."""
    HUNG = "hung"
    """It did not end."""


@attrs.frozen
class Judgement:
    """What became of one piece of work."""

    kind: str
    verdict: Verdict
    carried: int
    """Bytes that came back."""
    detail: str = ""


class Work(abc.ABC):
    """One kubectl, and the threads that feed and read it."""

    kind: ClassVar[str]

    def __init__(self, world: FaultWorld, number: int, *, pause_s: float = 0.02, spdy: bool = False) -> None:
        self.world = world
        self.name = f"{self.kind}-{number}"
        self.pause_s = pause_s
        self.spdy = spdy
        self.stopping = threading.Event()
        self.judgement = Judgement(self.kind, Verdict.HUNG, 0, "it was not left")
        self.random = random.Random(self.name)
        self._threads: list[threading.Thread] = []
        self._faults: list[Exception] = []

    def __enter__(self) -> Work:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        try:
            self.judgement = self.end()
        except subprocess.TimeoutExpired:
            self.judgement = Judgement(self.kind, Verdict.HUNG, 0, f"still there after {END_WITHIN_S:.0f} s")
        finally:
            self.kill()

    @abc.abstractmethod
    def begin(self) -> None:
        """Start kubectl and feed it; raises when it does not even begin."""

    @abc.abstractmethod
    def end(self) -> Judgement:
        """End it and judge; raises TimeoutExpired."""

    @abc.abstractmethod
    def kill(self) -> None:
        """Leave nothing running."""

    def thread(self, run: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=self._guarded, args=(run, *args), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _guarded(self, run: Callable[..., None], *args: object) -> None:
        try:
            run(*args)
        except (OSError, ValueError):
            pass  # kubectl is gone: its exit code says how
        except Exception as fault:  # a thread's end; the judgement tells of it
            self._faults.append(fault)

    def join(self, within_s: float = END_WITHIN_S) -> None:
        deadline = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def judge(self, code: int | None, said: bytes, expected: bytes, got: bytes) -> Judgement:
        """The one rule for all of them."""
        detail = ""
        if self._faults:
            detail = f"a fault of the test: {self._faults[0]!r}"
        elif code not in (0, None):
            detail = f"exit code {code}: {said.decode(errors='replace').strip()[-300:]}"
        elif said:
            detail = f"it said: {said.decode(errors='replace').strip()[-300:]}"
        if detail:
            return Judgement(self.kind, Verdict.BROKEN, len(got), detail)
        if got != expected:
            at = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), None)
            detail = f"{len(got)} bytes instead of {len(expected)}"
            detail += f", the first difference at {at}" if at is not None else ", and no other difference"
            return Judgement(self.kind, Verdict.CORRUPT, len(got), detail)
        return Judgement(self.kind, Verdict.WHOLE, len(got))


class Command(Work):
    """One kubectl with pipes."""

    process: subprocess.Popen[bytes]

    def start(self, *args: str) -> None:
        self.process = self.world.popen(CLUSTER, *args, spdy=self.spdy)
        self.out = bytearray()
        self.err = bytearray()
        self.ended_by_itself = False
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.thread(self._collect, self.process.stdout, self.out)
        self.thread(self._collect, self.process.stderr, self.err)

    def _collect(self, source: IO[bytes], into: bytearray) -> None:
        while data := source.read1(65536):  # type: ignore[attr-defined]
            into += data

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Wait for a sign of life before the test begins to break things."""
        self.world.until(
            lambda: condition() or self.process.poll() is not None,
            f"{self.name}: {what}",
            every_s=0.02,
        )
        assert self.process.poll() is None, f"{self.name} ended at once: {bytes(self.err)!r}"

    def note_end(self) -> None:
        """To be called first at the end: whoever has ended by now did so by itself."""
        self.ended_by_itself = self.process.poll() is not None
        if self.ended_by_itself and not self.err:
            self.err += b"(it ended by itself)"

    def kill(self) -> None:
        if hasattr(self, "process"):
            self.process.kill()
            self.process.wait()
            self.join(5)
            for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class ExecEcho(Command):
    """`exec -i` of something that sends back what it gets: stdin summed inside, stdout here."""

    kind = "exec"
    block_bytes = 2000
    bytes_max = 2**40

    def begin(self) -> None:
        self.sent = bytearray()
        self.start("exec", "-i", POD, "--", "sh", "-c", ECHO_SCRIPT)
        self.thread(self._feed)
        self.wait(lambda: self.out, "an echo")

    def _feed(self) -> None:
        stdin = self.process.stdin
        assert stdin is not None
        while not self.stopping.is_set() and len(self.sent) < self.bytes_max:
            block = self.random.randbytes(self.block_bytes)
            self.sent += block
            stdin.write(block)
            stdin.flush()
            self.stopping.wait(self.pause_s)
        self.stopping.wait()
        stdin.close()

    def end(self) -> Judgement:
        self.note_end()
        self.process.wait(END_WITHIN_S)
        self.join()
        digest = hashlib.sha256(self.sent).hexdigest().encode()
        expected = bytes(self.sent) + digest + b"  -\n"
        return self.judge(self.process.returncode, bytes(self.err), expected, bytes(self.out))


class ExecBulk(ExecEcho):
    """The same with some megabytes, as fast as they go through."""

    kind = "bulk"
    block_bytes = 256 * 1024
    bytes_max = 8_000_000


class PodWork(Command):
    """Work on a pod of its own."""

    def make_pod(self, script: str, **container: object) -> None:
        main = {"name": "main", "image": "busybox", "command": ["sh", "-c", script], **container}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name},
            "spec": {"restartPolicy": "Never", "containers": [main], "terminationGracePeriodSeconds": 0},
        }
        place = f"--namespace={NAMESPACE}"
        self.world.administrator("apply", place, "-f", "-", stdin=json.dumps(pod).encode())
        self.world.administrator("wait", place, "--for=condition=Ready", f"pod/{self.name}", "--timeout=20s")

    def kill(self) -> None:
        super().kill()
        self.world.administrator(
            "delete", "pod", self.name, f"--namespace={NAMESPACE}", "--now", "--wait=false"
        )


class LogsFollow(PodWork):
    """`logs -f` of a pod that counts, up to its end."""

    kind = "logs"

    def begin(self) -> None:
        self.make_pod(
            "i=0; while [ ! -e stop ]; do i=$((i+1)); "
            f'echo "line $i {"." * 200}"; sleep {self.pause_s}; done; '
            # Its end kills every exec, and so the one that asks for it, were it not gone before.
            'while kill -0 "$(cat stop)" 2>/dev/null; do sleep 0.01; done; echo the end'
        )
        self.start("logs", "--follow", self.name)
        self.wait(lambda: self.out, "a line")

    def end(self) -> Judgement:
        self.note_end()
        place = f"--namespace={NAMESPACE}"
        ask = "echo $$ >asked; mv asked stop"
        self.world.administrator("exec", place, self.name, "--", "sh", "-c", ask)
        self.process.wait(END_WITHIN_S)
        self.join()
        expected = self.world.administrator("logs", "--follow", place, self.name)
        assert expected.endswith(b"the end\n")
        return self.judge(self.process.returncode, bytes(self.err), expected, bytes(self.out))


class Attach(PodWork):
    """`attach -i` to a process that answers each line."""

    kind = "attach"

    def begin(self) -> None:
        self.lines = 0
        self.make_pod('while read line; do echo "got $line"; done', stdin=True, stdinOnce=True)
        self.start("attach", "-i", self.name)
        self.thread(self._feed)
        self.wait(lambda: b"got 1\n" in self.out, "an answer")

    def _feed(self) -> None:
        stdin = self.process.stdin
        assert stdin is not None
        # What a container says before anybody is attached is nobody's: begin when the attach is there.
        self.stopping.wait(1.0)
        while not self.stopping.is_set():
            self.lines += 1
            stdin.write(f"{self.lines}\n".encode())
            stdin.flush()
            self.stopping.wait(self.pause_s)
        stdin.close()

    def end(self) -> Judgement:
        self.note_end()
        self.process.wait(END_WITHIN_S)
        self.join()
        expected = b"".join(b"got %d\n" % number for number in range(1, self.lines + 1))
        said = b"\n".join(line for line in bytes(self.err).splitlines() if not _IS_HINT.match(line))
        return self.judge(self.process.returncode, said, expected, bytes(self.out))


# kubectl's own words at the start of an attach.
_IS_HINT = re.compile(rb"If you don't see a command prompt|All commands and output from this session")


class Watch(Command):
    """`get --watch` of an object that changes all the time."""

    kind = "watch"

    def begin(self) -> None:
        self.changes = 0
        self.api = StraightApi(self.world.admin_kubeconfig)
        self.path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/{self.name}"
        body = {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": self.name}, "data": {"n": "0"}}
        self.api.request("POST", self.path.rpartition("/")[0], body)
        # As a list: of a single object kubectl does not print what happened between its get and its watch.
        only = f"--field-selector=metadata.name={self.name}"
        self.start("get", "configmaps", only, "--watch", "-o", "jsonpath={.data.n}{'\\n'}")
        self.wait(lambda: self.out, "the object")
        self.thread(self._change)

    def _change(self) -> None:
        while not self.stopping.is_set():
            self.api.request("PATCH", self.path, {"data": {"n": str(self.changes + 1)}})
            self.changes += 1
            self.stopping.wait(self.pause_s)

    def end(self) -> Judgement:
        self.note_end()
        self._threads[-1].join()
        expected = b"".join(b"%d\n" % number for number in range(self.changes + 1))
        deadline = time.monotonic() + END_WITHIN_S
        while not self.ended_by_itself and len(self.out) < len(expected) and time.monotonic() < deadline:
            self.ended_by_itself = self.process.poll() is not None
            time.sleep(0.05)
        said = b"" if self.process.poll() is None else bytes(self.err) or b"(it ended by itself)"
        self.process.kill()
        self.process.wait()
        self.join()
        if len(self.out) < len(expected) and not said:
            seen = set(bytes(self.out).split())
            missing = [n for n in range(self.changes + 1) if b"%d" % n not in seen]
            detail = f"of {self.changes} changes these were not seen: {missing[:20]}"
            return Judgement(self.kind, Verdict.HUNG, len(self.out), detail)
        return self.judge(None, said, expected, bytes(self.out))

    def kill(self) -> None:
        super().kill()
        self.api.request("DELETE", self.path, None)
        self.api.close()


class PortForward(Command):
    """A connection through `port-forward` to something that sends back what it gets."""

    kind = "port-forward"
    block_bytes = 2000

    def __init__(self, world: FaultWorld, number: int, echo_port: int, *, pause_s: float = 0.02) -> None:
        super().__init__(world, number, pause_s=pause_s)
        self.echo_port = echo_port

    def begin(self) -> None:
        self.sent = bytearray()
        self.received = bytearray()
        self.start("port-forward", f"pod/{POD}", f":{self.echo_port}", "--address=127.0.0.1")
        self.wait(lambda: _FORWARDS.search(bytes(self.out)), "a port")
        found = _FORWARDS.search(bytes(self.out))
        assert found is not None
        self.connection = socket.create_connection(("127.0.0.1", int(found[1])), END_WITHIN_S)
        self.thread(self._feed)
        self.thread(self._receive)
        self.wait(lambda: self.received, "an echo")

    def _feed(self) -> None:
        while not self.stopping.is_set():
            block = self.random.randbytes(self.block_bytes)
            self.sent += block
            self.connection.sendall(block)
            self.stopping.wait(self.pause_s)

    def _receive(self) -> None:
        while data := self.connection.recv(65536):
            self.received += data

    def end(self) -> Judgement:
        self.note_end()
        deadline = time.monotonic() + END_WITHIN_S
        feeder, receiver = self._threads[-2:]
        # It may be about to send a last block, which is expected as well.
        feeder.join(END_WITHIN_S)
        while len(self.received) < len(self.sent) and time.monotonic() < deadline:
            if self.process.poll() is not None or not receiver.is_alive():
                break
            time.sleep(0.02)
        if len(self.received) < len(self.sent) and not receiver.is_alive():
            # kubectl closes the connection first, and says why and ends right after.
            while self.process.poll() is None and not self.err and time.monotonic() < deadline:
                time.sleep(0.02)
        ended, said = self.process.poll(), bytes(self.err)
        self.connection.close()
        if ended is not None and not said:
            said = b"(it ended by itself)"
        return self.judge(ended, said, bytes(self.sent), bytes(self.received))


_FORWARDS = re.compile(rb"127\.0\.0\.1:(\d+)")


class Copy(Work):
    """`cp` there and back again, as often as time allows."""

    kind = "cp"

    def __init__(self, world: FaultWorld, number: int, folder: Path, *, size: int = 4_000_000) -> None:
        super().__init__(world, number)
        self.folder = folder
        self.content = self.random.randbytes(size)

    def begin(self) -> None:
        self.copies = self.refused = 0
        self.verdicts: list[Judgement] = []
        self.file = self.folder / self.name
        self.file.write_bytes(self.content)
        self.thread(self._copy)

    def _copy(self) -> None:
        back = self.file.with_suffix(".back")
        while not self.verdicts and not (self.stopping.is_set() and self.copies):
            there = self._kubectl(str(self.file), f"{POD}:{self.name}")
            again = self._kubectl(f"{POD}:{self.name}", str(back))
            code = there.code or again.code
            # What was refused by WebSocket, kubectl asks for by SPDY, and the tunnel may be back for that.
            said = b"".join(
                line for line in (there.err + again.err).splitlines(keepends=True) if AWAY not in line
            )
            judgement = self.judge(code, said, self.content, back.read_bytes() if back.exists() else b"")
            if judgement.verdict is not Verdict.WHOLE:
                self.verdicts.append(judgement)
            self.copies += 1

    def _kubectl(self, source: str, target: str) -> Result:
        """A cp, which is begun anew where it had not begun to copy: the tunnel was away, or for 30 s."""
        while True:
            done = self.world.kubectl(CLUSTER, "cp", source, target, deadline_s=300)
            # Whether there is a folder it asks only where it copies to a pod.
            impatient = IMPATIENT in done.err and target.startswith(f"{POD}:")
            if not (done.code and (AWAY in done.err or impatient)):
                return done
            self.refused += 1
            time.sleep(0.5)

    def end(self) -> Judgement:
        self.join(330)
        if self._threads[0].is_alive():
            return Judgement(self.kind, Verdict.HUNG, 0)
        carried = 2 * self.copies * len(self.content)
        return self.verdicts[0] if self.verdicts else Judgement(self.kind, Verdict.WHOLE, carried)

    def kill(self) -> None:
        self.world.kubectl("straight", "exec", POD, "--", "rm", "-f", self.name)


class StraightApi:
    """The administrator's requests to the API server itself, without a kubectl for each."""

    def __init__(self, kubeconfig: Path) -> None:
        document = yaml.safe_load(kubeconfig.read_text())
        cluster = document["clusters"][0]["cluster"]
        ca = _decoded(cluster["certificate-authority-data"])
        self.token = document["users"][0]["user"]["token"]
        host, _, port = cluster["server"].removeprefix("https://").rpartition(":")
        self._connection = http.client.HTTPSConnection(
            host, int(port), timeout=30, context=ssl.create_default_context(cadata=ca)
        )
        self._lock = threading.Lock()

    def request(self, method: str, path: str, body: object) -> bytes:
        """One request; its answer must be a good one."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        with self._lock:
            self._connection.request(
                method,
                path,
                json.dumps(body).encode() if body is not None else None,
                {"Authorization": f"Bearer {self.token}", "Content-Type": kind},
            )
            answer = self._connection.getresponse()
            data = answer.read()
        assert answer.status < 300, data
        return data

    def close(self) -> None:
        self._connection.close()


def every_kind(world: FaultWorld, echo_port: int, folder: Path, *, copied_bytes: int) -> list[Work]:
    """All that kubectl streams, one of each and exec over both of its protocols."""
    return [
        ExecEcho(world, 1),
        ExecEcho(world, 2, spdy=True),
        LogsFollow(world, 1, pause_s=0.05),
        Attach(world, 1, pause_s=0.05),
        Watch(world, 1, pause_s=0.05),
        PortForward(world, 1, echo_port),
        Copy(world, 1, folder, size=copied_bytes),
    ]


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode()


def report(judgements: Sequence[Judgement]) -> str:
    """What went wrong, a line each."""
    return "\n".join(
        f"{each.kind}: {each.verdict.value}: {each.detail}"
        for each in judgements
        if each.verdict is not Verdict.WHOLE
    )
