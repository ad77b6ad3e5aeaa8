"""What `tunnel` gives to whoever builds on it: these names and no others, so that a change is a decision."""

from __future__ import annotations

import tunnel

PUBLIC = {
    # A session over a transport: how it is opened, what it says of itself, why it ends.
    *("open_session", "Session", "Settings", "Role", "Hello", "Welcome", "Resume", "Memory", "NONCE_BYTES"),
    *("Rejected", "Draining", "TooManyStreams", "SessionClosed", "CloseCode"),
    # Over another transport.
    *("RESUME", "RESUME_TTL_S", "Detached", "Interruptions", "hear_hello", "read_hello"),
    # A stream in it.
    *("Stream", "StreamReset", "StreamCode", "Processed", "Context", "HEAD_BYTES_MAX", "MODEST_USERS_MAX"),
    # What carries it.
    *("Transport", "TransportClosed", "memory_transport_pair"),
    # Faults of the protocol: ours, and the peer's.
    *("ProtocolError", "LocalProtocolError", "RemoteProtocolError"),
}


def test_the_public_names_are_these() -> None:
    assert set(tunnel.__all__) == PUBLIC


def test_each_is_there_once_and_in_order() -> None:
    # Constants, then classes, then functions: the order that ruff keeps.
    constants = [name for name in tunnel.__all__ if name.isupper()]
    classes = [name for name in tunnel.__all__ if name[0].isupper() and not name.isupper()]
    functions = [name for name in tunnel.__all__ if name.islower()]
    assert tunnel.__all__ == sorted(constants) + sorted(classes) + sorted(functions)
    assert len(set(tunnel.__all__)) == len(tunnel.__all__)


def test_each_can_be_imported_by_a_star() -> None:
    names: dict[str, object] = {}
    exec("from tunnel import *", names)
    assert names.keys() >= PUBLIC
    assert not [name for name in PUBLIC if getattr(tunnel, name) is not names[name]]
