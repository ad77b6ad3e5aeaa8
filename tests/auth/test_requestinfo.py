from __future__ import annotations

import contextlib
import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth import requestinfo
from auth.requestinfo import (
    PARAMETERS_MAX,
    PATH_ESCAPES_MAX,
    BadTarget,
    RequestInfo,
    decode_value,
    first_values,
    parse,
    raw_values,
)
from tests.auth.queries import read_as_go_does

# C22: kube-apiserver's parse of a request. The columns:
#   method, target, verb, group, version, namespace, resource, subresource, name; a dash is none
RESOURCES = """
GET     /api/v1/namespaces list - v1 - namespaces - -
GET     /api/v1/namespaces/other get - v1 other namespaces - other
GET     /api/v1/namespaces/other/pods list - v1 other pods - -
GET     /api/v1/namespaces/other/pods/foo get - v1 other pods - foo
HEAD    /api/v1/namespaces/other/pods/foo get - v1 other pods - foo
GET     /api/v1/pods list - v1 - pods - -
HEAD    /api/v1/pods list - v1 - pods - -
GET     /api/v1/pods/ list - v1 - pods - -
# verbs by the path
GET     /api/v1/proxy/namespaces/other/pods/foo proxy - v1 other pods - foo
GET     /api/v1/proxy/namespaces/other/pods/foo/sub/path proxy - v1 other pods - foo
POST    /api/v1/proxy/nodes/n1/run proxy - v1 - nodes - n1
GET     /api/v1/watch/pods watch - v1 - pods - -
DELETE  /api/v1/watch/pods watch - v1 - pods - -
GET     /api/v1/watch/namespaces/other/pods watch - v1 other pods - -
GET     /api/v1/watch/namespaces/other/pods/p watch - v1 other pods - p
GET     /apis/apps/v1/watch/deployments watch apps v1 - deployments - -
# the watch parameter: the first value, and anything but 0 and false
GET     /api/v1/pods?watch=true watch - v1 - pods - -
GET     /api/v1/pods?watch=false list - v1 - pods - -
GET     /api/v1/pods?watch=FALSE list - v1 - pods - -
GET     /api/v1/pods?watch=0 list - v1 - pods - -
GET     /api/v1/pods?watch=00 watch - v1 - pods - -
GET     /api/v1/pods?watch watch - v1 - pods - -
GET     /api/v1/pods?watch= watch - v1 - pods - -
GET     /api/v1/pods?watch=no watch - v1 - pods - -
GET     /api/v1/pods?watch=1&watch=0 watch - v1 - pods - -
GET     /api/v1/pods?watch=0&watch=1 list - v1 - pods - -
GET     /api/v1/pods?w%61tch=1 watch - v1 - pods - -
GET     /api/v1/pods?watch=1;x list - v1 - pods - -
GET     /api/v1/pods?Watch=1 list - v1 - pods - -
GET     /api/v1/namespaces/other/pods?watch=1 watch - v1 other pods - -
GET     /api/v1/namespaces/other/pods/foo?watch=1 get - v1 other pods - foo
HEAD    /api/v1/pods?watch=1 watch - v1 - pods - -
# subresources
GET     /api/v1/namespaces/other/pods/foo/status get - v1 other pods status foo
GET     /api/v1/namespaces/other/pods/foo/proxy/sub get - v1 other pods proxy foo
PUT     /api/v1/namespaces/other/finalize update - v1 other namespaces finalize other
PUT     /api/v1/namespaces/other/status update - v1 other namespaces status other
GET     /api/v1/namespaces/other/proxy list - v1 other proxy - -
GET     /api/v1/namespaces/status/pods list - v1 status pods - -
GET     /api/v1/namespaces/a/pods/p/exec/more get - v1 a pods exec p
GET     /api/v1/namespaces/a/pods/p/ex%65c get - v1 a pods exec p
POST    /api/v1/namespaces/a/pods/p/exec/ create - v1 a pods exec p
GET     /apis/batch/v1/namespaces/a/jobs/j/status get batch v1 a jobs status j
# verbs by the method
PATCH   /api/v1/namespaces/other/pods/foo patch - v1 other pods - foo
PUT     /api/v1/namespaces/other/pods/foo update - v1 other pods - foo
POST    /api/v1/namespaces/other/pods create - v1 other pods - -
DELETE  /api/v1/namespaces/other/pods/foo delete - v1 other pods - foo
DELETE  /api/v1/nodes deletecollection - v1 - nodes - -
DELETE  /api/v1/namespaces deletecollection - v1 - namespaces - -
DELETE  /api/v1/namespaces/other/pods deletecollection - v1 other pods - -
OPTIONS /api/v1/pods - - v1 - pods - -
get     /api/v1/pods - - v1 - pods - -
FOO     /api/v1/pods/x - - v1 - pods - x
# groups, versions, names as they are
POST    /apis/ext/v1beta3/namespaces/other/pods create ext v1beta3 other pods - -
GET     /apis/rbac/v1/clusterroles/system:node get rbac v1 - clusterroles - system:node
GET     /apis/rbac/v1/clusterroles/system%3Anode get rbac v1 - clusterroles - system:node
# the name in a field selector
GET     /apis/g/v/r?fieldSelector=metadata.name=n1 list g v - r - n1
GET     /apis/g/v/r?fieldSelector=metadata.name%3Dn1 list g v - r - n1
GET     /apis/g/v/r?fieldSelector=metadata.name%3D%3Dn1 list g v - r - n1
GET     /apis/g/v/r?fieldSelector=metadata.name!=n1 list g v - r - -
GET     /apis/g/v/r?watch=true&fieldSelector=metadata.name=n1 watch g v - r - n1
GET     /apis/g/v/r?fieldSelector=spec.x=y,metadata.name=n1 list g v - r - n1
GET     /apis/g/v/r?fieldSelector=foo=bar&labelSelector=baz=qux list g v - r - -
GET     /apis/g/v/r?fieldSelector=metadata.name=n1&labelSelector=app=a,!b list g v - r - n1
GET     /apis/g/v/r?fieldSelector=metadata.name=n1,foo list g v - r - -
GET     /apis/g/v/r?fieldSelector=metadata.name=n1,foo&watch=true watch g v - r - -
GET     /apis/g/v/r?fieldSelector=metadata.name=n1&labelSelector=%3D%3D list g v - r - -
GET     /apis/g/v/r?fieldSelector=metadata.name=n1&labelSelector=a+in+(x,y),+!b list g v - r - n1
GET     /apis/g/v/r?fieldSelector=metadata.name=n1&labelSelector=a+in+x list g v - r - -
# of several names the first in the order of the terms, which are sorted
GET     /apis/g/v/r?fieldSelector=metadata.name=n2,metadata.name=n1 list g v - r - n1
GET     /apis/g/v/r?fieldSelector=metadata.name=a,metadata.name==b list g v - r - b
GET     /apis/g/v/r?fieldSelector=metadata.name=x,metadata.name=.. list g v - r - -
GET     /apis/g/v/r?fieldSelector=metadata.name=n1,metadata.name= list g v - r - -
GET     /apis/g/v/r?fieldSelector=metadata.name=n1&limit=x list g v - r - -
GET     /apis/g/v/r?fieldSelector=metadata.name=n1&limit=500 list g v - r - n1
GET     /apis/g/v/r?fieldSelector=metadata.name=a%2Fb list g v - r - -
GET     /apis/g/v/r?fieldSelector=metadata.name=.. list g v - r - -
GET     /apis/g/v/r?fieldSelector=metadata.name=a%5C,b list g v - r - a,b
GET     /apis/g/v/r?fieldSelector=metadata.name=a%5Cb list g v - r - -
GET     /apis/g/v/r?fieldSelector=metadata.name=a&fieldSelector=metadata.name=b list g v - r - a
GET     /apis/g/v/r/n?fieldSelector=metadata.name=other get g v - r - n
GET     /apis/g/v/watch/r?fieldSelector=metadata.name=foo watch g v - r - -
DELETE  /apis/g/v/r?fieldSelector=metadata.name=x deletecollection g v - r - -
"""


