from __future__ import annotations

from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from auth.requestinfo import parse
from proxy.message.head import HeadError, RequestHead, ResponseHead
from proxy.message.rewrite import (
    BEARER_SUBPROTOCOL,
    IdentityLines,
    RewriteError,
    direct_request_head,
    has_access_token,
    hub_request_bytes,
    hub_request_head,
    hub_response_head,
    identity_headers,
    identity_lines,
    is_tail,
    loopback_request_head,
    relay_request_head,
    relay_response_head,
    sandboxed,
)
from proxy.message.strict import BadRequest, BadResponse, read_request_head, read_response_head
from tests.auth.queries import read_as_go_does
from tests.proxy.message.answers import answer, client_answer

IDENTITY = (
    (b"impersonate-user", b"agent:probe"),
    (b"impersonate-group", b"acme/platform"),
    (b"impersonate-group", b"acme/sre, nights"),
    (b"impersonate-extra-hawse.dev%2fagent-id", b"1"),
)
LINES = identity_lines(IDENTITY)


def hub(*headers: tuple[bytes, bytes], method: bytes = b"GET", tail: bool = False) -> RequestHead:
    head = RequestHead.of(method, b"/clusters/prod/api/v1/pods", ((b"host", b"hub"), *headers))
    return hub_request_head(head, b"/api/v1/pods", audit_id="e-1", client_ip="192.0.2.7", tail=tail)


def relay(inner: RequestHead, *, tail: bool = False) -> RequestHead:
    return relay_request_head(inner, b"10.0.0.1:443", "sa", LINES, tail)


def names(head: RequestHead | ResponseHead) -> list[bytes]:
    return [name for name, _ in head.headers]


@pytest.mark.parametrize(
    "name",
    [
        b"impersonate-user",
        b"impersonate-group",
        b"impersonate-uid",
        b"impersonate-extra-scopes",
        b"impersonate_user",
        b"impersonate-foo",
        b"impersonate_extra_scopes",
    ],
)
def test_a_client_that_says_who_it_is_is_found_out_and_never_believed(name):
    head = RequestHead.of(b"GET", b"/", ((name, b"system:masters"), (b"accept", b"*/*")))
    assert identity_headers(head) == [name]
    for tail in (False, True):
        assert name not in names(hub((name, b"system:masters"), tail=tail))
        crossed = relay(RequestHead.of(b"GET", b"/api", ((name, b"system:masters"),)), tail=tail)
        assert b"system:masters" not in [value for _, value in crossed.headers]


def test_other_headers_say_nothing_of_identity():
    assert (
        identity_headers(RequestHead.of(b"GET", b"/", ((b"x-impersonate-user", b"a"), (b"accept", b"b"))))
        == []
    )


@pytest.mark.parametrize("tail", [False, True])
def test_connection_tokens_never_touch_our_own_headers(tail):
    listed = (
        b"connection",
        b"close, Impersonate-User, Impersonate-Group, Authorization, Audit-ID, Host, Accept",
    )
    crossed = relay(hub(listed, (b"accept", b"*/*"), tail=tail), tail=tail)
    assert [pair for pair in crossed.headers if pair[0].startswith(b"impersonate-")] == list(IDENTITY)
    assert crossed.header_values(b"authorization") == [b"Bearer sa"]
    assert crossed.header_values(b"audit-id") == [b"e-1"]
    assert crossed.header_values(b"host") == [b"10.0.0.1:443"]
    assert b"connection" not in names(crossed)


