"""A hub whose database does not answer, and one that was stopped itself, with short bounds."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
import pytest

from proxy.hub.home.databases import noted_applied
from proxy.hub.home.datadir import DataDir
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.versions.version import Version
from tests.fakes.apiserver import Exchange
from tests.fakes.databases import lose, run
from tests.postgres import PostgresServer
from tests.system.chain import Chain, open_chain
from tests.system.disk import TokenClient
from tests.system.raw import Answer
from tests.system.world import POLL_S

pytestmark = pytest.mark.timeout(60)

STALE_S, STALE_STREAMS_S = 2.0, 4.0
# For a busy machine; on a quiet one everything happens within half a second.
SLACK_S = 3.0


def answer_ok(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def watch(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n")
    exchange.wait_gone(30.0)


@attrs.frozen
class Away:
    """A chain whose hub has its database in PostgreSQL."""

    chain: Chain
    postgres: PostgresServer
    database: str

    def client(self) -> TokenClient:
        """An agent that has its token already."""
        token = self.chain.client("tunnel").token()
        return TokenClient(self.chain.world, "tunnel", access_token=token)

    def get(self, client: TokenClient) -> Answer:
        path, _ = self.chain.path(answer_ok)
        return client.get(path)

    @contextmanager
    def stopped_database(self) -> Iterator[float]:
        """The server and the hub's connections to it stand still for the block."""
        query = f"SELECT pid FROM pg_stat_activity WHERE datname = '{self.database}'"
        pids = [self.postgres.process.pid, *(int(str(pid)) for (pid,) in self.postgres.execute(query))]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield time.monotonic()
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def away(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Away]:
    with postgres.new_database() as name:
        settings = (
            f'[database]\nurl = "{postgres.url(name)}"\n'
            f"stale_s = {STALE_S:.0f}\nstale_streams_s = {STALE_STREAMS_S:.0f}\n"
        )
        with open_chain(tmp_path_factory.mktemp("away"), settings) as chain:
            yield Away(chain, postgres, name)


def until(condition: Callable[[], bool], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(POLL_S)


def expect_refusal(answer: Answer) -> None:
    assert answer.status == 503, answer
    assert b"this hub cannot confirm its state with the database since" in answer.body
    assert b"the API server has not seen this request" in answer.body


def test_a_database_that_does_not_answer_stops_the_hub_in_time_and_for_no_longer(away: Away) -> None:
    client = away.client()
    path, _ = away.chain.path(watch, "?watch=1")
    with client.talk(client.head(path)) as talk:
        assert talk.answer(body=False).status == 200
        with away.stopped_database() as stopped_at:
            assert away.get(client).status == 200
            until(lambda: away.get(client).status != 200, STALE_S + SLACK_S)
            # The last poll was half a second before, at most.
            assert time.monotonic() - stopped_at > STALE_S - 1.0
            expect_refusal(away.get(client))
            assert client.post("/oauth/token", {"grant_type": "client_credentials"})[0] == 503
            talk.rest(STALE_STREAMS_S + SLACK_S - (time.monotonic() - stopped_at))
        until(lambda: away.get(client).status == 200, SLACK_S)
    world = away.chain.world
    assert world.hub is not None
    world.hub.wait_for("ended 1 call")
    world.hub.wait_for("has confirmed the hub's state again")
    [killed] = world.hub_audit("--kind", "session.killed")
    assert "database.stale_streams_s" in killed["resp"]["reason"]


def test_a_request_that_waits_in_the_socket_of_a_stopped_hub_is_refused(away: Away) -> None:
    client, hub = away.client(), away.chain.world.hub
    assert hub is not None
    path, _ = away.chain.path(answer_ok)
    other, mark = away.chain.path(answer_ok)
    head = client.head(path, connection="keep-alive")
    with client.talk(head) as talk:
        assert talk.answer().status == 200
        hub.process.send_signal(signal.SIGSTOP)
        try:
            talk.send(client.head(other, connection="keep-alive"))
            time.sleep(STALE_S + 0.2)
        finally:
            hub.process.send_signal(signal.SIGCONT)
        expect_refusal(talk.answer())
        until(lambda: away.get(client).status == 200, SLACK_S)
    assert not any(mark in exchange.head.decode("latin-1") for exchange in away.chain.server.exchanges)


def test_a_database_that_has_lost_changes_stops_new_calls_until_that_is_accepted(away: Away) -> None:
    client, world = away.client(), away.chain.world
    address = PostgresAddress(away.postgres.url(away.database))
    [(number, nonce)] = run(address, "SELECT version, nonce FROM directory")
    world.admin("team", "add", "lost")
    data = DataDir(world.folder / "hub")
    until(lambda: (applied := noted_applied(data)) is not None and applied.number > int(str(number)), SLACK_S)
    path, _ = away.chain.path(watch, "?watch=1")
    with client.talk(client.head(path)) as talk:
        assert talk.answer(body=False).status == 200
        lose(address, back_to=Version(int(str(number)), str(nonce)))
        until(lambda: away.get(client).status == 503, SLACK_S)
        refused = away.get(client)
        assert b"the database has lost changes" in refused.body
        assert b"the API server has not seen this request" in refused.body
        assert client.post("/oauth/token", {"grant_type": "client_credentials"})[0] == 503
        world.admin("database", "accept", "--yes")
        until(lambda: away.get(client).status == 200, SLACK_S)
    assert len(world.hub_audit("--kind", "directory.rolled_back")) == 1
