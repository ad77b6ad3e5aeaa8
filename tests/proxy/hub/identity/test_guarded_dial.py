"""Which addresses the hub dials where others say where a name leads."""

from __future__ import annotations

import ssl

import pytest
import trio

from proxy.hub.identity.guarded_dial import AddressRefusedError, dial_checked
from tests.fakes.addresses import one_that_swallows_and_one_that_answers
from tunnel.net.connect import HandshakeFailed, peer_address


class Resolver(trio.abc.HostnameResolver):
    """Every name leads where an attacker's name server would have it, each time somewhere else."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def getaddrinfo(
        self, host: object, port: object, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[tuple[object, ...]]:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return [
            (trio.socket.AF_INET6, trio.socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (trio.socket.AF_INET, trio.socket.SOCK_STREAM, 6, "", (address, port))
            for address in answer
        ]

    async def getnameinfo(self, sockaddr: object, flags: int) -> tuple[str, str]:
        raise NotImplementedError


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1"),
        *("::1", "fd00::1", "fec0::1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1"),
    ],
)
async def test_a_name_that_leads_into_a_private_network_is_not_dialled(address: str) -> None:
    # For this run of trio alone.
    trio.socket.set_custom_hostname_resolver(Resolver([address]))
    with pytest.raises(AddressRefusedError, match=r"not a public address .*--allow-private-address"):
        await dial_checked("other.example", 443, ssl.create_default_context(), private=False)


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "168.63.129.16",
        "192.0.0.192",
        "fe80::1",
        "::",
        "0.0.0.0",
        "224.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
    ],
)
@pytest.mark.parametrize("private", [False, True])
async def test_a_name_with_a_forbidden_address_is_never_dialled(address: str, private: bool) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver([address]))
    with pytest.raises(AddressRefusedError, match="an address that the hub never connects to"):
        await dial_checked("other.example", 443, ssl.create_default_context(), private=private)


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001", "localhost"])
async def test_an_address_in_disguise_is_resolved_and_then_judged(host: str) -> None:
    # The system's own resolver takes each of these for 127.0.0.1.
    with pytest.raises(OSError, match=r"not a public address|not known|No address"):
        await dial_checked(host, 443, ssl.create_default_context(), private=False)


@pytest.mark.parametrize("host", ["relay..example", f"{'x' * 64}.example"])
async def test_a_name_that_no_host_can_have_is_a_failed_dial(host: str) -> None:
    with pytest.raises(OSError, match="no host can have that name"):
        await dial_checked(host, 443, ssl.create_default_context(), private=False)


async def test_what_is_connected_to_is_what_was_judged() -> None:
    # A name server that returns a good address to the check, and a bad one to the dial.
    async with trio.open_nursery() as nursery:
        accepted = 0

        async def accept(stream: trio.SocketStream) -> None:
            nonlocal accepted
            accepted += 1
            await trio.aclose_forcefully(stream)

        listeners = await nursery.start(trio.serve_tcp, accept, 0)
        port = listeners[0].socket.getsockname()[1]
        resolver = Resolver(["169.254.169.254", "127.0.0.1"], ["10.255.255.1"])
        trio.socket.set_custom_hostname_resolver(resolver)
        with trio.fail_after(5), pytest.raises((OSError, HandshakeFailed)):
            await dial_checked("other.example", port, ssl.create_default_context(), private=True)
        assert (accepted, resolver.asked) == (1, 1)
        nursery.cancel_scope.cancel()


async def test_a_dead_address_does_not_keep_the_hub_from_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def without_tls(stream: trio.abc.Stream, *_: object, **__: object) -> trio.abc.Stream:
        return stream

    monkeypatch.setattr("proxy.hub.identity.guarded_dial.wrap_client", without_tls)
    with one_that_swallows_and_one_that_answers() as (addresses, port), trio.fail_after(5):
        trio.socket.set_custom_hostname_resolver(Resolver(addresses))
        context = ssl.create_default_context()
        async with await dial_checked("other.example", port, context, private=True) as stream:
            assert peer_address(stream) == f"{addresses[1]}:{port}"