@pytest.mark.parametrize("tail", [False, True])
def test_hop_by_hop_headers_and_those_that_connection_names_are_removed(tail):
    crossed = hub(
        (b"connection", b"close, X-A"),
        (b"x-a", b"1"),
        (b"keep-alive", b"timeout=5"),
        (b"proxy-authorization", b"Basic x"),
        (b"proxy-connection", b"keep-alive"),
        (b"te", b"trailers"),
        (b"trailer", b"Impersonate-User"),
        (b"expect", b"100-continue"),
        (b"http2-settings", b"AAAA"),
        (b"proxy-authenticate", b"Basic"),
        (b"proxy-authentication-info", b"x"),
        tail=tail,
    )
    assert names(crossed) == [b"audit-id", b"x-forwarded-for"]


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        b"authorization",
        b"cookie",
        b"cookie2",
        b"set-cookie",
        b"x-access-token",
        b"x-auth-request-access-token",
        b"x-remote-user",
        b"x-remote-group",
        b"x-remote-extra-a",
        b"x_remote_user",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-access-token",
        b"forwarded",
        b"x-real-ip",
        b"audit-id",
        b"audit_id",
        b"hawse-relay-failure",
        b"content_length",
    ],
)
def test_what_must_never_reach_the_api_server_does_not(name, tail):
    crossed = relay(hub((name, b"spoofed"), tail=tail), tail=tail)
    assert b"spoofed" not in [value for _, value in crossed.headers]
    assert crossed.header_values(b"audit-id") == [b"e-1"]
    assert crossed.header_values(b"x-forwarded-for") == [b"192.0.2.7"]


def test_what_kubernetes_clients_need_crosses_unchanged_and_in_order():
    sent = (
        (b"accept", b"application/json;as=Table;v=v1;g=meta.k8s.io,application/json"),
        (b"accept-encoding", b"gzip"),
        (b"content-type", b"application/apply-patch+yaml"),
        (b"if-none-match", b'"abc"'),
        (b"range", b"bytes=0-1"),
        (b"user-agent", b"kubectl/v1.37"),
        (b"kubectl-command", b"kubectl get"),
        (b"kubectl-session", b"1"),
        (b"x-stream-protocol-version", b"v5.channel.k8s.io"),
        (b"x-stream-protocol-version", b"v4.channel.k8s.io"),
        (b"sec-websocket-key", b"abc=="),
        (b"sec-websocket-version", b"13"),
        (b"sec-websocket-extensions", b"permessage-deflate"),
    )
    crossed = relay(hub(*sent))
    assert [pair for pair in crossed.headers if pair in sent] == list(sent)
    assert crossed.target == b"/api/v1/pods"
    assert b"origin" not in names(hub((b"origin", b"https://a"), (b"x-custom", b"1")))


def test_a_backend_behind_a_proxy_path_gets_its_own_headers():
    sent = ((b"origin", b"https://a"), (b"x-custom", b"1"), (b"x-csrf-token", b"2"), (b"referer", b"b"))
    crossed = relay(hub(*sent, tail=True), tail=True)
    assert [pair for pair in crossed.headers if pair in sent] == list(sent)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/api/v1/namespaces/a/services/http:s:80/proxy/path", True),
        (b"/api/v1/namespaces/a/pods/p/proxy/", True),
        (b"/api/v1/nodes/n/proxy/metrics", True),
        (b"/api/v1/proxy/namespaces/a/services/s/x", True),
        (b"/api/v1/namespaces/a/pods/p/log", False),
        (b"/api/v1/namespaces/a/pods/p/exec", False),
        (b"/api/v1/namespaces/a/configmaps/c/proxy", False),
        (b"/api/v1/proxy/namespaces/a/configmaps/c", False),
        (b"/api/v1/proxy/nodes", False),
        (b"/api/v1/namespaces/proxy/configmaps/proxy", False),
        (b"/apis/example.com/v1/namespaces/a/pods/p/proxy", False),
        (b"/healthz", False),
    ],
)
def test_where_a_backends_headers_cross(target, expected):
    assert is_tail(parse(b"GET", target)) is expected


def test_the_body_keeps_its_framing():
    assert hub((b"content-length", b"12"), method=b"POST").body_length == 12
    assert hub((b"content-length", b"0"), method=b"POST").header(b"content-length") == b"0"
    assert hub((b"transfer-encoding", b"chunked"), method=b"POST").body_length is None
    assert hub().header(b"content-length") is None


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize(("method", "length"), [(b"GET", None), (b"POST", b"0")])
def test_an_upgrade_is_built_from_scratch(method, length, tail):
    inner = hub(
        (b"connection", b"keep-alive, Upgrade, x-a"),
        (b"x-a", b"1"),
        (b"x-stream-protocol-version", b"v5.channel.k8s.io"),
        (b"upgrade", b"SPDY/3.1"),
        (b"x-stream-protocol-version", b"v4.channel.k8s.io"),
        method=method,
        tail=tail,
    )
    for head in (inner, relay(inner)):
        assert head.header_values(b"connection") == [b"Upgrade"]
        assert head.header_values(b"upgrade") == [b"SPDY/3.1"]
        assert head.header(b"content-length") == length
        assert head.header_values(b"x-stream-protocol-version") == [
            b"v5.channel.k8s.io",
            b"v4.channel.k8s.io",
        ]
        assert b"x-a" not in names(head)
    # Without Connection it is no upgrade, and the word goes no further.
    assert b"upgrade" not in names(hub((b"upgrade", b"SPDY/3.1"), tail=True))