@pytest.mark.parametrize("row", [row for row in RESOURCES.splitlines() if row and not row.startswith("#")])
def test_a_resource_request_is_parsed_as_kube_apiserver_does(row: str) -> None:
    fields = ["" if field == "-" else field for field in row.split()]
    method, target, verb, group, version, namespace, resource, subresource, name = fields
    info = parse(method.encode(), target.encode())
    assert info.is_resource
    assert (info.verb, info.group, info.version, info.namespace) == (verb, group, version, namespace)
    assert (info.resource, info.subresource, info.name) == (resource, subresource, name)
    assert info.raw_path + (b"?" + info.query if "?" in target else b"") == target.encode()


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/api",
        "/api/",
        "/api/v1",
        "/api/v1/",
        "/apis",
        "/apis/",
        "/apis/apps",
        "/apis/apps/v1",
        "/apis/apps/v1/",
        "/apis/version/resource",
        "/badprefix/version/resource",
        "/healthz",
        "/healthz/etcd",
        "/readyz?verbose",
        "/version?timeout=32s",
        "/metrics",
        "/logs/kube-apiserver.log",
        "/openapi/v3/apis/apps/v1?hash=ABC",
        "/debug/pprof/heap",
        "/API/v1/pods",
        "/.well-known/openid-configuration",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_a_path_about_no_resource_keeps_the_method_as_verb(method: str, target: str) -> None:
    info = parse(method.encode(), target.encode())
    assert not info.is_resource
    assert info.verb == method.lower()
    assert info.path == target.partition("?")[0]
    assert info.resource == info.namespace == info.name == ""


