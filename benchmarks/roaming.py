"""Requests through relays at random, as a process: the load generator, with a connection for each target.

The job is a line of JSON on stdin: that of benchmarks.client, with `heads`, one request's head for each
connection, and `at_once`, how many requests are under way. When all connections are up and warm it prints
`ready`; after the line `go` it works, and its last line is the report. Each run makes the same choices.
"""

from __future__ import annotations

import json
import random
import sys
import time

from benchmarks.client import Connection, Failed, Loop

SEED = 4711
# The first request brings the agent's identity into the tunnel, the second one finds everything in place.
WARM_UP_ROUNDS = 2


def roam(loop: Loop, heads: list[bytes], at_once: int, rounds: int, seconds: float) -> None:
    """So many requests at once until so long has passed, each on a connection that has none; by chance.

    With `rounds`, each connection has as many, and then it ends. A round begins when the one before has
    ended: a connection must not be asked while its answer is under way.
    """
    for _ in range(rounds - 1):
        roam(loop, heads, at_once, 1, seconds)
    chance = random.Random(SEED)
    idle = list(loop.connections.values())
    turns = list(idle) if rounds else []
    clock = time.perf_counter_ns
    end_ns = clock() + int(seconds * 1e9)

    def ask() -> None:
        if rounds:
            connection = turns.pop()
        else:
            place = chance.randrange(len(idle))
            idle[place], idle[-1] = idle[-1], idle[place]
            connection = idle.pop()
        connection.ask(heads[connection.number])

    def answered(connection: Connection) -> None:
        now_ns = clock()
        loop.latencies_ns.append(now_ns - connection.began_ns)
        loop.requests += 1
        idle.append(connection)
        if turns if rounds else now_ns < end_ns:
            ask()

    loop.answered = answered
    for _ in range(min(at_once, len(idle))):
        ask()
    loop.run()


def main() -> None:
    job = json.loads(sys.stdin.readline())
    heads = [head.encode() for head in job["heads"]]
    try:
        loop = Loop(job)
        roam(loop, heads, job["at_once"], WARM_UP_ROUNDS, 0)
        loop.reset()
        print("ready", flush=True)
        sys.stdin.readline()
        began_s = time.perf_counter()
        roam(loop, heads, job["at_once"], 0, job["seconds"])
        wall_s = time.perf_counter() - began_s
        print(json.dumps({"wall_s": wall_s, "latencies_ns": sorted(loop.latencies_ns)}), flush=True)
    except (Failed, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
