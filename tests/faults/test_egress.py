"""Relays that reach their hub through a proxy alone, with a password, and by one that looks into TLS."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme
from cryptography import x509

from tests.faults.clients import Attach, ExecEcho, LogsFollow, Verdict, Watch, report
from tests.faults.egress import Egress, Interceptor, open_egress
from tests.faults.figures import note
from tests.faults.world import FaultWorld, running_faults
from tests.system.world import POD

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]

# A name that only the proxy can resolve.
HOST = "hub.hawse.test"
PASSWORD = "s3cret-of-the-way-out"
WRONG = "s3cret-of-last-year"
# The first wait after a dial that failed is 10 s at most.
NEXT_DIAL_S = 15.0


@pytest.fixture(scope="module")
def egress() -> Iterator[Egress]:
    with open_egress({HOST: "127.0.0.1"}, password=PASSWORD) as running:
        yield running


@pytest.fixture(scope="module")
def walled(egress: Egress, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultWorld]:
    """A world whose relays know the hub by a name that leads nowhere but at the proxy."""
    folder = tmp_path_factory.mktemp("walled")
    environment = {"HTTPS_PROXY": egress.url()}
    with running_faults(folder, public_host=HOST, relay_environment=environment) as running:
        yield running
        assert PASSWORD not in logs(running)
        assert WRONG not in logs(running)


def logs(world: FaultWorld) -> str:
    return "".join(path.read_text() for path in world.folder.glob("*.log"))


def warnings(world: FaultWorld, instance: str) -> list[str]:
    return world.relay_says("WARNING", instance)


def leave(world: FaultWorld, instance: str) -> None:
    """End a relay and make room for the next one."""
    relay = world.relays.pop(instance)
    relay.process.terminate()
    relay.process.wait(20)
    world.until(lambda: instance not in world.connected(), "the hub has seen it go")


def test_what_kubectl_streams_goes_on_when_the_proxied_connection_is_cut(
    walled: FaultWorld, egress: Egress
) -> None:
    """At the proxy itself, and between it and the hub; each new dial proves itself to the proxy again."""
    world, asked = walled, len(egress.asked)
    works = [
        ExecEcho(world, 1),
        ExecEcho(world, 2, spdy=True),
        LogsFollow(world, 1, pause_s=0.05),
        Attach(world, 1, pause_s=0.05),
        Watch(world, 1, pause_s=0.05),
    ]
    with ExitStack() as stack:
        for work in works:
            stack.enter_context(work)
        for cut in (egress.cut, world.tunnel.cut, egress.cut):
            before = len(egress.asked)
            assert cut()
            began = time.monotonic()
            world.until(lambda before=before: len(egress.asked) > before, "the relay has dialled")  # type: ignore[misc]
            note("cut of a proxied tunnel", cut.__qualname__, away_s=round(time.monotonic() - began, 2))
            assert POD.encode() in world.run("get", "pods")
    judgements = [work.judgement for work in works]
    assert {judgement.verdict for judgement in judgements} == {Verdict.WHOLE}, report(judgements)
    assert set(egress.asked) == {f"{HOST}:{world.tunnel.port}"}
    assert len(egress.asked) == asked + 3
    assert len(world.relay_says("is up, session")) == 1


@pytest.mark.parametrize(
    ("password", "said"),
    [
        (WRONG, "does not accept the user and password of HTTPS_PROXY (407)"),
        ("", "demands a user and a password (407); put them into HTTPS_PROXY"),
    ],
    ids=["wrong", "none"],
)
def test_a_password_that_the_proxy_refuses_is_one_line_and_one_that_it_takes_is_enough(
    walled: FaultWorld, egress: Egress, password: str, said: str
) -> None:
    world, refused = walled, egress.refused
    instance = f"refused-{len(password)}"
    world.start_relay(instance=instance, environment={"HTTPS_PROXY": egress.url(password)})
    world.until(lambda: warnings(world, instance), "the relay says why")
    [line] = warnings(world, instance)
    assert f"the proxy 127.0.0.1:{egress.port} {said}; the next attempt is in " in line
    assert 5 <= int(line.rpartition(" is in ")[2].removesuffix(" s")) <= 10
    assert egress.refused == refused + 1
    assert instance not in world.connected()
    leave(world, instance)


def test_a_password_that_is_right_again_brings_the_relay_back_by_itself(
    walled: FaultWorld, egress: Egress
) -> None:
    """The proxy's password is changed under a live tunnel, and then put right."""
    world = walled
    with ExecEcho(world, 1) as work:
        egress.password = "another"
        try:
            assert egress.cut()
            world.until(lambda: world.relay_says("(407)"), "the relay says why")
        finally:
            egress.password = PASSWORD
        world.until(lambda: len(world.connected()) == 1, "the relay is back", NEXT_DIAL_S)
        assert POD.encode() in world.run("get", "pods")
    assert work.judgement.verdict is Verdict.WHOLE, report([work.judgement])


