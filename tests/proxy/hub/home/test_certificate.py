from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme
from starlette.applications import Starlette
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.hub.admin.front import AdminFront, write_endpoint
from proxy.hub.home.certificate import CHECK_EVERY_S, RENEW_EVERY_S, Certificate
from proxy.hub.home.config import HubConfig, TLSConfig
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.devca import CA_DAYS, CA_RENEW_BEFORE_DAYS, ensure_certificate
from proxy.hub.home.files.private_files import DataDirError
from proxy.process.files import FileError, names_of
from tunnel.net.connect import client_context

AUTHORITY = trustme.CA()
AUTHORITY_PEM = AUTHORITY.cert_pem.bytes().decode()
DAY_S = 24 * 3600.0
# The files are read on a thread, which a few handshakes may outrun.
ATTEMPTS = 200


def write_pair(folder: Path, *names: str) -> TLSConfig:
    """Put another certificate and its key where the operator's stand."""
    leaf = AUTHORITY.issue_cert(*(names or ("localhost",)))
    files = TLSConfig(folder / "hub.pem", folder / "hub.key")
    assert files.certificate is not None
    assert files.key is not None
    files.key.write_bytes(leaf.private_key_pem.bytes())
    files.certificate.write_bytes(leaf.cert_chain_pems[0].bytes())
    return files


@asynccontextmanager
async def shown_by(certificate: Certificate, tell: Callable[[], None]) -> AsyncIterator[Handshake]:
    """A listener that shows the certificate, kept current; yields what makes a handshake with it."""
    front = AdminFront(Starlette(), certificate)
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, front.handle_client, [listener])
        # Its own start is the wait below, which a `start` would only say in another way.
        nursery.start_soon(certificate.keep_current, tell)  # noqa: ASYNC113
        await wait_all_tasks_blocked()
        yield Handshake(listener.socket.getsockname()[1])
        nursery.cancel_scope.cancel()