def test_a_bearer_subprotocol_is_taken_out():
    bearer = BEARER_SUBPROTOCOL + b"c2VjcmV0"
    crossed = hub((b"sec-websocket-protocol", b"v5.channel.k8s.io, " + bearer + b",v4.channel.k8s.io"))
    assert crossed.header(b"sec-websocket-protocol") == b"v5.channel.k8s.io, v4.channel.k8s.io"
    assert b"sec-websocket-protocol" not in names(hub((b"sec-websocket-protocol", bearer)))
    # Go's TrimSpace takes no-break and wide spaces from around a name as well.
    for blank in ("\u00a0", "\u0085", "\u3000"):
        hidden = blank.encode() + bearer + b", v5.channel.k8s.io"
        crossed = hub((b"sec-websocket-protocol", hidden))
        assert crossed.header(b"sec-websocket-protocol") == b"v5.channel.k8s.io"
    exact = b"v5.channel.k8s.io,v4.channel.k8s.io"
    assert hub((b"sec-websocket-protocol", exact)).header(b"sec-websocket-protocol") == exact
    # Beyond the number that any client offers, the rest is kept or removed as one.
    for last, kept in ((b"a", 101), (bearer, 63), (b"a," + bearer + b",a", 63)):
        many = b",".join([bearer, *[b"v5.channel.k8s.io"] * 100, last])
        (crossed,) = hub((b"sec-websocket-protocol", many)).header_values(b"sec-websocket-protocol")
        assert BEARER_SUBPROTOCOL not in crossed
        assert len(crossed.split(b", ")) == kept
        assert crossed.count(b",") == kept - 1
    answer = ResponseHead.of(101, b"", ((b"sec-websocket-protocol", bearer),))
    assert b"sec-websocket-protocol" not in names(hub_response_head(answer, b"/clusters/a", b"/", b"hub"))


def test_a_token_in_the_query_is_seen():
    assert has_access_token(b"/api?access_token=a")
    assert has_access_token(b"/api?access_token=a?b")
    assert has_access_token(b"/api?a=b&Access_Token=a")
    assert has_access_token(b"/api?access%5ftoken=a")
    assert has_access_token(b"/api?%61ccess_token=a")
    assert has_access_token(b"/api?a=%20&access_%74oken=a")
    assert has_access_token(b"/api?" + b"".join(b"%%%02X" % letter for letter in b"access_token") + b"=a")
    assert not has_access_token(b"/api?my_access_token_name=a&x=access_token")
    assert not has_access_token(b"/api?%61ccess_token&x=%61ccess_token")
    # Escaped twice it is another name, and no escape of it is one.
    assert not has_access_token(b"/api?%2561ccess_token=a&a%ccess_token=a")


PIECES = [b"access_token", b"%61ccess_token", b"acc%45ss%5ftoken", b"access_%74oken", b"x", b"+", b";", b"%"]
NAMES = st.lists(st.sampled_from(PIECES), min_size=1, max_size=2).map(b"".join)


@given(st.lists(st.tuples(NAMES, st.sampled_from([b"", b"=", b"=a"])), max_size=4))
def test_a_token_is_seen_wherever_go_reads_one(pairs: list[tuple[bytes, bytes]]) -> None:
    query = b"&".join(name + value for name, value in pairs)
    read = read_as_go_does(query)
    if any(name.lower() == "access_token" and any(values) for name, values in read.items()):
        assert has_access_token(b"/api?" + query)