# C20: paths that two readers could understand differently

BAD_PATHS = [
    "/api/v1/namespaces/dev/../kube-system/secrets",
    "/api/v1/namespaces/dev/%2e%2e/kube-system/secrets",
    "/api/v1/namespaces/dev/%2E%2e/kube-system/secrets",
    "/api/v1/namespaces/dev/.%2e/kube-system/secrets",
    "/api/v1/namespaces/dev/%252e%252e/kube-system/secrets",
    "/api/v1/namespaces/dev/%25/secrets",
    "/api/v1/./pods",
    "/api/v1/%2e/pods",
    "/..",
    "/.",
    "/%2e%2e/",
    "//api/v1/pods",
    "/api//v1/pods",
    "/api/v1//pods",
    "/api/v1/pods//",
    "//",
    "/api/v1/namespaces//pods",
    "/api/v1/pods;x=y",
    "/api/v1/pods/a;x",
    "/api/v1/pods/a%3bx",
    "/api/v1/pods\\x",
    "/api/v1/pods/%5c",
    "/api/v1/pods/%00",
    "/api/v1/pods/%0d%0aX",
    "/api/v1/pods/%0A",
    "/api/v1/pods/%7f",
    "/api/v1/pods/%C2%85",
    "/api/v1/namespaces/a/pods%2Fp%2Fexec",
    "/api/v1/namespaces/a%2fpods",
    "/api/v1/pods/%c0%ae%c0%ae",  # overlong
    "/api/v1/pods/%ff",
    "/api/v1/pods/%ed%a0%80",  # a surrogate
    "/api/v1/pods/%zz",
    "/api/v1/pods/%",
    "/api/v1/pods/%2",
    "/api/v1/pods#x",
    "/api/v1/pods?x#y",
    "/api/v1/pods x",
    "/api/v1/pods\tx",
    "/api/v1/pods\nx",
    "/api/v1/pods\x00",
    "/api/v1/pods/é",
    '/api/v1/pods/"',
    "/api/v1/pods/<x>",
    "/api/v1/pods/{x}",
    "/api/v1/pods/a|b",
    # dot segments in the tail of a proxy, which may hold anything else
    "/api/v1/namespaces/a/services/s/proxy/../../secrets",
    "/api/v1/namespaces/a/services/s/proxy/x/%2e%2e/y",
    "/api/v1/namespaces/a/services/s/proxy/x%2f..%2f..",
    "/api/v1/namespaces/a/services/s/proxy/.",
    "/api/v1/proxy/nodes/n1/../n2",
    # not a tail: the word proxy at another position
    "/api/v1/namespaces/a/pods/proxy/x//y",
    "/api/v1/namespaces/a/configmaps/c/proxy/x//y",
    "/api/v1/namespaces/proxy/pods/p/x//y",
    "/apis/apps/v1/namespaces/a/services/s/proxy/x//y",
    "/api/v1/watch/namespaces/a/services/s/proxy/x//y",
    "/api/v1/pods/p/x/proxy//y",
    "/x/pods/p/proxy//y",
    "/x/v1/services/s/proxy//y",
    "/apis/v1/services/s/proxy//y",
    "/services/s/proxy//",
    "/api/v1/proxy/configmaps/c//x",
    # nothing to watch or to proxy
    "/api/v1/watch",
    "/api/v1/watch/",
    "/api/v1/proxy",
    "/" + "/".join(["a"] * 33),
    "/" + "a" * (1 << 20),
]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_an_ambiguous_path_is_refused(path: str) -> None:
    with pytest.raises(BadTarget):
        parse(b"GET", path.encode("utf-8"))