class Handshake:
    """Makes handshakes, and says which certificate they showed."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def __call__(self, ca_pem: str | None = AUTHORITY_PEM) -> str:
        """The certificate that a client which trusts the CA is shown."""
        tcp = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with trio.SSLStream(tcp, client_context(ca_pem), server_hostname="localhost") as tls:
            await tls.do_handshake()
            der = tls.getpeercert(binary_form=True)
            assert isinstance(der, bytes)
            with trio.move_on_after(0):  # no farewell: the peer waits for a request
                await tls.aclose()
            return ssl.DER_cert_to_PEM_cert(der)

    async def until_another(self, than: str, clock: MockClock, ca_pem: str | None = AUTHORITY_PEM) -> str:
        """Let one check after another come, until a handshake shows another certificate."""
        for _ in range(ATTEMPTS):
            clock.jump(CHECK_EVERY_S)
            if (shown := await self(ca_pem)) != than:
                return shown
        raise AssertionError("the certificate has not changed")

    async def until_logged(self, text: str, log: pytest.LogCaptureFixture, clock: MockClock) -> None:
        """Let one check after another come, until the log says why nothing else may be shown."""
        for _ in range(ATTEMPTS):
            if text in log.text:
                return
            clock.jump(CHECK_EVERY_S)
            await self()
        raise AssertionError(f"the log does not say {text}")


async def test_a_renewed_certificate_is_shown_without_a_restart(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    data = DataDir.open(tmp_path / "hub")
    config = HubConfig(tls=write_pair(tmp_path), data_dir=data.path)
    certificate = Certificate.open(config, data, time.time)
    assert certificate.ca_pem is None
    async with shown_by(certificate, partial(write_endpoint, config, data, certificate.chain)) as shake:
        before = await shake()
        write_pair(tmp_path)
        assert await shake() == before
        after = await shake.until_another(before, mock_clock)
        endpoint = data.admin.endpoint()
        assert endpoint is not None
        # What `hawse admin` on this machine expects: that very certificate.
        assert endpoint.certificate_pem == after


async def test_a_certificate_for_another_name_is_told_at_the_start_and_when_it_is_renewed(
    tmp_path: Path, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    data = DataDir.open(tmp_path / "hub")
    tls = write_pair(tmp_path, "localhost", "old.example")
    config = HubConfig(tls=tls, data_dir=data.path, public_url="https://hub.example")
    certificate = Certificate.open(config, data, time.time)
    said = "hub.pem: the certificate is for localhost, old.example and not for hub.example"
    assert caplog.text.count(said) == 1
    async with shown_by(certificate, lambda: None) as shake:
        before = await shake()
        write_pair(tmp_path, "localhost", "hub.example")
        fitting = await shake.until_another(before, mock_clock)
        assert caplog.text.count(said) == 1
        write_pair(tmp_path, "localhost", "old.example")
        await shake.until_another(fitting, mock_clock)
        assert caplog.text.count(said) == 2


async def test_the_development_certificate_is_renewed_before_its_end(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    data = DataDir.open(tmp_path / "hub")
    config = HubConfig(data_dir=data.path)
    # The hub started 340 days ago; its certificate is good for 25 days more.
    now = time.time() - 340 * DAY_S
    certificate = Certificate.open(config, data, lambda: now)
    async with shown_by(certificate, lambda: None) as shake:
        before = await shake(certificate.ca_pem)
        now = time.time()
        for _ in range(20):  # not at each look, but hourly
            mock_clock.jump(CHECK_EVERY_S)
            assert await shake(certificate.ca_pem) == before
        mock_clock.jump(RENEW_EVERY_S)
        await shake.until_another(before, mock_clock, certificate.ca_pem)


async def test_the_ca_that_is_told_is_the_renewed_one(tmp_path: Path, mock_clock: MockClock) -> None:
    data = DataDir.open(tmp_path / "hub")
    made = datetime.now(UTC) - timedelta(days=CA_DAYS - CA_RENEW_BEFORE_DAYS)
    ensure_certificate(data.tls_dir, ("localhost",), made)
    # The hub started an hour before its CA came to its last year.
    now = time.time() - 3600.0
    certificate = Certificate.open(HubConfig(data_dir=data.path), data, lambda: now)
    old = certificate.ca_pem
    async with shown_by(certificate, lambda: None) as shake:
        now = time.time() + 1.0
        mock_clock.jump(RENEW_EVERY_S)
        for _ in range(ATTEMPTS):
            mock_clock.jump(CHECK_EVERY_S)
            await shake(old)
            if certificate.ca_pem != old:
                break
        assert certificate.ca_pem == (data.tls_dir / "ca.pem").read_text() != old
        # Who holds either of them accepts the hub.
        assert await shake(certificate.ca_pem) == await shake(old)


async def test_a_pair_that_does_not_fit_is_not_shown_until_it_does(
    tmp_path: Path, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    data = DataDir.open(tmp_path / "hub")
    tls = write_pair(tmp_path)
    assert tls.key is not None
    certificate = Certificate.open(HubConfig(tls=tls, data_dir=data.path), data, time.time)
    async with shown_by(certificate, lambda: None) as shake:
        before = await shake()
        old_key = tls.key.read_bytes()
        write_pair(tmp_path)
        new_key = tls.key.read_bytes()
        tls.key.write_bytes(old_key)
        await shake.until_logged(
            "hub.key is another certificate's; its last good content stays", caplog, mock_clock
        )
        assert await shake() == before
        tls.key.write_bytes(new_key)
        await shake.until_another(before, mock_clock)


async def test_nothing_new_is_shown_that_the_admin_commands_would_not_expect(
    tmp_path: Path, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    data = DataDir.open(tmp_path / "hub")
    certificate = Certificate.open(HubConfig(tls=write_pair(tmp_path), data_dir=data.path), data, time.time)
    full = True

    def tell() -> None:
        if full:
            raise DataDirError("the disk is full")

    async with shown_by(certificate, tell) as shake:
        before = await shake()
        write_pair(tmp_path)
        await shake.until_logged("the disk is full", caplog, mock_clock)
        assert await shake() == before
        full = False
        await shake.until_another(before, mock_clock)


def test_the_development_certificate_names_the_hosts_of_the_clusters(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path / "data")
    Certificate.open(HubConfig(), data, time.time)
    config = HubConfig(cluster_hosts="*.k8s.hub.example")
    # One that was made before the setting is made anew.
    shown = Certificate.open(config, data, time.time)
    assert "*.k8s.hub.example" in names_of(shown.chain.read_bytes())


def test_an_operators_certificate_without_the_hosts_of_the_clusters_is_refused_and_never_takes_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = DataDir.open(tmp_path / "data")
    config = HubConfig(tls=write_pair(tmp_path), cluster_hosts="*.k8s.hub.example")
    with pytest.raises(FileError, match=r"tls\.certificate: .* does not name \*\.k8s\.hub\.example"):
        Certificate.open(config, data, time.time)
    write_pair(tmp_path, "localhost", "*.K8s.hub.example")
    certificate = Certificate.open(config, data, time.time)
    shown = certificate.context
    write_pair(tmp_path)
    assert certificate._follow(lambda: None, renew=False) is shown
    assert "its last good content stays in use" in caplog.text
    write_pair(tmp_path, "localhost", "*.k8s.hub.example", "more.example")
    assert certificate._follow(lambda: None, renew=False) is not shown


def test_a_certificate_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path / "hub")
    tls = write_pair(tmp_path)
    assert tls.certificate is not None
    tls.certificate.write_text("nothing")
    with pytest.raises(FileError, match=r"^tls\.certificate: .*hub\.pem: it holds no cert"):
        Certificate.open(HubConfig(tls=tls, data_dir=data.path), data, time.time)