def test_direct_mode_adds_host_and_token_in_front():
    inner = hub((b"accept", b"*/*"))
    head = direct_request_head(inner, b"relay:443", "jwt")
    assert head.headers == ((b"host", b"relay:443"), (b"authorization", b"Bearer jwt"), *inner.headers)
    assert relay(head).header_values(b"authorization") == [b"Bearer sa"]
    head = direct_request_head(inner, b"relay:443", "jwt", ["a.b.c", "d.e.f"])
    assert head.header_values(b"hawse-hub-keys") == [b"a.b.c d.e.f"]
    assert b"hawse-hub-keys" not in names(relay(head))


def test_a_loopback_proxy_passes_on_what_is_not_meant_for_itself():
    for_itself = (
        (b"host", b"127.0.0.1:8001"),
        (b"authorization", b"Bearer of-the-proxy"),
        (b"cookie", b"a=b"),
        (b"cookie2", b"c"),
        (b"origin", b"http://127.0.0.1:8001"),
        (b"expect", b"100-continue"),
        (b"connection", b"keep-alive, X-Hop"),
        (b"x-hop", b"1"),
        (b"te", b"trailers"),
        (b"proxy-authorization", b"Basic x"),
    )
    # To refuse these is the hub's.
    passed = ((b"impersonate-user", b"root"), (b"x-custom", b"1"), (b"accept", b"*/*"))

    def crossed(*headers: tuple[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
        head = RequestHead.of(b"POST", b"/clusters/prod/api", (*for_itself, *passed, *headers))
        return loopback_request_head(head, b"hub", "jwt").headers

    ours = ((b"host", b"hub"), (b"authorization", b"Bearer jwt"))
    assert crossed((b"content-length", b"3")) == (*ours, *passed, (b"content-length", b"3"))
    assert crossed((b"transfer-encoding", b"chunked")) == (*ours, *passed, (b"transfer-encoding", b"chunked"))
    opened = ((b"connection", b"Upgrade"), (b"upgrade", b"websocket"), (b"content-length", b"0"))
    assert crossed((b"connection", b"upgrade"), (b"upgrade", b"websocket")) == (*ours, *passed, *opened)


REASON = (b"hawse-reason", b"the pod hangs")


def test_a_loopback_proxy_states_its_reason_for_who_states_none():
    def stated(*headers: tuple[bytes, bytes], reason: str) -> list[bytes]:
        head = RequestHead.of(b"GET", b"/clusters/prod/api", headers)
        return loopback_request_head(head, b"hub", "jwt", reason).header_values(b"hawse-reason")

    assert stated(reason="") == []
    assert stated(reason="der Pod hängt") == ["der Pod hängt".encode()]
    assert stated(REASON, reason="another") == [b"the pod hangs"]
    assert stated(REASON, reason="") == [b"the pod hangs"]


@pytest.mark.parametrize("name", [b"hawse-reason", b"hawse_reason"])
@pytest.mark.parametrize("tail", [False, True])
def test_neither_hub_nor_relay_passes_on_a_reason(name: bytes, tail: bool):
    assert name not in names(hub((name, b"the pod hangs"), tail=tail))
    # As an agent could send it to a relay of direct mode.
    inner = RequestHead.of(b"GET", b"/api/v1/pods", ((name, b"the pod hangs"),))
    assert name not in names(relay(inner, tail=tail))


@pytest.mark.parametrize(
    "identity",
    [
        (),
        ((b"impersonate-group", b"a/b"),),
        ((b"impersonate-user", b"agent:a"),),
        ((b"impersonate-user", b""), (b"impersonate-group", b"a/b")),
        ((b"impersonate-user", b" "), (b"impersonate-group", b"a/b")),
        ((b"impersonate-user", b"agent:a"), (b"impersonate-group", b"")),
        ((b"impersonate-user", b"agent:a"), (b"impersonate-group", b"a/b"), (b"impersonate-group", b" ")),
        (
            (b"impersonate-user", b"agent:a"),
            (b"impersonate-user", b"agent:b"),
            (b"impersonate-group", b"a/b"),
        ),
        ((b"impersonate-user", b"agent:a"), (b"impersonate-group", b"a/b"), (b"authorization", b"x")),
    ],
)
def test_no_request_leaves_without_exactly_one_identity(identity):
    with pytest.raises(RewriteError):
        identity_lines(identity)


def test_no_request_leaves_without_an_identity():
    with pytest.raises(RewriteError):
        relay_request_head(hub(), b"a", "sa", IdentityLines(b""))


def test_no_request_leaves_without_the_relays_own_token():
    with pytest.raises(RewriteError):
        relay_request_head(hub(), b"a", "", LINES)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    b"impersonate-user", b"impersonate_group", b"connection", b"authorization", b"accept",
                    b"x-remote-user", b"x-a", b"upgrade", b"content-type", b"cookie", b"host", b"te",
                ]
            ),
            st.sampled_from([b"upgrade", b"impersonate-user", b"close", b"x-a", b"system:masters", b""]),
        ),
        max_size=8,
    ),
    st.booleans(),
)  # fmt: skip
def test_the_api_server_gets_one_identity_for_any_client_input(headers, tail):
    crossed = relay(hub(*headers, tail=tail), tail=tail)
    assert [pair for pair in crossed.headers if b"impersonate" in pair[0]] == list(IDENTITY)
    assert crossed.header_values(b"authorization") == [b"Bearer sa"]
    assert crossed.header_values(b"host") == [b"10.0.0.1:443"]
    assert not {b"cookie", b"te", b"x-remote-user"} & set(names(crossed))
    assert RequestHead.decode(crossed.encode()) == crossed


