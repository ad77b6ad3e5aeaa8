"""The findings about one call, with a salt that stays the same."""

from __future__ import annotations

from auth.policy.ask import Ask
from auth.requestinfo import parse
from proxy.hub.approvals.preview.bodies import Body
from proxy.hub.approvals.preview.findings import Findings

ASK = Ask(("any",))
SALT = bytes(range(16))
WEB = "/apis/apps/v1/namespaces/shop/deployments/web"


def findings(target: str = WEB, body: bytes = b"", method: str = "PATCH", salt: bytes = SALT) -> Findings:
    return Findings(parse(method.encode(), target.encode()), ASK, Body.of(body), salt)
