"""Answers of an API server, and what a client gets of them."""

from __future__ import annotations

from proxy.message.head import ResponseHead
from proxy.message.rewrite import hub_response_head


def answer(*headers: tuple[bytes, bytes], status: int = 200) -> ResponseHead:
    return ResponseHead.of(status, b"OK", headers)


def client_answer(head: ResponseHead) -> ResponseHead:
    return hub_response_head(head, b"/clusters/prod", b"/api/v1/pods?limit=1", b"hub.example:443")