OURS = {b"host", b"authorization", b"audit-id", b"x-forwarded-for"}
client_lines = st.lists(
    st.sampled_from(
        [
            b"Authorization: Bearer stolen", b"authorization:x", b"Audit-ID: spoofed", b"audit-id: a",
            b"X-Forwarded-For: 203.0.113.1", b"X-Forwarded-Host: evil", b"Forwarded: a",
            b"X-Real-Ip: 1",
            b"Impersonate-User: root", b"impersonate-Group: system:masters", b"Impersonate_Uid: 1",
            b"X-Remote-User: root", b"Cookie: a=b", b"Proxy-Authorization: x", b"hawse-relay-failure: 1;0;x",
            b"Connection: Impersonate-User, Authorization, Host, Audit-Id", b"Connection: Upgrade",
            b"Upgrade: websocket", b"Accept: */*", b"X-Custom: 1", b"Content-Length: 0", b"TE: trailers",
            b"Sec-WebSocket-Protocol: " + BEARER_SUBPROTOCOL + b"abc, v5.channel.k8s.io", b"Origin: https://a",
        ]
    ),
    max_size=10,
)  # fmt: skip


@given(client_lines, st.booleans(), st.booleans())
def test_our_own_lines_stand_first_and_no_line_of_a_clients_has_a_name_of_ours(lines, tail, tunnelled):
    raw = b"GET /clusters/prod/api HTTP/1.1\r\nHost: hub\r\n" + b"".join(line + b"\r\n" for line in lines)
    try:
        head = read_request_head(raw + b"\r\n")
    except BadRequest:
        return
    # Twice from one block, as on a connection.
    for audit_id in ("e-1", "e-2"):
        inner = hub_request_head(head, b"/api", audit_id=audit_id, client_ip="192.0.2.7", tail=tail)
        if tunnelled:
            encoded = hub_request_bytes(b"GET /api HTTP/1.1\r\n", head, audit_id, "192.0.2.7", tail)
            assert encoded == inner.encode()
            arrived = RequestHead.decode(encoded)
        else:
            arrived = read_request_head(direct_request_head(inner, b"relay:443", "jwt").encode())
        written = relay(arrived, tail=tail).encode()
        own = (
            b"host: 10.0.0.1:443\r\nauthorization: Bearer sa\r\n"
            + b"".join(b"%s: %s\r\n" % pair for pair in IDENTITY)
            + b"audit-id: %s\r\nx-forwarded-for: 192.0.2.7\r\n" % audit_id.encode()
        )
        line, _, rest = written.partition(b"\r\n")
        assert line == b"GET /api HTTP/1.1"
        assert rest.startswith(own)
        others = {field.partition(b":")[0].replace(b"_", b"-") for field in rest[len(own) :].split(b"\r\n")}
        assert not others & OURS
        assert not any(
            name.startswith((b"impersonate", b"x-remote", b"x-forwarded", b"hawse")) for name in others
        )
        assert not others & {b"cookie", b"proxy-authorization", b"te", b"forwarded", b"x-real-ip"}
        assert BEARER_SUBPROTOCOL not in rest