# kube-apiserver folds the long s only if it can decode every option of the list.
@pytest.mark.parametrize("value", ["fal%C5%BFe", "FAL%c5%bfE", "fal%C5%BFe&limit=x", "fal%C5%BFe&watch=1"])
def test_a_watch_that_is_false_to_some_readers_only_is_refused(value: str) -> None:
    with pytest.raises(BadTarget, match="the parameter 'watch' is 'false' to some readers only"):
        parse(b"GET", f"/api/v1/pods?watch={value}".encode())
    # With a name, the parameter is ignored.
    assert parse(b"GET", f"/api/v1/namespaces/a/pods/p?watch={value}".encode()).verb == "get"


# C21: targets that are not paths


@pytest.mark.parametrize(
    "target",
    [
        b"",
        b"*",
        b"api/v1/secrets",
        b"http://evil/api",
        b"https://kubernetes/api/v1/secrets",
        b"evil:443",
        b"?x",
        b" /api",
        b"\xff",
    ],
)
def test_a_target_that_is_no_path_is_refused(target: bytes) -> None:
    with pytest.raises(BadTarget):
        parse(b"GET", target)


@pytest.mark.parametrize("method", [b"", b"GET ", b"G\xc3\x89T", b"GET\r\n", b"G T", b"A" * 65])
def test_a_method_that_is_no_token_is_refused(method: bytes) -> None:
    with pytest.raises(BadTarget):
        parse(method, b"/api")


@pytest.mark.parametrize(
    "prefix",
    [
        "/api/v1/namespaces/a/services/s/proxy",
        "/api/v1/namespaces/a/services/https:s:443/proxy",
        "/api/v1/namespaces/a/pods/p:8080/pr%6fxy",
        "/api/v1/nodes/n1/proxy",
        "/api/v1/proxy/nodes/n1",
        "/api/v1/proxy/namespaces/a/services/s",
    ],
)
@pytest.mark.parametrize(
    "tail",
    [
        *("", "/", "//", "/a//b", "/a%2Fb", "/a;b=c", "/%zz", "/%ff%00%0a", "/a\\b", "/%252e%252e/", "/..."),
        *('/"<>{}|^`', "/pods/p/exec", "/a/" * 40),
    ],
)
def test_the_tail_of_a_proxy_path_may_hold_anything_but_dot_segments(prefix: str, tail: str) -> None:
    info = parse(b"GET", (prefix + tail).encode())
    assert info.raw_path == (prefix + tail).encode()
    assert info.resource in {"services", "pods", "nodes"}
    assert info.verb == "proxy" or info.subresource == "proxy"
    assert info.long_running
    assert info.is_write


def test_a_newline_in_the_query_is_legitimate() -> None:
    info = parse(b"GET", b"/api/v1/namespaces/a/pods/p/exec?command=sh&command=-c&command=a%0Ab&x=%zz&y=;")
    assert [decode_value(value) for value in raw_values(info.query, "command")] == ["sh", "-c", "a\nb"]
    assert first_values(info.query, ("command", "x", "y")) == {"command": ["sh"]}


ESCAPES = [b"%", b"%25", b"%ff", b"%c3%a4", b"%5C", b"%5cx41", b"%0a", b"%4", b"%zz", b"%+1"]
LETTERS = [b"a", b"4", b"1", b"\\", b"x", b"u", b"N", b"{", b"}", b"'", b"\xe4", b"\n", b"0"]


@given(st.lists(st.sampled_from([*ESCAPES, *LETTERS, b"&", b"=", b"+", b";"]), max_size=20).map(b"".join))
def test_a_query_is_what_its_pairs_are_without_their_escapes(query: bytes) -> None:
    expected = read_as_go_does(query)
    for name in ("a", "x"):
        values = expected.get(name, [])
        assert [
            text for value in raw_values(query, name) if (text := decode_value(value)) is not None
        ] == values
        assert first_values(query, [name, "u"]).get(name) == (values[:1] or None)


@given(st.sampled_from(ESCAPES), st.booleans())
def test_a_long_value_is_read_as_a_short_one(escape: bytes, first: bool) -> None:
    value = escape + b"a" * 2000 if first else b"a" * 2000 + escape
    assert decode_value(value) == read_as_go_does(b"v=" + value).get("v", [None])[0]


