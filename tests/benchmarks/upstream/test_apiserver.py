"""What nginx answers in the API server's place."""

from __future__ import annotations

import http.client
import json
import ssl
import time

from benchmarks.upstream.apiserver import POD_PATH, WRITE_PATH, ApiServer, pod_json
from benchmarks.upstream.paced import PIECE_BYTES, paced_path


def ask(
    server: ApiServer, method: str, path: str, body: bytes | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    context = ssl.create_default_context(cafile=str(server.endpoint.ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    connection = http.client.HTTPSConnection("127.0.0.1", server.endpoint.port, timeout=10, context=context)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def test_a_pod_is_2_kib_of_json(apiserver: ApiServer) -> None:
    answer, body = ask(apiserver, "GET", POD_PATH)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert body.decode() == pod_json()
    assert 2000 <= len(body) <= 2100
    assert json.loads(body)["kind"] == "Pod"


def test_a_body_has_its_size_and_is_not_all_zeros(apiserver: ApiServer) -> None:
    path = apiserver.body((1 << 20) + 17)
    assert path == apiserver.body((1 << 20) + 17)
    answer, body = ask(apiserver, "GET", path)
    assert answer.status == 200
    assert len(body) == (1 << 20) + 17
    assert body.count(0) < len(body) // 100


def test_a_body_comes_as_fast_as_it_is_asked_to(apiserver: ApiServer) -> None:
    began_s = time.monotonic()
    answer, body = ask(apiserver, "GET", paced_path(bytes_per_s=10_000_000, size=5_000_000))
    took_s = time.monotonic() - began_s
    assert (answer.status, len(body)) == (200, 5_000_000)
    # Its last piece is not waited for.
    assert (5_000_000 - PIECE_BYTES) / 10_000_000 < took_s < 5


def test_an_upload_is_taken_whole_before_it_is_answered(apiserver: ApiServer) -> None:
    body = bytes(3_000_000)
    assert ask(apiserver, "PUT", "/sink/one", body)[0].status == 201
    assert (apiserver.memory / "sink" / "one").stat().st_size == len(body)
    assert ask(apiserver, "PUT", "/sink/one", b"again")[0].status == 204
    assert (apiserver.memory / "sink" / "one").read_bytes() == b"again"


def test_a_small_write_replaces_an_object(apiserver: ApiServer) -> None:
    for body in (b"first", b"second"):
        assert ask(apiserver, "PUT", f"{WRITE_PATH}settings", body)[0].status in (201, 204)
        assert (apiserver.memory / "sink" / "settings").read_bytes() == body
