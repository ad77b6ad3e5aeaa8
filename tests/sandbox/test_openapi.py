from __future__ import annotations

import json
import re

from sandbox import kinds, openapi
from sandbox.server import Request, Response


def get(target: str, **headers: str) -> Response | None:
    path, _, query = target.partition("?")
    pairs = [part.partition("=") for part in query.split("&") if part]
    lines = tuple((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items())
    return openapi.answer(Request("GET", target, path, {key: [value] for key, _, value in pairs}, lines))


def body(target: str) -> bytes:
    answer = get(target)
    assert answer is not None
    assert answer.status == 200
    return answer.body


def test_the_index_leads_to_every_group() -> None:
    paths = json.loads(body("/openapi/v3"))["paths"]
    assert set(paths) == {kind.prefix[1:] for kind in kinds.KINDS}
    for path, entry in paths.items():
        assert re.fullmatch(rf"/openapi/v3/{path}\?hash=[0-9A-F]+", entry["serverRelativeURL"])
        assert json.loads(body(entry["serverRelativeURL"]))["openapi"] == "3.0.0"


def test_a_stale_hash_is_redirected_to_the_present_one() -> None:
    answer = get("/openapi/v3/api/v1?hash=OLD")
    assert answer is not None
    location = dict(answer.headers)["Location"]
    assert answer.status == 301
    assert location == json.loads(body("/openapi/v3"))["paths"]["api/v1"]["serverRelativeURL"]
    present = get(location)
    assert present is not None
    assert dict(present.headers)["Cache-Control"] == "public, immutable"
    etag = dict(present.headers)["ETag"]
    known = get("/openapi/v3/api/v1", if_none_match=etag)
    assert known is not None
    assert (known.status, known.body) == (304, b"")


def test_every_reference_leads_somewhere() -> None:
    for group in kinds.GROUPS:
        text, _ = openapi.document(group)
        schemas = json.loads(text)["components"]["schemas"]
        references = set(re.findall(r'"#/components/schemas/([^"]+)"', text.decode()))
        assert references <= set(schemas)


def test_clients_find_that_fields_are_validated_and_lists_merged() -> None:
    document = json.loads(openapi.document("apps")[0])
    patch = document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"]
    assert patch["x-kubernetes-group-version-kind"] == {
        "group": "apps",
        "version": "v1",
        "kind": "Deployment",
    }
    assert "fieldValidation" in [parameter["name"] for parameter in patch["parameters"]]
    assert "application/strategic-merge-patch+json" in patch["requestBody"]["content"]
    containers = document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"]
    assert containers["x-kubernetes-patch-merge-key"] == "name"


def test_what_is_not_there() -> None:
    assert get("/openapi/v3/apis/nothing/v1") is None


def test_the_second_version_is_empty_in_both_encodings() -> None:
    def second(accept: str) -> Response:
        return openapi.answer_v2(Request("GET", "/", "/", {}, ((b"accept", accept.encode()),)))

    assert json.loads(second("application/json").body)["definitions"] == {}
    encoded = second("application/com.github.proto-openapi.spec.v2@v1.0+protobuf")
    assert encoded.body.startswith(b"\n\x032.0\x12")
    assert encoded.body[6] == len(encoded.body) - 7