@pytest.mark.parametrize("before", ["/logs/", "/api/v1/namespaces/a/services/s/proxy/", "/%6cogs/"])
@pytest.mark.parametrize("escape", ["%41", "%C3%A4", "%", "%zz"])
def test_a_path_has_no_more_escapes_than_any_reader_needs(before: str, escape: str) -> None:
    few = PATH_ESCAPES_MAX // 2 - 1
    tail = before.endswith("proxy/")
    if tail or escape not in {"%", "%zz"}:
        assert parse(b"GET", (before + escape * few).encode()).is_resource is tail
    with pytest.raises(BadTarget, match="the path has more than 10000 escapes"):
        parse(b"GET", (before + escape * (PATH_ESCAPES_MAX + 1)).encode())
    # An exec's script may be all escapes.
    exec_ = b"/api/v1/namespaces/a/pods/p/exec?command="
    assert parse(b"GET", exec_ + b"%C3%A4" * PATH_ESCAPES_MAX).subresource == "exec"


@pytest.mark.parametrize(
    ("method", "target", "is_write", "long_running"),
    [
        ("GET", "/api/v1/pods", False, False),
        ("GET", "/api/v1/pods?watch=1", False, True),
        ("GET", "/api/v1/watch/pods", False, True),
        ("HEAD", "/x", False, False),
        ("OPTIONS", "/x", False, False),
        # Only their creation is a question, and they have no subresource.
        ("PUT", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews/x", True, False),
        ("DELETE", "/apis/authentication.k8s.io/v1/selfsubjectreviews/x", True, False),
        ("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews/x/status", True, False),
        ("GET", "/api/v1/namespaces/a/pods/p/log?follow=true", False, True),
        ("GET", "/api/v1/namespaces/a/pods/p/exec?command=id", True, True),
        ("POST", "/api/v1/namespaces/a/pods/p/exec?command=id", True, True),
        ("GET", "/api/v1/namespaces/a/pods/p/attach", True, True),
        ("GET", "/api/v1/namespaces/a/pods/p/portforward", True, True),
        ("GET", "/api/v1/namespaces/a/services/s/proxy/", True, True),
        ("GET", "/api/v1/proxy/nodes/n1", True, True),
        ("POST", "/api/v1/namespaces/a/pods", True, False),
        ("PATCH", "/api/v1/namespaces/a/pods/p", True, False),
        ("DELETE", "/api/v1/namespaces/a/pods/p", True, False),
        ("OPTIONS", "/api/v1/pods", True, False),
        ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", False, False),
        ("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", False, False),
        ("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", False, False),
        ("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", True, False),
        ("POST", "/apis/evil.io/v1/selfsubjectreviews", True, False),
        ("GET", "/version", False, False),
        ("POST", "/version", True, False),
        ("GET", "/debug/pprof/profile", False, True),
    ],
)
def test_what_writes_and_what_runs_long(method: str, target: str, is_write: bool, long_running: bool) -> None:
    info = parse(method.encode(), target.encode())
    assert (info.is_write, info.long_running) == (is_write, long_running)


def test_dry_run_is_seen() -> None:
    assert parse(b"POST", b"/api/v1/namespaces/a/pods?dryRun=All").dry_run
    assert not parse(b"POST", b"/api/v1/namespaces/a/pods?dryRun=None&dryRun=All").dry_run
    assert not parse(b"POST", b"/api/v1/namespaces/a/pods").dry_run
    assert parse(b"PUT", b"/api/v1/namespaces/a/pods/p/status?dryRun=All").dry_run
    assert parse(b"PATCH", b"/api/v1/namespaces/a/pods/p?dryRun=All").dry_run
    assert parse(b"PATCH", b"/api/v1/namespaces/a/pods/p?d%72yRun=%41ll").dry_run
    # What is sent on the connection takes effect.
    assert not parse(b"POST", b"/api/v1/namespaces/a/pods?dryRun=All").upgraded().dry_run


@pytest.mark.parametrize(
    "query",
    [
        *("dryRun=All&dryRun=None", "dryRun=All&dryRun=", "dryRun=All&dryRun", "dryRun=All&dryRun=All"),
        *("dryRun=All&dryRun=%zz", "dryRun=All;&dryRun=All", "dryRun=All&d%72yRun=x"),
        *("dryRun=all", "dryRun=ALL", "dryRun=All,All", "dryRun=All+", "dryRun", "dryRun=", "dryrun=All"),
    ],
)
def test_what_is_not_exactly_one_all_is_no_dry_run(query: str) -> None:
    """kube-apiserver refuses some of these; a policy must not depend on that."""
    assert not parse(b"POST", f"/api/v1/namespaces/a/pods?{query}".encode()).dry_run


@pytest.mark.parametrize("method", [b"TRACE", b"CONNECT", b"Trace", b"connect"])
@pytest.mark.parametrize("target", [b"/version", b"/api/v1/namespaces/a/services/s/proxy/x"])
def test_methods_that_echo_or_open_a_tunnel_are_refused(method: bytes, target: bytes) -> None:
    with pytest.raises(BadTarget, match=f"the method {method.decode()} is not served"):
        parse(method, target)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        # kube-apiserver uses the options in the body, and ignores a query beside them.
        ("DELETE", "/api/v1/namespaces/a/pods/p"),
        ("DELETE", "/api/v1/namespaces/a/pods"),
        ("POST", "/api/v1/namespaces/a/pods/p/exec"),
        ("POST", "/api/v1/namespaces/a/pods/p/attach"),
        ("POST", "/api/v1/namespaces/a/pods/p/portforward"),
        ("POST", "/api/v1/namespaces/a/services/s/proxy/x"),
        ("PUT", "/api/v1/nodes/n/proxy/x"),
        ("POST", "/api/v1/proxy/nodes/n"),
        ("POST", "/api/v1/namespaces/a/serviceaccounts/s/token"),
        ("GET", "/api/v1/namespaces/a/secrets"),
        ("POST", "/logs"),
    ],
)
def test_what_has_its_effect_all_the_same_is_no_dry_run(method: str, path: str) -> None:
    assert not parse(method.encode(), f"{path}?dryRun=All".encode()).dry_run


