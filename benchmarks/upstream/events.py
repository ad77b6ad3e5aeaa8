"""The events of a watch: made with the time they were sent at, and taken apart again. Pure."""

from __future__ import annotations

import re
from typing import Final

import attrs

EVENT_BYTES: Final = 1024
_SENT_AT: Final = re.compile(rb'"sentAt":"(\d+)"')
_EVENT: Final = (
    b'{"type":"MODIFIED","object":{"kind":"Pod","apiVersion":"v1","metadata":{"name":"workbench",'
    b'"namespace":"work","annotations":{"sentAt":"%020d","filler":"%b"}}}}\n'
)
_FILLER: Final = b"x" * (EVENT_BYTES - len(_EVENT % (0, b"")))


def event(sent_at_ns: int) -> bytes:
    """An event of EVENT_BYTES, as it stands in the body of a watch."""
    return _EVENT % (sent_at_ns, _FILLER)


def chunk(body: bytes) -> bytes:
    """A chunk of an HTTP/1.1 body: the API server sends each event as one."""
    return b"%x\r\n%b\r\n" % (len(body), body)


def take_times(received: bytes) -> tuple[list[int], bytes]:
    """When the whole events in `received` were sent, and what is left of it: where the next one begins."""
    # Nothing but an event's end, and a chunk's frame between two events, holds a line feed.
    end = received.rfind(b"\n")
    return [int(found) for found in _SENT_AT.findall(received, 0, end)], received[end + 1 :]


@attrs.define
class Pace:
    """So many events a second, as evenly as the caller asks for them."""

    per_s: float
    began_s: float
    sent: int = 0

    def due(self, now_s: float) -> int:
        """How many are to be sent now."""
        due = int((now_s - self.began_s) * self.per_s) - self.sent
        self.sent += due
        return due

    def next_s(self) -> float:
        """When the next one is due."""
        return self.began_s + (self.sent + 1) / self.per_s
