"""Hold a hub to its links: another hub that has proved itself, and sends what no hub sends.

    python -m tests.fuzz.peer [--count N] [--seed N]

Each round is a link of its own, whose greeting, frames, routes or questions have met accidents. It may end,
and its streams may be refused. The hub goes on, and its link to an honest hub too.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeAlias

import attrs
import trio
import trio.testing

from proxy.hub.hop.call_context import BadContextError, CallContext
from proxy.hub.peers.link import ASK, ROUTES, AskFailed, PeerLink
from tests.fuzz.mutation import mutated
from tests.proxy.hub.peers.linked import Linked, _accept, member, open_linked_hubs, route
from tunnel import (
    Hello,
    Rejected,
    RemoteProtocolError,
    Role,
    SessionClosed,
    StreamReset,
    Transport,
    TransportClosed,
    memory_transport_pair,
    open_session,
)
from tunnel.handshake import say_hello
from tunnel.protocol import frames, greetings

Attack: TypeAlias = Callable[[Transport, random.Random], Awaitable[None]]

EVIL = member("00000000")
# How long a round waits for what the hub makes of it, on virtual time.
ROUND_S = 1.0
HERE = {"is": "here", **attrs.asdict(route("s1"))}
GONE, WHOLE = {"is": "gone", "session": "s1"}, {"is": "whole"}
LINES = [json.dumps(each).encode() + b"\n" for each in (HERE, GONE, WHOLE)]
QUESTIONS = [
    json.dumps({"question": name, "body": body}).encode()
    for name, body in (("ping", {}), ("answers", {"session": "s1", "instance": "a"}), ("none", {"a": [1]}))
]
CONTEXT = {
    "session": "s1",
    "cluster": "c1",
    "version": 7,
    "agent": "a",
    "name": "n",
    "org": "o",
    "teams": ["t"],
}
CONTEXTS = [json.dumps(CONTEXT).encode()]
GREETINGS = [greetings.hello(Hello(instance="00000000", boot_id="b", software="hawse/1"))]
KINDS = [ROUTES, ASK, b"resume", b"none"]
# PING, GOAWAY and frames of no known type.
FRAMES = [
    frames.header(kind, 0, stream, 8) + b"12345678" for kind in range(14) for stream in (0, 1, 2, 7)
] + [frames.goaway(0, 4503, 0, 0, "bye")]


async def run(count: int, seed: int) -> dict[str, int]:
    """Run so many rounds; returns how many of each kind."""
    source = random.Random(seed)
    kinds: dict[str, Attack] = {
        "greetings": greeting,
        "frames": raw_frames,
        "routes": streams,
        "questions": streams,
    }
    done = dict.fromkeys((*kinds, "contexts"), 0)
    async with open_linked_hubs() as (honest, hub, _):

        async def pong(_: PeerLink, body: dict[str, object]) -> dict[str, object]:
            return {"pong": True}

        hub.mesh.answers["ping"] = pong
        for number in range(count):
            done["contexts"] += 1
            with suppress(BadContextError):
                CallContext.decode(mutated(source, CONTEXTS))
            kind = list(kinds)[number % len(kinds)]
            done[kind] += 1
            await one_round(hub, source, kinds[kind])
            if number % 16 == 0 or number == count - 1:
                assert await honest.link.ask("ping", {}) == {"pong": True}
                assert [link for link in hub.mesh.links if link.member.boot == EVIL.boot] == []
                assert hub.relays == []
    return done


async def one_round(hub: Linked, source: random.Random, attack: Attack) -> None:
    """Link to the hub as another one, and attack it."""
    here, there = memory_transport_pair()
    hub.members.rows[EVIL.boot] = EVIL
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_accept, hub.mesh, EVIL, there)
        with (
            trio.move_on_after(ROUND_S),
            suppress(Rejected, SessionClosed, RemoteProtocolError, TransportClosed, StreamReset, AskFailed),
        ):
            await attack(here, source)
        here.cut()
        for link in list(hub.mesh.links):
            if link.member.boot == EVIL.boot:
                link.session.end(1000, "the round is over")
    await trio.testing.wait_all_tasks_blocked()


async def greeting(here: Transport, source: random.Random) -> None:
    """Send a HELLO that may be none."""
    await here.send(mutated(source, GREETINGS))
    while True:
        await here.receive()


async def raw_frames(here: Transport, source: random.Random) -> None:
    """Greet, and send frames that may be none."""
    await say_hello(here, Hello(instance=EVIL.hub, boot_id=EVIL.boot))
    for _ in range(source.randrange(1, 6)):
        await here.send(mutated(source, FRAMES))
    while True:
        await here.receive()


async def streams(here: Transport, source: random.Random) -> None:
    """Open streams whose heads are those of a hub, and whose lines and questions may be none."""
    async with open_session(here, Role.DIALER, hello=Hello(instance=EVIL.hub, boot_id=EVIL.boot)) as session:
        hubs_own = session.add_context(0, b"hub")
        agents = session.add_context(source.randrange(1, 9), mutated(source, CONTEXTS) or b"{")
        for _ in range(source.randrange(1, 4)):
            kind = source.choice(KINDS)
            stream = session.open_stream(kind, context=source.choice((hubs_own, hubs_own, agents)))
            seeds = LINES if kind == ROUTES else QUESTIONS
            for _ in range(source.randrange(1, 4)):
                stream.write(mutated(source, seeds))
            stream.write(b"", eof=source.random() < 0.5)
        await session.wait_closed()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.peer", description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    # A line for each link that ends.
    logging.disable(logging.WARNING)
    began = time.monotonic()
    clock = trio.testing.MockClock(autojump_threshold=0)
    done = trio.run(run, options.count, options.seed, clock=clock)
    print(", ".join(f"{count} {kind}" for kind, count in done.items()), end="")
    print(f" in {time.monotonic() - began:.0f} s: no fault")


if __name__ == "__main__":
    main()
