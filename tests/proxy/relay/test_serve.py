"""The whole relay in this process: real sockets, TLS and signals; only the hub is the test's."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest
import trio
import trio.testing
import trustme

from auth import tokens
from auth.hubtime import hub_time, is_hub_time
from auth.jws import TokenError
from auth.keys import KeySet, PublicKey, SigningKey
from proxy.exchange.server import ServerConnection
from proxy.message.status import status_response
from proxy.process.config import Address
from proxy.process.files import FileError
from proxy.relay import serve, tunnelled
from proxy.relay.config import CLOCK_BOUND_S, DirectListener, RelayConfig, TunnelDial
from proxy.relay.own_requests import NAMESPACE
from proxy.relay.serve import RelayError, run_relay
from proxy.relay.service_account import ClusterAccessError
from proxy.relay.verify import Verifier
from sandbox.demo.processes import free_port
from tests.proxy.relay.apiserver import OK, ApiServer, Connection, Script, namespace_answer, running
from tests.proxy.relay.health_probe import probe
from tests.proxy.relay.ways import (
    CLUSTER_ID,
    HUB,
    KEY,
    PROBE,
    DirectWay,
    TunnelWay,
    exchange_raw,
    inner,
    inquiry,
    inquiry_request,
    tell_time,
    token,
    trusting,
)
from tests.tunnel.trio_stream import TrioStream
from tunnel import Hello, Role, Session, Welcome, open_session
from tunnel.net.connect import server_context, wrap_server
from tunnel.protocol.window import INITIAL_WINDOW_BYTES
from tunnel.websocket.upgrade import ELSEWHERE_HEADER, HUB_TIME_HEADER, accept_websocket

RELAY_KEY = SigningKey.generate()
PEPPER = b"p" * 32


def issue(folder: Path, name: str) -> str:
    """Write a certificate and key for 127.0.0.1; returns the CA."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    (folder / f"{name}.pem").write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    (folder / f"{name}.key").write_bytes(certificate.private_key_pem.bytes())
    return authority.cert_pem.bytes().decode()


@attrs.define(eq=False)
class Hub:
    """Accepts tunnels; `sessions` brings each one."""

    url: str
    ca_pem: str
    sessions: trio.MemoryReceiveChannel[Session]
    clock: Callable[[], float] = time.time
    tells: bool = True
    """Whether it signs its time at once."""
    welcomes: Iterator[Welcome] = attrs.field(factory=lambda: repeat(Welcome(session_id="s")))
    elsewhere: list[bytes] = attrs.field(factory=list)
    """The hubs that each dial lists."""
    refusals: list[str] = attrs.field(factory=list)
    hellos: list[tokens.HelloClaims] = attrs.field(factory=list)


@asynccontextmanager
async def running_hub(folder: Path) -> AsyncIterator[Hub]:
    ca_pem = issue(folder, "hub")
    context = server_context(folder / "hub.pem", folder / "hub.key")
    send, receive = trio.open_memory_channel[Session](1)

    def find_key(kid: str) -> tuple[str, PublicKey] | None:
        return (CLUSTER_ID, RELAY_KEY.public) if kid == RELAY_KEY.kid else None

    async def handle(tcp: trio.SocketStream) -> None:
        tls = wrap_server(tcp, context)
        try:
            await tls.do_handshake()
            connection = ServerConnection(tls)
            request = await connection.next_request()
            assert request is not None
            bearer = (request.header(b"authorization") or b"").removeprefix(b"Bearer ").decode()
            try:
                hub.hellos.append(tokens.verify_hello(bearer, find_key, hub_url=hub.url, now=hub.clock()))
            except TokenError as error:
                hub.refusals.append(error.reason)
                told = (HUB_TIME_HEADER, hub_time(PEPPER, hub.clock()).encode())
                await connection.answer(*status_response(401, "", error.reason, headers=(told,)))
                return
            hub.elsewhere.append(request.header(ELSEWHERE_HEADER) or b"")
            raw = connection.raw_head
            stream, leftover = connection.detach()
            async with accept_websocket(stream, request_head=raw, leftover=leftover) as transport:
                async with open_session(
                    transport, Role.LISTENER, answer_hello=lambda _: next(hub.welcomes)
                ) as session:
                    if hub.tells:
                        tell_time(session, issuer=hub.url)
                    await send.send(session)
                    await session.wait_closed()
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(tls)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        hub = Hub(f"https://127.0.0.1:{listeners[0].socket.getsockname()[1]}", ca_pem, receive)
        await nursery.start(trio.serve_listeners, handle, listeners)
        yield hub
        nursery.cancel_scope.cancel()