def test_what_crosses_is_worked_out_once_a_block_and_by_tail():
    head = RequestHead.of(b"GET", b"/x", ((b"host", b"hub"), (b"x-custom", b"1"), (b"accept", b"*/*")))

    def crossed(tail: bool) -> RequestHead:
        return hub_request_head(head, b"/api", audit_id="e", client_ip="::1", tail=tail)

    assert names(crossed(False)) == [b"audit-id", b"x-forwarded-for", b"accept"]
    assert names(crossed(True)) == [b"audit-id", b"x-forwarded-for", b"x-custom", b"accept"]
    assert crossed(False).fields is crossed(False).fields


def test_the_framing_of_an_upgrade_follows_each_method():
    shared = RequestHead.of(b"GET", b"/", ((b"connection", b"upgrade"), (b"upgrade", b"websocket"))).fields
    for method, length in ((b"GET", None), (b"POST", b"0"), (b"GET", None)):
        head = RequestHead(method, b"/", shared)
        assert hub_request_head(head, b"/", audit_id="e", client_ip="::1").header(b"content-length") == length


@pytest.mark.parametrize("value", ["a\r\nimpersonate-user: root", "a\nb", "\x00", "ä", "\x7f"])
def test_no_value_of_our_own_can_smuggle_a_second_line(value):
    head = RequestHead.of(b"GET", b"/")
    with pytest.raises(HeadError):
        hub_request_head(head, b"/", audit_id=value, client_ip="::1")
    with pytest.raises(HeadError):
        hub_request_head(head, b"/", audit_id="e", client_ip=value)
    with pytest.raises(HeadError):
        hub_request_bytes(b"GET / HTTP/1.1\r\n", head, value, "::1", False)
    with pytest.raises(HeadError):
        direct_request_head(head, b"a", value)
    with pytest.raises(HeadError):
        relay_request_head(hub(), b"a", value, LINES)
    with pytest.raises(HeadError):
        relay_request_head(hub(), value.encode("latin-1") + b"\n", "t", LINES)


# -- answers ------------------------------------------------------------------------------------------------


def test_an_answer_keeps_what_clients_read():
    kept = (
        (b"content-type", b"application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"),
        (b"content-length", b"7"),
        (b"content-encoding", b"gzip"),
        (b"warning", b'299 - "a"'),
        (b"warning", b'299 - "b"'),
        (b"retry-after", b"5"),
        (b"x-kubernetes-pf-flowschema-uid", b"1"),
        (b"audit-id", b"2"),
        (b"etag", b'"3"'),
        (b"vary", b"Accept"),
    )
    assert client_answer(relay_response_head(answer(*kept), b"api:443")).headers == kept


def test_an_answer_loses_its_hop_and_what_speaks_for_the_origin():
    head = answer(
        (b"connection", b"close, X-Hop"),
        (b"x-hop", b"1"),
        (b"transfer-encoding", b"chunked"),
        (b"keep-alive", b"1"),
        (b"set-cookie", b"a=b"),
        (b"set-cookie2", b"a=b"),
        (b"alt-svc", b"h3"),
        (b"clear-site-data", b'"*"'),
        (b"public-key-pins", b"x"),
        (b"nel", b"{}"),
        (b"report-to", b"{}"),
        (b"expect-ct", b"max-age=1"),
        (b"x-accel-redirect", b"/internal/file"),
        (b"x-accel-expires", b"86400"),
        (b"x-envoy-immediate-health-check-fail", b"true"),
        (b"x-reproxy-url", b"http://169.254.169.254/"),
        (b"x-sendfile", b"/etc/passwd"),
        (b"x-sendfile2", b"/etc/passwd 0-"),
        (b"x-lighttpd-send-file", b"/etc/passwd"),
        (b"x-litespeed-location", b"/internal/file"),
        (b"service-worker-allowed", b"/"),
        (b"strict-transport-security", b"max-age=1"),
        (b"proxy-authenticate", b"Basic"),
        (b"proxy-authentication-info", b"x"),
        (b"http2-settings", b"AAAA"),
        (b"hawse-relay-failure", b"1;0;x"),
        (b"hawse-anything", b"1"),
        (b"x-kept", b"1"),
    )
    assert names(client_answer(head)) == [b"x-kept"]
    assert not any(name.startswith(b"hawse-") for name in names(relay_response_head(head, b"api")))


