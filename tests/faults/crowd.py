"""Many agents with small requests, in a process of their own: `python -m tests.faults.crowd`.

The first line on stdin is the job, JSON: port, ca, path, token, streams, period_s, seconds. Each of `streams`
connections asks for `path` once a period, at a moment of its own, and not before its last answer is here.
Once all are connected and have been answered it says `ready`. Each further line is a fresh token: it then
works for `seconds`, and answers with the seconds that each answer took. They count from when the request was
due: one that has to wait for the answer before it is late as well.
"""

from __future__ import annotations

import http.client
import itertools
import json
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO

import attrs

from tests.faults.control import TOP
from tests.faults.world import CLUSTER, FaultWorld
from tests.system.raw import DEADLINE_S

# Until all of its threads are there.
START_S = 0.1


@attrs.frozen
class Job:
    """What to ask for, and how often."""

    port: int
    ca: str
    path: str
    token: str
    streams: int
    period_s: float
    seconds: float


@attrs.frozen
class Waits:
    """How long the answers took, in seconds, the shortest first."""

    taken_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        return self.share(0.5)

    @property
    def p99_s(self) -> float:
        return self.share(0.99)

    def __add__(self, other: Waits) -> Waits:
        return Waits(tuple(sorted(self.taken_s + other.taken_s)))

    def share(self, part: float) -> float:
        return self.taken_s[min(len(self.taken_s) - 1, int(part * len(self.taken_s)))]


@contextmanager
def crowd(world: FaultWorld, path: str, *, streams: int, period_s: float, seconds: float) -> Iterator[Crowd]:
    """Run it for the block, with all its connections up, to the hub's own port."""
    ca = str(world.folder / "hub" / "tls" / "ca.pem")
    token = world.client().token()
    job = Job(world.hub_listen, ca, f"/clusters/{CLUSTER}{path}", token, streams, period_s, seconds)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.crowd"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=TOP,
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(attrs.asdict(job)) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
        yield Crowd(world, process.stdin, process.stdout)
    finally:
        process.kill()
        process.communicate()


@attrs.frozen
class Crowd:
    """The running process."""

    world: FaultWorld
    stdin: IO[str]
    stdout: IO[str]

    def waits(self) -> Waits:
        """Let it work, and wait until it has."""
        self.stdin.write(self.world.client().token() + "\n")
        self.stdin.flush()
        return Waits(tuple(sorted(json.loads(self.stdout.readline()))))


class Member:
    """One connection."""

    def __init__(self, job: Job, number: int) -> None:
        self.job = job
        self.offset_s = job.period_s * number / job.streams
        context = ssl.create_default_context(cafile=job.ca)
        self.connection = http.client.HTTPSConnection(
            "127.0.0.1", job.port, timeout=DEADLINE_S, context=context
        )
        self.ask(job.token)

    def ask(self, token: str) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        self.connection.request("GET", self.job.path, headers=headers)
        answer = self.connection.getresponse()
        said = answer.read()
        assert answer.status == 200, said

    def work(self, token: str, begin: float) -> list[float]:
        """All its requests from `begin` on, and how long each took."""
        due, taken_s = begin + self.offset_s, []
        for _ in range(round(self.job.seconds / self.job.period_s)):
            time.sleep(max(0.0, due - time.monotonic()))
            self.ask(token)
            taken_s.append(time.monotonic() - due)
            due += self.job.period_s
        return taken_s


def main() -> None:
    job = Job(**json.loads(sys.stdin.readline()))
    with ThreadPoolExecutor(job.streams) as pool:
        members = list(pool.map(Member, itertools.repeat(job), range(job.streams)))
        print("ready", flush=True)
        for line in sys.stdin:
            begin = time.monotonic() + START_S
            working = [pool.submit(member.work, line.strip(), begin) for member in members]
            print(json.dumps([taken_s for each in working for taken_s in each.result()]), flush=True)


if __name__ == "__main__":
    main()