# With more parameters Go's net/url returns none, and kube-apiserver would list everything instead of one
# name.
@pytest.mark.parametrize("parameter", ["fieldSelector=metadata.name=n1", "watch=1", "dryRun=All"])
@pytest.mark.parametrize("padding", ["", "a", "a=b"])
def test_a_query_of_which_kube_apiserver_reads_nothing_is_refused(parameter: str, padding: str) -> None:
    rest = f"&{padding}" * (PARAMETERS_MAX - 1)
    assert parse(b"GET", f"/api/v1/secrets?{parameter}{rest}".encode()).is_resource
    for query in (f"{parameter}{rest}&", f"&{parameter}{rest}"):
        with pytest.raises(BadTarget):
            parse(b"GET", f"/api/v1/secrets?{query}".encode())


# C23: `pods` is not `pods/…`


@pytest.mark.parametrize(
    "subresource",
    ["exec", "attach", "portforward", "proxy", "log", "ephemeralcontainers", "eviction", "binding", "resize"],
)
def test_a_subresource_is_never_hidden(subresource: str) -> None:
    for target in (f"/api/v1/namespaces/a/pods/p/{subresource}", f"/api/v1/pods/p/{subresource}/"):
        info = parse(b"POST", target.encode())
        assert (info.resource, info.subresource) == ("pods", subresource)


# Properties


def naive(method: str, path: str) -> RequestInfo | None:
    """A direct implementation of kube-apiserver's documented parse, over the decoded path."""
    parts = [part for part in unquote(path).strip("/").split("/") if part]
    if len(parts) < 3 or parts[0] not in ("api", "apis") or (parts[0] == "apis" and len(parts) < 4):
        return None
    group = parts[1] if parts[0] == "apis" else ""
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    version = parts[1] if parts[0] == "api" else parts[2]
    verbs = {
        "POST": "create",
        "GET": "get",
        "HEAD": "get",
        "PUT": "update",
        "PATCH": "patch",
        "DELETE": "delete",
    }
    verb = verbs.get(method, "")
    if rest[0] in ("proxy", "watch"):
        verb, rest = rest[0], rest[1:]
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 1:
        namespace = rest[1]
        if len(rest) > 2 and rest[2] not in ("status", "finalize"):
            rest = rest[2:]
    name = rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 and verb != "proxy" else ""
    if not name:
        verb = {"get": "list", "delete": "deletecollection"}.get(verb, verb)
    return RequestInfo(
        method,
        verb,
        True,
        unquote(path),
        path.encode(),
        b"",
        group,
        version,
        namespace,
        rest[0],
        subresource,
        name,
    )