def test_a_101_gets_new_upgrade_headers():
    head = answer(
        (b"upgrade", b"websocket"),
        (b"connection", b"Upgrade, x-a"),
        (b"x-a", b"1"),
        (b"sec-websocket-accept", b"abc="),
        (b"sec-websocket-protocol", b"v5.channel.k8s.io"),
        status=101,
    )
    assert client_answer(head).headers == (
        (b"sec-websocket-accept", b"abc="),
        (b"sec-websocket-protocol", b"v5.channel.k8s.io"),
        (b"connection", b"Upgrade"),
        (b"upgrade", b"websocket"),
    )


answer_names = st.sampled_from(
    [
        b"connection", b"Connection", b"transfer-encoding", b"set-cookie", b"location", b"hawse-x", b"x-a",
        b"date",
        b"close", b"keep-alive", b"content-type", b"audit-id", b"alt-svc", b"trailer", b"x-hawse-a",
        b"upgrade",
        b"sec-websocket-protocol", b"locations", b"strict-transport-security", b"uri",
    ]
)  # fmt: skip
answer_values = st.sampled_from(
    [b"close", b"keep-alive", b"chunked", b"x-a", b"x-a, close", b"/path", b"https://api/x", b"", b"v5"]
)


@example([(b"connection", b"close"), (b"close", b"x-a")], 200)
@given(st.lists(st.tuples(answer_names, answer_values), max_size=7), st.sampled_from([200, 101, 304, 500]))
def test_answers_that_cross_as_they_are_are_those_of_which_nothing_has_to_be_done(pairs, status):
    raw = b"HTTP/1.1 %d OK\r\n%s\r\n" % (status, b"".join(b"%s: %s\r\n" % pair for pair in pairs))
    try:
        head, _ = read_response_head(raw)
    except BadResponse:
        return
    crossed = relay_response_head(head, b"api:443")
    arrived = client_answer(ResponseHead.decode(crossed.encode()))
    with mock.patch("proxy.message.head.ResponseHead.without_hop", return_value=None):
        one_by_one = relay_response_head(head, b"api:443")
        assert crossed == one_by_one
        assert arrived == client_answer(one_by_one)
    assert crossed.body_length == head.body_length == arrived.body_length


def test_c40_a_backends_page_is_sandboxed_and_keeps_its_own_policy():
    page = answer(
        (b"content-type", b"text/html"),
        (b"content-security-policy", b"default-src 'self'"),
        (b"set-cookie", b"session=stolen"),
        (b"content-length", b"7"),
    )
    head = sandboxed(client_answer(page))
    assert head.header_values(b"content-security-policy") == [b"default-src 'self'", b"sandbox"]
    assert head.header(b"set-cookie") is None
    assert head.body_length == 7
    assert ResponseHead.decode(head.encode()) == head
    upgrade = answer((b"upgrade", b"websocket"), (b"connection", b"Upgrade"), status=101)
    assert sandboxed(upgrade) is upgrade


@pytest.mark.parametrize("tails", [(False, True, False), (True, False, True)])
def test_what_crosses_of_the_same_headers_is_another_on_a_tail(tails):
    head = RequestHead.of(
        b"GET", b"/api", ((b"host", b"h"), (b"accept", b"*/*"), (b"x-of-the-backend", b"1"))
    )
    for tail in tails:
        inner = hub_request_head(head, b"/api", audit_id="e-1", client_ip="192.0.2.7", tail=tail)
        assert (inner.header(b"x-of-the-backend") is not None) is tail
        assert inner.header(b"accept") == b"*/*"
