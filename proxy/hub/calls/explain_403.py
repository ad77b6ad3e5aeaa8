"""Explains a 403 for a missing impersonation right: the relay's ClusterRole lacks the agent or the verb.

The API server's message, "the relay cannot impersonate", does not show that one command at the hub fixes it.
So the answer is forwarded unchanged, with an added Warning, which kubectl prints even where it drops the
message. An API server of 1.36 uses the same words for a missing agent and a missing verb of the constrained
form, and an answer must not reveal the role's namespace and form. So the suggested command is the one that
checks.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.message.head import ResponseHead
from proxy.message.status import warning

# The API server's own words, in every version (staging/src/k8s.io/apiserver, impersonation filter).
_CANNOT_IMPERSONATE = b"cannot impersonate"
_MAY_NOT = "the relay of this cluster may not impersonate this agent yet"
# A Status has a few hundred bytes; a longer 403 has another origin and is forwarded unread.
STATUS_BYTES_MAX = 8 * 1024


def may_be_explained(head: ResponseHead) -> bool:
    """Whether the body must be read before the answer is forwarded."""
    return head.status == 403 and 0 < (head.body_length or 0) <= STATUS_BYTES_MAX


def explained(head: ResponseHead, body: bytes, cluster: str) -> ResponseHead:
    """Return the head of a 403 with a Warning, if its body says that the relay cannot impersonate."""
    if _CANNOT_IMPERSONATE not in body:
        return head
    text = (
        f"{_MAY_NOT}, or not for this; "
        f"its operator sees what to apply by: hawse admin cluster check {cluster} --kubeconfig FILE"
    )
    return ResponseHead.of(head.status, head.reason, (*head.headers, (b"warning", warning(text))))


class LackedRights:
    """The clusters whose API server has refused an impersonation to their relay, for operators."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.clusters: dict[str, float] = {}
        """By name: when that was last, in epoch seconds. Bounded by the enrolled clusters."""

    def note(self, head: ResponseHead, cluster: str) -> None:
        """Note the head of a 403 that is passed on, if `explained` has added the Warning."""
        if any(name == b"warning" and _MAY_NOT.encode() in value for name, value in head.headers):
            self.clusters[cluster] = self._clock()


class Held403:
    """A short 403 of a relay, held until its body has arrived.

    `rewrite` returns the client's head of the relay's. The bounds of its body are the caller's to check.
    """

    __slots__ = ("_body", "_cluster", "_head", "_rewrite")

    def __init__(
        self, head: ResponseHead, cluster: str, rewrite: Callable[[ResponseHead], ResponseHead]
    ) -> None:
        self._head = head
        self._cluster = cluster
        self._rewrite = rewrite
        self._body = b""

    @property
    def held_bytes(self) -> int:
        """The memory of the held body."""
        return len(self._body)

    def add(self, data: bytes) -> None:
        """Hold more of the body: STATUS_BYTES_MAX at most in all."""
        self._body += data

    def answer(self) -> tuple[ResponseHead, bytes]:
        """Return the client's head and the whole body."""
        head = explained(self._head, self._body, self._cluster)
        return self._rewrite(head), self._body