def in_pod(server: ApiServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process believe that it is a pod with the service account in `folder`."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.access.port))
    monkeypatch.setattr(serve, "in_cluster", lambda: server.access)


def config(
    way: TunnelDial | DirectListener, hub_url: str, *, health: int | None = None, grace_s: float = 45
) -> RelayConfig:
    return RelayConfig(
        way=way,
        cluster_id=CLUSTER_ID,
        instance="relay-0",
        hub_url=hub_url,
        hub_keys=KeySet([KEY.public]),
        kubeconfig=None,
        health_listen=Address("127.0.0.1", health) if health is not None else None,
        stop_grace_s=grace_s,
    )


async def ready(port: int) -> bool:
    try:
        return (await probe(port, "/readyz")).startswith(b"HTTP/1.1 200 ")
    except OSError:
        return False


async def alive(port: int) -> bool:
    try:
        return (await probe(port, "/healthz")).startswith(b"HTTP/1.1 200 ")
    except OSError:
        return False


async def wait_for(condition: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(10):
        while True:
            if await condition():
                return
            await trio.sleep(0.01)


def probed(script: Script) -> Script:
    """The script of a server that answers the relay's own requests besides."""

    async def serve(connection: Connection) -> None:
        head = await connection.request()
        if head.startswith((b"GET /readyz ", b"GET /api/v1/namespaces/kube-system ")):
            await connection.send(OK)
            return
        connection.unread(head)
        await script(connection)

    return serve


async def answer_ok(connection: Connection) -> None:
    while await connection.request():
        await connection.send(OK)


def relay_token(hub: Hub, session: Session) -> str:
    """A token by the hub's own name, which has the port that the system gave it."""
    assert isinstance(session.peer, Hello)
    return tokens.issue_relay(
        KEY,
        issuer=hub.url,
        cluster_id=CLUSTER_ID,
        principal=PROBE,
        session="s",
        jti="j",
        now=time.time(),
        nonce=session.peer.nonce,
    )


async def test_tunnel_mode_from_start_to_sigterm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(answer_ok, tmp_path) as server, running_hub(tmp_path) as hub:
        in_pod(server, tmp_path, monkeypatch)
        health = free_port()
        async with trio.open_nursery() as nursery:
            way = TunnelDial(RELAY_KEY, hub.ca_pem)
            nursery.start_soon(run_relay, config(way, hub.url, health=health))
            session = await hub.sessions.receive()
            await wait_for(lambda: ready(health))
            claims = hub.hellos[0]
            assert (claims.cluster_id, claims.instance, claims.hub_time) == (CLUSTER_ID, "relay-0", "")
            assert getattr(session.peer, "instance", "") == "relay-0"
            assert getattr(session.peer, "cluster", "") == CLUSTER_ID
            answer = await TunnelWay(session).ask(inner(), token=relay_token(hub, session))
            assert (answer.status, answer.body) == (200, b"ok")
            os.kill(os.getpid(), signal.SIGTERM)
            with trio.fail_after(5):
                await session.wait_closed()
        assert session.draining or session.closed


async def test_a_relay_is_ready_once_the_hub_has_signed_its_time_for_the_sessions_nonce(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a rollout of relays goes no further where the hub is older, and was to be upgraded first."""
    async with running(answer_ok, tmp_path) as server, running_hub(tmp_path) as hub:
        in_pod(server, tmp_path, monkeypatch)
        hub.tells = False
        health = free_port()
        async with trio.open_nursery() as nursery:
            way = TunnelDial(RELAY_KEY, hub.ca_pem)
            nursery.start_soon(run_relay, config(way, hub.url, health=health))
            session = await hub.sessions.receive()
            await wait_for(lambda: alive(health))
            assert not await ready(health)
            tell_time(session, issuer=hub.url)
            await wait_for(lambda: ready(health))
            nonces = {session.peer.nonce}  # type: ignore[union-attr]
            # Another session, with a nonce of its own.
            session.go_away()
            second = await hub.sessions.receive()
            nonces.add(second.peer.nonce)  # type: ignore[union-attr]
            assert {len(bytes.fromhex(nonce)) for nonce in nonces} == {16}
            assert len(nonces) == 2
            os.kill(os.getpid(), signal.SIGTERM)


async def test_a_relay_whose_clock_is_set_wrong_is_not_ready_until_it_is_put_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(answer_ok, tmp_path) as server, running_hub(tmp_path) as hub:
        in_pod(server, tmp_path, monkeypatch)
        health = free_port()
        async with trio.open_nursery() as nursery:
            way = TunnelDial(RELAY_KEY, hub.ca_pem)
            nursery.start_soon(run_relay, config(way, hub.url, health=health))
            session = await hub.sessions.receive()
            await wait_for(lambda: ready(health))
            for ahead_s in (-CLOCK_BOUND_S - 30, CLOCK_BOUND_S + 30):
                own = SimpleNamespace(time=lambda ahead_s=ahead_s: time.time() + ahead_s)
                with monkeypatch.context() as patch:
                    patch.setattr(tunnelled, "time", own)
                    assert not await ready(health)
                assert await ready(health)
            assert not session.closed
            os.kill(os.getpid(), signal.SIGTERM)


async def test_sigterm_lets_open_requests_finish_and_accepts_no_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, release = trio.Event(), trio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        begun.set()
        await release.wait()
        await connection.send(OK)

    async with running(probed(script), tmp_path) as server, running_hub(tmp_path) as hub:
        in_pod(server, tmp_path, monkeypatch)
        health = free_port()
        async with trio.open_nursery() as nursery:
            way = TunnelDial(RELAY_KEY, hub.ca_pem)
            nursery.start_soon(run_relay, config(way, hub.url, health=health))
            session = await hub.sessions.receive()

            async def ask() -> None:
                answer = await TunnelWay(session).ask(inner(), token=relay_token(hub, session))
                assert answer.body == b"ok"

            nursery.start_soon(ask)
            await begun.wait()
            os.kill(os.getpid(), signal.SIGTERM)

            async def draining() -> bool:
                return session.draining and not await ready(health)

            await wait_for(draining)
            assert not session.closed
            # The probe of life still answers: this is a stop and no failure.
            assert (await probe(health, "/healthz")).startswith(b"HTTP/1.1 200 ")
            release.set()


async def test_sigterm_lets_an_answer_arrive_whose_last_bytes_wait_for_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than the hub's window, and less than that and the stream's queue: the API server is done with it.
    body = bytes(150_000)

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await connection.more()

    async with running(probed(script), tmp_path) as server, running_hub(tmp_path) as hub:
        in_pod(server, tmp_path, monkeypatch)
        health = free_port()
        async with trio.open_nursery() as nursery:
            way = TunnelDial(RELAY_KEY, hub.ca_pem)
            nursery.start_soon(run_relay, config(way, hub.url, health=health))
            session = await hub.sessions.receive()
            context = session.add_context(1, relay_token(hub, session).encode())
            async with TrioStream(session.open_stream(inner().encode(), context=context, eof=True)) as stream:
                await stream.receive_head()

                async def window_full() -> bool:
                    return stream.raw.bytes_received == INITIAL_WINDOW_BYTES

                async def draining() -> bool:
                    return session.draining and not await ready(health)

                await wait_for(window_full)
                os.kill(os.getpid(), signal.SIGTERM)
                await wait_for(draining)
                received = 0
                while data := await stream.receive_some():
                    received += len(data)
            assert received == len(body)


@pytest.mark.parametrize("again", [False, True])
async def test_an_open_request_is_cut_after_the_grace_or_by_a_second_signal(
    again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = trio.Event()
    monkeypatch.setattr("proxy.process.lifecycle.signals.AT_ONCE_S", math.inf)

    async def script(connection: Connection) -> None:
        await connection.request()
        begun.set()
        await connection.more()

    async with running(probed(script), tmp_path) as server, running_hub(tmp_path) as hub:
        in_pod(server, tmp_path, monkeypatch)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                way = TunnelDial(RELAY_KEY, hub.ca_pem)
                nursery.start_soon(run_relay, config(way, hub.url, grace_s=3600 if again else 0.2))
                session = await hub.sessions.receive()

                async def ask() -> None:
                    answer = await TunnelWay(session).ask(inner(), token=relay_token(hub, session))
                    assert answer.failure is not None

                nursery.start_soon(ask)
                await begun.wait()
                os.kill(os.getpid(), signal.SIGTERM)
                await session.wait_going_away()
                # To the process and to its group, as by timeout(1): that is one.
                os.kill(os.getpid(), signal.SIGTERM)
                if again:
                    await trio.testing.wait_all_tasks_blocked()
                    assert not session.closed
                    monkeypatch.setattr("proxy.process.lifecycle.signals.AT_ONCE_S", 0.0)
                    os.kill(os.getpid(), signal.SIGTERM)


async def test_a_hub_that_goes_away_is_dialled_again_while_the_old_tunnel_carries_its_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, release = trio.Event(), trio.Event()

    async def script(connection: Connection) -> None:
        head = await connection.request()
        if b"slow" in (head or b""):
            begun.set()
            await release.wait()
        await connection.send(OK)
        await connection.more()

    async with running(probed(script), tmp_path) as server, running_hub(tmp_path) as hub:
        in_pod(server, tmp_path, monkeypatch)
        health = free_port()
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                way = TunnelDial(RELAY_KEY, hub.ca_pem)
                nursery.start_soon(run_relay, config(way, hub.url, health=health))
                old = await hub.sessions.receive()

                async def ask_slowly() -> None:
                    slow = inner(target=b"/api/v1/namespaces/slow/pods")
                    answer = await TunnelWay(old).ask(slow, token=relay_token(hub, old))
                    assert answer.body == b"ok"

                nursery.start_soon(ask_slowly)
                await begun.wait()
                old.go_away(drain_ms=60_000, reason="the hub stops")
                new = await hub.sessions.receive()
                # New requests take either tunnel until the old hub has closed its own.
                for session in (new, old):
                    answer = await TunnelWay(session).ask(inner(), token=relay_token(hub, session))
                    assert answer.body == b"ok"
                assert await ready(health)
                assert not old.closed
                release.set()
                await old.wait_quiet()
                os.kill(os.getpid(), signal.SIGTERM)
                await new.wait_closed()


async def test_a_relay_serves_the_tunnels_of_two_hubs_and_drains_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnel.dialing.backoff.REDIAL_S", 0.0)
    begun, release = trio.Semaphore(0), trio.Event()

    async def script(connection: Connection) -> None:
        while head := await connection.request():
            if b"slow" in head:
                begun.release()
                await release.wait()
            await connection.send(OK)

    async with running(probed(script), tmp_path) as server, running_hub(tmp_path) as hub:
        in_pod(server, tmp_path, monkeypatch)
        hub.welcomes = (Welcome(session_id=name, replica=name, tunnels=2) for name in ("a", "b", "c"))
        health = free_port()
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                way = TunnelDial(RELAY_KEY, hub.ca_pem)
                nursery.start_soon(run_relay, config(way, hub.url, health=health))
                first, second = [await hub.sessions.receive() for _ in range(2)]
                assert hub.elsewhere == [b"", b"a"]
                # Two sessions of one process, each with a nonce of its own.
                peers = [session.peer for session in (first, second)]
                assert len({getattr(peer, "boot_id", "") for peer in peers}) == 1
                assert len({getattr(peer, "nonce", "") for peer in peers}) == 2
                for session in (first, second):
                    answer = await TunnelWay(session).ask(inner(), token=relay_token(hub, session))
                    assert answer.body == b"ok"
                assert b'hawse_relay_tunnels{state="up"} 2' in await probe(health, "/metrics")
                # With one tunnel it is ready, and has another one soon.
                first.end(1000, "the hub dies")
                assert await ready(health)
                third = await hub.sessions.receive()
                assert hub.elsewhere[2:] == [b"b"]

                async def ask_slowly(session: Session) -> None:
                    slow = inner(target=b"/api/v1/namespaces/slow/pods")
                    answer = await TunnelWay(session).ask(slow, token=relay_token(hub, session))
                    assert answer.body == b"ok"

                for session in (second, third):
                    nursery.start_soon(ask_slowly, session)
                    await begun.acquire()
                os.kill(os.getpid(), signal.SIGTERM)
                for session in (second, third):
                    assert await session.wait_going_away() is not None
                    assert not session.closed
                assert b'hawse_relay_tunnels{state="leaving"} 2' in await probe(health, "/metrics")
                release.set()


async def test_a_relay_with_a_wrong_clock_learns_the_hubs_from_its_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(answer_ok, tmp_path) as server, running_hub(tmp_path) as hub:
        in_pod(server, tmp_path, monkeypatch)
        hub.clock = lambda: time.time() + 300
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_relay, config(TunnelDial(RELAY_KEY, hub.ca_pem), hub.url))
            # At once, and not only after the first wait.
            with trio.fail_after(4):
                await hub.sessions.receive()
            assert len(hub.refusals) == 1
            assert "expired" in hub.refusals[0]
            [hello] = hub.hellos
            assert is_hub_time(hello.hub_time, PEPPER, hello.issued_at)
            os.kill(os.getpid(), signal.SIGTERM)


async def test_direct_mode_from_start_to_sigterm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(answer_ok, tmp_path) as server:
        in_pod(server, tmp_path, monkeypatch)
        health, port = free_port(), free_port()
        ca_pem = issue(tmp_path, "direct")
        listener = DirectListener(
            Address("127.0.0.1", port), tmp_path / "direct.pem", tmp_path / "direct.key"
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_relay, config(listener, "https://hub.example", health=health))
            await wait_for(lambda: ready(health))
            # The relay has its own verifier; this one is the test's, which is not asked here.
            way = DirectWay(port, ca_pem, Verifier(trusting(), HUB, CLUSTER_ID, time.time))
            assert (await way.ask(inner(), token=token())).body == b"ok"
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(OSError):
            await way.connect()


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_direct_relay_answers_no_request_before_it_knows_its_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    """A hub that asked earlier would get no statement, and send requests until it inquiry_request again."""
    slow = trio.Event()

    async def answer(connection: Connection) -> None:
        while head := await connection.request():
            await slow.wait()
            await connection.send(namespace_answer("east") if NAMESPACE in head else OK)

    async with running(answer, tmp_path) as server:
        in_pod(server, tmp_path, monkeypatch)
        port = free_port()
        ca_pem = issue(tmp_path, "direct")
        listener = DirectListener(
            Address("127.0.0.1", port), tmp_path / "direct.pem", tmp_path / "direct.key"
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_relay, config(listener, HUB))
            stated: list[bytes] = []

            async def inquire() -> None:
                way = DirectWay(port, ca_pem)
                with suppress(trio.BrokenResourceError):
                    stated.append(await exchange_raw(way, inquiry_request(inquiry())))

            await wait_for(lambda: listening(port))
            nursery.start_soon(inquire)
            await trio.sleep(0.3)
            assert stated == []
            if stopped:
                os.kill(os.getpid(), signal.SIGTERM)
                await wait_for(lambda: closed(port))
                nursery.cancel_scope.cancel()
            else:
                slow.set()
                with trio.fail_after(5):
                    while not stated:  # noqa: ASYNC110 - a socket decides it
                        await trio.sleep(0.01)
                os.kill(os.getpid(), signal.SIGTERM)
    assert [said.endswith(b"cluster=east api=up") for said in stated] == ([] if stopped else [True])


async def listening(port: int) -> bool:
    try:
        await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
    except OSError:
        return False
    return True


async def closed(port: int) -> bool:
    return not await listening(port)


async def failure_of(relay: RelayConfig) -> BaseException:
    failure: BaseException
    try:
        with trio.fail_after(5):
            await run_relay(relay)
    except Exception as error:
        failure = error
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure


async def test_each_fault_at_the_start_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    way = TunnelDial(RELAY_KEY, None)
    assert isinstance(await failure_of(config(way, "https://hub.example")), ClusterAccessError)
    async with running(answer_ok, tmp_path) as server:
        in_pod(server, tmp_path, monkeypatch)
        failure = await failure_of(config(TunnelDial(RELAY_KEY, "no PEM"), "https://hub.example"))
        assert isinstance(failure, RelayError)
        assert str(failure).startswith("hub.ca: ")
        (tmp_path / "none.pem").write_text("no PEM")
        direct = DirectListener(Address("127.0.0.1", 0), tmp_path / "none.pem", tmp_path / "none.pem")
        failure = await failure_of(config(direct, "https://hub.example"))
        assert isinstance(failure, FileError)
        assert str(failure).startswith(f"direct.certificate: {tmp_path / 'none.pem'}: ")
        # No address of this machine (RFC 5737). A port that is taken is waited for.
        elsewhere = attrs.evolve(config(way, "https://hub.example"), health_listen=Address("192.0.2.1", 80))
        assert isinstance(await failure_of(elsewhere), OSError)