WORDS = st.sampled_from(
    [
        *("api", "apis", "v1", "apps", "namespaces", "status", "finalize", "pods", "services", "nodes"),
        *("proxy", "watch", "exec", "a", "%70roxy", "w%61tch"),
    ]
)
PATHS = st.one_of(
    st.lists(WORDS, max_size=9).map(lambda words: "/" + "/".join(words)),
    st.lists(WORDS, min_size=1, max_size=7).map(lambda words: "/api/v1/" + "/".join(words)),
)


@given(st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]), PATHS)
def test_the_parse_agrees_with_a_second_one(method: str, path: str) -> None:
    try:
        info = parse(method.encode(), path.encode())
    except BadTarget:
        assert re.search("/(proxy|watch|%70roxy|w%61tch)$", path)
        return
    assert (info if info.is_resource else None) == naive(method, path)


HOSTILE_SEGMENTS = st.lists(
    st.sampled_from(
        ["..", "%2e", "%2f", "/", ";", "\\", "%00", "a", "proxy", "services", "%25", "%0a", "é", "%zz"]
    ),
    max_size=6,
).map("".join)


@given(st.lists(st.one_of(WORDS, HOSTILE_SEGMENTS), max_size=10))
def test_what_passes_means_one_thing_only(segments: list[str]) -> None:
    path = "/" + "/".join(segments)
    try:
        info = parse(b"GET", path.encode())
    except BadTarget:
        return
    assert info.raw_path == path.encode()
    decoded = unquote(path, errors="replace")
    assert ".." not in decoded.split("/")
    if info.subresource != "proxy" and info.verb != "proxy":
        # Decoding moved no boundary, and decoding twice changes nothing more.
        assert "//" not in decoded
        assert path.count("/") == decoded.count("/")
        assert unquote(decoded) == decoded == info.path
        assert "\\" not in decoded
        assert ";" not in decoded


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_only_bad_target_ever_escapes(method: bytes, target: bytes) -> None:
    for candidate in (target, b"/" + target, b"/api/v1/nodes/n/proxy/" + target, b"/api/v1/pods?" + target):
        for verb in (method, b"GET"):
            with contextlib.suppress(BadTarget):
                assert parse(verb, candidate).dry_run in {True, False}


PLAIN = st.text("ab.-_~:@%2eproxy", max_size=5)


@given(st.lists(st.one_of(WORDS, PLAIN, st.sampled_from([".", "..", "", "proxyx"])), max_size=40))
def test_a_plain_path_is_split_as_any_other(segments: list[str]) -> None:
    raw_path = ("/" + "/".join(segments)).encode()
    plain = requestinfo._split_plain(raw_path)
    if plain is not None:
        parts, tail = requestinfo._split(raw_path)
        assert (plain, None) == (parts, tail)
        assert requestinfo._join(parts, tail, raw_path) == raw_path.decode()


@pytest.mark.parametrize(
    "path", [b"/", b"/a/%20", b"/a//b", b"//", b"/a/.", b"/a/../b", b"/..", b"/a/b;c", b"a"]
)
def test_what_is_not_plain_takes_the_long_way(path: bytes) -> None:
    assert requestinfo._split_plain(path) is None


def test_what_is_asked_for_again_is_parsed_once() -> None:
    assert parse(b"GET", b"/api/v1/nodes/n") is parse(b"GET", b"/api/v1/nodes/n")
    assert parse(b"GET", b"/api/v1/nodes?a=1") is not parse(b"GET", b"/api/v1/nodes?a=2")


def test_a_kind_tells_apart_what_rules_tell_apart_but_names() -> None:
    requests = [
        "GET /metrics",
        "GET /healthz",
        "POST /metrics",
        "GET /api/v1/pods",
        "GET /api/v1/pods?watch=1",
        "GET /api/v1/nodes",
        "GET /apis/metrics.k8s.io/v1/pods",
        "GET /api/v1/namespaces/a/pods/p",
        "GET /api/v1/namespaces/a/pods/p/log",
        "GET /api/v1/namespaces/b/pods/p",
        "GET /api/v1/proxy/nodes/n",
        "POST /api/v1/proxy/nodes/n",
    ]
    infos = [parse(method.encode(), target.encode()) for method, target in map(str.split, requests)]
    assert len({info.kind for info in infos}) == len(requests)
    assert parse(b"GET", b"/api/v1/namespaces/a/pods/q").kind == infos[7].kind
