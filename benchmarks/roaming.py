"""Requests through relays at random, as a process: the load generator, with another target for each request.

The job is a line of JSON on stdin: that of benchmarks.client, with `heads`, one request's head for each
target. When all connections are up and warm it says `ready`; after the line `go` it works, and its last line
is the report. The choice is the same in every run.
"""

from __future__ import annotations

import json
import random
import sys
import time

from benchmarks.client import Connection, Failed, Loop

SEED = 4711
# Each target once at least is what makes it warm: its tunnel has the agent's identity by then.
WARM_UP_ROUNDS = 2


def roam(loop: Loop, heads: list[bytes], requests: int, seconds: float) -> None:
    """By each connection one request after the other, until so many are done and so long has passed."""
    chance = random.Random(SEED)
    order = [*heads]
    clock = time.perf_counter_ns
    end_ns = clock() + int(seconds * 1e9)

    def ask(connection: Connection) -> None:
        # Of a warm-up each target has its turn; afterwards it is chance.
        head = order.pop() if requests and order else chance.choice(heads)
        connection.ask(head)

    def answered(connection: Connection) -> None:
        now_ns = clock()
        loop.latencies_ns.append(now_ns - connection.began_ns)
        loop.requests += 1
        if now_ns < end_ns or loop.requests < requests:
            ask(connection)

    loop.answered = answered
    for connection in loop.connections.values():
        ask(connection)
    loop.run()


def main() -> None:
    job = json.loads(sys.stdin.readline())
    heads = [head.encode() for head in job["heads"]]
    try:
        loop = Loop(job)
        roam(loop, heads, WARM_UP_ROUNDS * len(heads), 0)
        loop.reset()
        print("ready", flush=True)
        sys.stdin.readline()
        began_s = time.perf_counter()
        roam(loop, heads, 0, job["seconds"])
        wall_s = time.perf_counter() - began_s
        print(json.dumps({"wall_s": wall_s, "latencies_ns": sorted(loop.latencies_ns)}), flush=True)
    except (Failed, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
