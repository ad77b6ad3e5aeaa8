"""The two requests that the relay sends as itself, and the only ones without impersonation.

`proxy.message.rewrite` writes all other heads, and sends none without impersonation. These two do not pass
through it, and contain no client data: each is constant except for the API server's address and the service
account's token. Each uses a separate connection, which is closed afterwards, so no agent's request can share
it.

- `GET /readyz`, which Kubernetes allows everyone. It shows whether the API server answers.
- `GET` of the namespace `kube-system`, whose UID identifies the cluster.
"""

from __future__ import annotations

from typing import Final

import trio

from proxy.exchange.client import ClientConnection
from proxy.kubernetes.statement import is_uid
from proxy.message.failure import OutboundBroken
from proxy.message.head import RequestHead, line
from proxy.process.untrusted_json import read_json
from proxy.relay.pool import Dial, dial_tls
from proxy.relay.service_account import ClusterAccess

READYZ: Final = b"/readyz"
NAMESPACE: Final = b"/api/v1/namespaces/kube-system"

# From the dial to the answer's end. kube-apiserver answers both from memory, or from etcd within this.
DEADLINE_S = 10.0
# The namespace has about 1 KiB. With annotations of up to 256 KiB it is not read, and the UID stays unknown.
ANSWER_BYTES_MAX = 64 * 1024


class NoAnswerError(Exception):
    """The API server has not answered; the text is one line with the reason."""


def own_request(target: bytes, access: ClusterAccess) -> RequestHead:
    """The head of one of the two requests."""
    assert target in (READYZ, NAMESPACE), "the relay asks for nothing else as itself"
    lines = (
        line(b"host", access.authority.decode("ascii")),
        line(b"authorization", "Bearer " + access.token()),
        line(b"accept", "application/json"),
        line(b"user-agent", "hawse-relay"),
    )
    return RequestHead.of(b"GET", target, (), (b"".join(lines),))


async def ask_readyz(access: ClusterAccess, dial: Dial = dial_tls) -> int:
    """Return the status of `/readyz`; raises NoAnswerError."""
    status, _ = await _ask(READYZ, access, dial)
    return status


async def ask_cluster_uid(access: ClusterAccess, dial: Dial = dial_tls) -> tuple[int, str]:
    """Return the status of the namespace's answer, and its UID, "" if it has none."""
    status, body = await _ask(NAMESPACE, access, dial)
    if status != 200:
        return status, ""
    try:
        document = read_json(body)
    except ValueError:
        return status, ""
    metadata = document.get("metadata") if isinstance(document, dict) else None
    uid = metadata.get("uid") if isinstance(metadata, dict) else None
    return status, uid if is_uid(uid) else ""


async def _ask(target: bytes, access: ClusterAccess, dial: Dial) -> tuple[int, bytes]:
    """Return the status and body of an answer; redirects are not followed."""
    try:
        with trio.fail_after(DEADLINE_S):
            connection = ClientConnection(await dial(access))
            try:
                await connection.send_request(own_request(target, access))
                head = await connection.receive_head()
                body = bytearray()
                # The body of /readyz is not needed.
                while target != READYZ and (data := await connection.receive_body()):
                    body += data
                    if len(body) > ANSWER_BYTES_MAX:
                        raise NoAnswerError(f"an answer of more than {ANSWER_BYTES_MAX} bytes")
                return head.status, bytes(body)
            finally:
                # This close never waits for the peer, even when cancelled.
                await connection.aclose()  # noqa: ASYNC102
    except trio.TooSlowError as error:
        raise NoAnswerError(f"no answer within {DEADLINE_S:.0f} s") from error
    except OutboundBroken as broken:
        raise NoAnswerError(broken.failure.reason) from broken
    except (OSError, trio.BrokenResourceError) as error:
        raise NoAnswerError(str(error) or type(error).__name__) from error
