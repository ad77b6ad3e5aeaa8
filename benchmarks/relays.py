"""Many relays in one process: `python -m benchmarks.relays FILE SOURCE KUBECONFIG`, commands on stdin.

FILE is a list in JSON with the enrolment of each relay. SOURCE is the loopback address that they dial from,
because a hub limits unauthenticated peers by address. Each has a dialer, a session and a verifier of its own,
as a relay has; they share the event loop and the connections to the API server.

    start N     N more of them dial from now on
    live        answers with how many sessions are up
    opened      answers with when each session came up since the last time, in monotonic seconds
"""

from __future__ import annotations

import json
import logging
import secrets
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import trio

from auth.hubclock import HubClocks
from auth.key_rotation import TrustedKeys
from auth.keys import KeySet, SigningKey
from auth.tokens import issue_hello
from proxy.process.lifecycle.filelimit import raise_file_limit
from proxy.relay.config import CLOCK_BOUND_S
from proxy.relay.exchange import Upstream
from proxy.relay.pool import open_pool
from proxy.relay.service_account import from_kubeconfig
from proxy.relay.tunnelled import serve_session
from tunnel import NONCE_BYTES, Hello, Memory, Session
from tunnel.dialing.dial import DialerConfig
from tunnel.dialing.dialer import run_dialer
from tunnel.net.connect import client_context, tune

MEMORY_BYTES_MAX = 128 * 1024 * 1024


@attrs.define
class Fleet:
    """The relays that dial, and what they report."""

    enrolled: list[dict[str, Any]]
    source: str
    upstream: Upstream
    started: int = 0
    live: int = 0
    opened_at: list[float] = attrs.Factory(list)

    def start(self, count: int, nursery: trio.Nursery) -> None:
        for relay in self.enrolled[self.started : self.started + count]:
            nursery.start_soon(self.run, relay)
        self.started += count

    async def run(self, relay: dict[str, Any]) -> None:
        """One relay, for good."""
        keys = TrustedKeys(KeySet.from_jwks(relay["hub_keys"]), relay["hub_url"])
        hubs = HubClocks(keys, relay["hub_url"], relay["cluster_id"], CLOCK_BOUND_S)

        async def serve(session: Session) -> None:
            self.live += 1
            self.opened_at.append(time.monotonic())
            try:
                await serve_session(session, self.upstream, hubs=hubs)
            finally:
                self.live -= 1

        await run_dialer(self.dialer(relay), serve)

    def dialer(self, relay: dict[str, Any]) -> DialerConfig:
        key = SigningKey.from_pem(relay["private_key_pem"].encode())
        cluster_id, hub_url, instance = relay["cluster_id"], relay["hub_url"], relay["instance"]
        boot_id = uuid.uuid4().hex

        def authorization(_hub_time: str) -> str:
            return issue_hello(
                key,
                cluster_id=cluster_id,
                hub_url=hub_url,
                instance=instance,
                jti=uuid.uuid4().hex,
                now=time.time(),
            )

        def hello() -> Hello:
            return Hello(
                cluster=cluster_id,
                instance=instance,
                boot_id=boot_id,
                nonce=secrets.token_hex(NONCE_BYTES),
                software="hawse/bench",
            )

        return DialerConfig(
            hub_url=hub_url,
            tls=client_context(relay["hub_ca_pem"]),
            authorization=authorization,
            hello=hello,
            memory=Memory(MEMORY_BYTES_MAX),
            open_tcp=self.open_tcp,
        )

    async def open_tcp(self, host: str, port: int) -> trio.abc.Stream:
        stream = await trio.open_tcp_stream(host, port, local_address=self.source)
        tune(stream)
        return stream

    def take_opened(self) -> list[float]:
        taken, self.opened_at = self.opened_at, []
        return taken


async def obey(fleet: Fleet, nursery: trio.Nursery) -> None:
    """Run the commands of stdin, until it ends."""
    answers: dict[str, Callable[[], object]] = {"live": lambda: fleet.live, "opened": fleet.take_opened}
    while line := await trio.to_thread.run_sync(sys.stdin.readline):
        command, _, argument = line.strip().partition(" ")
        if command == "start":
            fleet.start(int(argument), nursery)
        print(json.dumps(answers.get(command, lambda: "done")()), flush=True)
    nursery.cancel_scope.cancel()


async def run(enrolled: list[dict[str, Any]], source: str, kubeconfig: Path) -> None:
    async with open_pool(from_kubeconfig(kubeconfig)) as pool, trio.open_nursery() as nursery:
        await obey(Fleet(enrolled, source, Upstream(pool)), nursery)


def main() -> None:
    raise_file_limit()
    # A relay logs each lost tunnel. Of a thousand relays the counts are enough.
    logging.disable(logging.WARNING)
    file, source, kubeconfig = sys.argv[1:]
    trio.run(run, json.loads(Path(file).read_text()), source, Path(kubeconfig))


if __name__ == "__main__":
    main()
