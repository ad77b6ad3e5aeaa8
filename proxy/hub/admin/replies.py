"""The HTTP answers of the admin API in JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256

import msgspec
from starlette.responses import Response

from proxy.hub.admin.verbs.answers import Done
from proxy.hub.admin.verbs.callers import RefusedError

SECURITY_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


def json_reply(status: int, body: Mapping[str, object]) -> Response:
    """Answer with a body."""
    return encoded_reply(status, msgspec.json.encode(body) + b"\n")


def encoded_reply(status: int, body: bytes) -> Response:
    """Answer with a body that is JSON already."""
    return Response(body, status_code=status, media_type="application/json", headers=SECURITY_HEADERS)


def tagged_reply(done: Done, known: Sequence[str]) -> Response:
    """Answer with a body and its ETag, or with a 304 if that is among those in `known`.

    `known` has the values of If-None-Match. The tag is weak (RFC 9110, section 8.8.1): a tag of the action's
    own leaves out what changes all the time.
    """
    body = msgspec.json.encode(done.body) + b"\n"
    tag = f'W/"{sha256(done.tag.encode() or body).hexdigest()[:32]}"'
    # A tag of ours has no comma. `*` matches anything that exists.
    if {tag, "*"} & {each.strip() for value in known for each in value.split(",")}:
        answer = Response(status_code=304, headers=SECURITY_HEADERS)
    else:
        answer = encoded_reply(done.status, body)
    answer.headers["etag"] = tag
    return answer


def error_reply(status: int, code: str, message: str) -> Response:
    """Answer with an error."""
    return json_reply(status, {"error": {"code": code, "message": message}})


def refusal(refused: RefusedError) -> Response:
    """Answer a request that is not admitted."""
    answer = error_reply(refused.status, refused.code, str(refused))
    if refused.status == 401:
        answer.headers["www-authenticate"] = 'Bearer realm="hawse admin"'
    return answer
