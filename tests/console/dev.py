"""Serves the pages over a made-up hub, signed in: `python -m tests.console.dev --role operator --port 8500`.

Templates, styles and scripts are read again for each request. Calls move and come and go.
"""

from __future__ import annotations

import argparse
import logging
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import trio
from starlette.types import ASGIApp, Receive, Scope, Send

from audit.store import AuditStore
from proxy.console.app import console_app
from proxy.hub.admin.asgi import serve_connection
from proxy.hub.admin.simulation.job import Outcome
from proxy.hub.admin.verbs.callers import CALLER
from proxy.hub.approvals.request import LIFE_S, State
from proxy.hub.store.roles import Role
from tests.console.fakes import FakePerson, FakeSignIn
from tests.console.fleet_data import simulated
from tests.console.names import HOSTILE
from tests.console.request_data import MADE_UP, OTHER
from tests.console.trail_events import made_up_events
from tests.console.world import open_world
from tests.fakes.admin import Bench

# The oldest of more expires.
WAITING_KEPT = 8
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def dev_app(bench: Bench, sign_in: FakeSignIn, hub: str = "hub.example") -> ASGIApp:
    """Return the console with its /v1, and the headers that the hub's listener adds."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                headers = list(message["headers"])  # type: ignore[call-overload]  # ASGI's messages are untyped
                message = {**message, "headers": [*headers, (b"content-security-policy", CSP.encode())]}
            await send(message)

        if scope["path"].startswith("/v1/") and sign_in.who is not None:
            scope.setdefault("state", {})[CALLER] = sign_in.caller(sign_in.who)
            await bench.app(scope, receive, with_headers)
        else:
            # A new application, so that changed templates and assets are seen.
            await console_app(bench.app, sign_in, hub, bench.clock)(scope, receive, with_headers)

    return serve


async def _move(bench: Bench) -> None:
    """Let time pass: bytes rise, and requests come and go."""
    offset, number = bench.clock.now - time.time(), 0
    while True:
        await trio.sleep(1)
        number += 1
        bench.clock.now = time.time() + offset
        sessions = bench.sessions
        sessions.live = [
            attrs.evolve(call, bytes_out=call.bytes_out + 17_311) if call.status == 200 else call
            for call in sessions.live
        ]
        now = bench.clock.now
        if number % 4 == 0 and sessions.live:
            # A request that is gone again after some seconds.
            one = attrs.evolve(sessions.live[0], id=str(number), kind="request", verb="list", resource="pods")
            sessions.live.append(attrs.evolve(one, name="", started_at=now, bytes_out=0))
        elif number % 4 == 2:
            sessions.live = [call for call in sessions.live if not call.id.isdigit()]
        bench.operations.live = [attrs.evolve(one, last_seen=now) for one in bench.operations.live]
        if number % 10 == 0:
            _ask_again(bench, number)


def _ask_again(bench: Bench, number: int) -> None:
    """Open another request, and have one expire."""
    requests = bench.requests
    if not requests.found:
        return
    now = bench.clock.now
    waiting = [one for one in requests.found if one.state is State.PENDING]
    if len(waiting) > WAITING_KEPT:
        place = requests.found.index(waiting[0])
        requests.found[place] = attrs.evolve(waiting[0], state=State.EXPIRED, ended_at=now)
    one = waiting[-1] if waiting else requests.found[-1]
    another = attrs.evolve(one, id=f"{one.id[:-12]}{10**9 + number:012x}", state=State.PENDING)
    requests.found.append(attrs.evolve(another, created_at=now, expires_at=now + LIFE_S))
    requests.mark += 1


async def _record(folder: Path, bench: Bench, rate: float, *, hostile: bool) -> None:
    """Append so many events a second to the trail."""
    number = 0
    with closing(AuditStore(folder / "audit.db")) as store:
        while rate:
            number += 1
            await trio.sleep(max(0.2, 1 / rate))
            count = max(1, round(rate / 5))
            events = made_up_events(bench.clock.now, count, hostile=hostile, seed=number, within_s=0.2)
            await trio.to_thread.run_sync(store.append, events)


async def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--role", type=Role, choices=list(Role), default=Role.ADMIN)
    parser.add_argument("--port", type=int, default=8500)
    parser.add_argument("--clusters", type=int, default=5)
    parser.add_argument("--agents", type=int, default=7)
    parser.add_argument("--requests", type=int, default=len(MADE_UP))
    parser.add_argument("--calls", type=int, default=9)
    parser.add_argument("--events", type=int, default=300)
    parser.add_argument("--rate", type=float, default=0.5, help="events a second")
    parser.add_argument("--still", action="store_true", help="time stands still, and nothing moves")
    parser.add_argument("--hostile", action="store_true", help="hostile names and texts")
    parser.add_argument("--anonymous", action="store_true", help="not signed in; the code is hwo_good")
    given = parser.parse_args()
    with TemporaryDirectory(prefix="hawse-console-") as folder:
        async with (
            open_world(
                Path(folder),
                clusters=given.clusters,
                agents=given.agents,
                calls=given.calls,
                events=given.events,
                requests=given.requests,
                hostile=given.hostile,
            ) as bench,
            trio.open_nursery() as nursery,
        ):
            # The role approver approves as a person.
            person = FakePerson(given.role, approves_as=OTHER if given.role is Role.APPROVER else "")
            sign_in = FakeSignIn(None if given.anonymous else person)
            if not given.still:
                nursery.start_soon(_move, bench)
            nursery.start_soon(bench.trail.poll.run)
            bench.work.outcome = Outcome(simulated(HOSTILE if given.hostile else ()))
            nursery.start_soon(bench.simulations.run)
            nursery.start_soon(partial(_record, Path(folder), bench, given.rate, hostile=given.hostile))
            serve = partial(serve_connection, dev_app(bench, sign_in), scheme="http")
            print(f"http://127.0.0.1:{given.port}/", flush=True)
            await trio.serve_tcp(serve, given.port, host="127.0.0.1")


if __name__ == "__main__":
    logging.basicConfig()
    trio.run(main)