def test_a_host_that_the_proxy_does_not_allow_is_named(walled: FaultWorld, egress: Egress) -> None:
    world = walled
    elsewhere = f"elsewhere.hawse.test:{world.tunnel.port}"
    environment = {"HTTPS_PROXY": egress.url(), "HAWSE_RELAY_HUB_URL": f"https://{elsewhere}"}
    world.start_relay(instance="astray", environment=environment)
    world.until(lambda: warnings(world, "astray"), "the relay says why")
    [line] = warnings(world, "astray")
    assert f"does not allow connections to {elsewhere} (403)" in line
    leave(world, "astray")


@pytest.mark.parametrize(
    ("no_proxy", "direct"),
    [(".hawse.test", True), ("example.com,hawse.test", True), (".test.hawse,awse.test", False)],
)
def test_a_suffix_of_no_proxy_takes_the_direct_way(
    walled: FaultWorld, egress: Egress, no_proxy: str, direct: bool
) -> None:
    """It leads nowhere in this network, and the relay says so; what it does not cover gets through."""
    world, asked = walled, len(egress.asked)
    world.start_relay(instance="excepted", environment={"HTTPS_PROXY": egress.url(), "NO_PROXY": no_proxy})
    if direct:
        world.until(lambda: warnings(world, "excepted"), "the relay says why")
        assert f"the name {HOST} cannot be resolved" in warnings(world, "excepted")[0]
    else:
        world.until(lambda: "excepted" in world.connected(), "the relay is there")
    assert len(egress.asked) == asked + (not direct)
    leave(world, "excepted")


@pytest.fixture(scope="module")
def looking_into(walled: FaultWorld) -> Iterator[Egress]:
    """A proxy that shows a certificate of its own for every host."""
    interceptor = Interceptor(
        trustme.CA(organization_name="Way Out Inspection"), walled.folder / "hub" / "tls" / "ca.pem"
    )
    with open_egress({HOST: "127.0.0.1"}, password=PASSWORD, interceptor=interceptor) as running:
        yield running


def authority(egress: Egress) -> bytes:
    assert egress.interceptor is not None
    return egress.interceptor.authority.cert_pem.bytes()


def test_a_proxy_that_looks_into_tls_is_named_with_the_setting_that_trusts_it(
    walled: FaultWorld, looking_into: Egress
) -> None:
    world = walled
    world.start_relay(instance="distrusting", environment={"HTTPS_PROXY": looking_into.url()})
    world.until(lambda: warnings(world, "distrusting"), "the relay says why")
    [line] = warnings(world, "distrusting")
    issuer = x509.load_pem_x509_certificate(authority(looking_into)).subject.rfc4514_string()
    assert "Way Out Inspection" in issuer
    assert (
        "the peer's certificate is not accepted: unable to get local issuer certificate; "
        f"it is signed by {issuer}, and hub.ca does not hold that CA; the next attempt is in "
    ) in line
    assert "distrusting" not in world.connected()
    leave(world, "distrusting")


def test_an_exec_goes_on_through_a_proxy_that_looks_into_tls_and_is_trusted(
    walled: FaultWorld, looking_into: Egress, tmp_path: Path
) -> None:
    world = walled
    both = tmp_path / "both.pem"
    both.write_bytes((world.folder / "hub" / "tls" / "ca.pem").read_bytes() + authority(looking_into))
    leave(world, "relay-0")
    environment = {"HTTPS_PROXY": looking_into.url(), "HAWSE_RELAY_HUB_CA": str(both)}
    world.connect_relay("trusting", environment=environment)
    try:
        with ExecEcho(world, 1) as work:
            before = len(looking_into.asked)
            assert looking_into.cut()
            world.until(lambda: len(looking_into.asked) > before, "the relay has dialled")
            assert POD.encode() in world.run("get", "pods")
        assert work.judgement.verdict is Verdict.WHOLE, report([work.judgement])
    finally:
        leave(world, "trusting")
        world.connect_relay()
