from __future__ import annotations

import re
from urllib.parse import urljoin, urlsplit

import pytest

from proxy.message.head import ResponseHead
from proxy.message.location import LOCATION_BYTES_MAX
from proxy.message.rewrite import hub_response_head, loopback_response_head, relay_response_head
from tests.proxy.message.answers import answer, client_answer

LOCATIONS = [
    (b"/api/v1/x?y=1#z", b"/clusters/prod/api/v1/x?y=1#z"),
    (b"/", b"/clusters/prod/"),
    (b"login", b"/clusters/prod/api/v1/login"),
    (b"../../x", b"/clusters/prod/x"),
    (b"?a=b", b"/clusters/prod/api/v1/pods?a=b"),
    (b"", b"/clusters/prod/api/v1/pods?limit=1"),
    (b"/../other/api", b"/clusters/prod/other/api"),
    (b"/a/%2e%2E/%2E%2e/other", b"/clusters/prod/other"),
    (b"/a/.", b"/clusters/prod/a/"),
    (b"/..;x", b"/clusters/prod/"),
    (b"/a;x/b;y", b"/clusters/prod/a;x/b;y"),
    (b"/a?x=/../..", b"/clusters/prod/a?x=/../.."),
    (b"/a?/..?/../#/..", b"/clusters/prod/a?/..?/../#/.."),
    (b"/a#/..#/../?/..", b"/clusters/prod/a#/..#/../?/.."),
    (b"https://elsewhere.example/a/../b", None),
    (b"//elsewhere.example/a", None),
    (b"https://hub.example/clusters/other/api", b"/clusters/prod/clusters/other/api"),
    (b"https://hub.example/clusters/production/api", b"/clusters/prod/clusters/production/api"),
    (b"https://user@HUB.example:443/clusters/prod/api", b"/clusters/prod/api"),
    (b"//hub.example", b"/clusters/prod/"),
    (b"http://hub.example?x=1", b"/clusters/prod/?x=1"),
    (b"HTTPS://hub.example#x", b"/clusters/prod/#x"),
    (b"https://hub.example:80/x", b"/clusters/prod/x"),
    (b"https://hub.example:8080/x", None),
    (b"https://the_other-hub~1/x", None),
    (b"https://h.0xhub/x", None),
    (b"https://1.hub/x", None),
    (b"#a:b", b"/clusters/prod/api/v1/pods?limit=1#a:b"),
    (b"1a:b", b"/clusters/prod/api/v1/1a:b"),
    (b"_a:b", b"/clusters/prod/api/v1/_a:b"),
    (b"a b:c", b"/clusters/prod/api/v1/a b:c"),
    (b"web+a-1.0:b", None),
    (b"/\thub", b"/clusters/prod/hub"),
    (b"wss://hub.example/clusters/other/exec", b"/clusters/prod/clusters/other/exec"),
    (b"WS://elsewhere.example/exec", None),
    (b"https://a:b%20c@hub.example/x", b"/clusters/prod/x"),
    (b"https://hub.example:65535/x", None),
    (b"/..\\..\\clusters/other/api?\\", b"/clusters/prod/..%5C..%5Cclusters/other/api?\\"),
    (b"..\\..\\other", b"/clusters/prod/api/v1/..%5C..%5Cother"),
    (b"https://hub.example:/clusters/other/api", b"/clusters/prod/clusters/other/api"),
    (b"https://hub.example:0443/clusters/other/api", b"/clusters/prod/clusters/other/api"),
    (b"https://hub.example./clusters/other/api", b"/clusters/prod/clusters/other/api"),
    (b"https://hub.example:8443/api", None),
    (b"https://192.0.2.1/api", None),
    (b"https://[2001:db8::1]:8443/api", None),
    # No host, or one in another notation: to some it is this one.
    (b"///clusters/other/api", None),
    (b"///hub.example/clusters/other/api", None),
    (b"https:///clusters/other/api", None),
    (b"//\\hub.example/clusters/other/api", None),
    (b"https://:443/clusters/other/api", None),
    (b"https://user@/clusters/other/api", None),
    (b"https://./clusters/other/api", None),
    (b"https://hub.example../clusters/other/api", None),
    (b"https://hub%2eexample/clusters/other/api", None),
    ("https://hub\u3002example/clusters/other/api".encode(), None),
    (b"https://hub.example:44x/clusters/other/api", None),
    (b"https://a@b@hub.example/clusters/other/api", None),
    (b"https://a<b@hub.example/clusters/other/api", None),
    # To browsers the host ends at the backslash, and to Python's what is behind it is the host.
    (b"https://elsewhere.example\\@hub.example/clusters/other/api", None),
    (b"//elsewhere.example\\@hub.example/clusters/other/api", None),
    (b"https://hub.example\\@elsewhere.example/", None),
    (b"https://hub.example\\..\\clusters/other/api", None),
    # Some take a port by its last 16 bits.
    (b"https://hub.example:65536/x", None),
    (b"https://hub.example:4294967739/x", None),
    (b"https://0x7f.1/api", None),
    (b"https://127.0.0.0xAf/api", None),
    (b"https://hub.0x/api", None),
    (b"https://2130706433/api", None),
    (b"https://[::ffff:127.1]/api", None),
    (b"mailto:a@b", None),
    (b"https:/hub.example/x", None),
    (b"HTTP:hub.example", None),
    (b"wss:/hub.example/x", None),
]


@pytest.mark.parametrize(("location", "expected"), LOCATIONS)
def test_a_location_stays_under_the_prefix_of_its_cluster(location, expected):
    head = client_answer(answer((b"location", location), (b"x-a", b"1"), status=302))
    assert head.header_values(b"location") == ([] if expected is None else [expected])
    assert ResponseHead.decode(head.encode()) == head


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        *LOCATIONS,
        # Without a prefix the second slash would begin a host.
        (b"https://hub.example//elsewhere.example/x", None),
        (b"/.//elsewhere.example/x", None),
        (b"/x/..//elsewhere.example/x", None),
        (b"/%2e//elsewhere.example/x", None),
        (b"..//../..//elsewhere.example/x", None),
    ],
)
def test_on_a_clusters_own_host_a_location_leads_to_that_host_and_to_no_other(location, expected):
    head = answer((b"location", location), (b"x-a", b"1"), status=302)
    located = hub_response_head(head, b"", b"/api/v1/pods?limit=1", b"hub.example:443").header(b"location")
    assert (located is None) == (expected is None)
    if located is not None:
        # The hub's own prefix is a path of the API server there, as any other.
        assert located == expected.removeprefix(b"/clusters/prod") or located.startswith(b"/clusters/prod/")
        assert re.match(rb"/(?![/\\])", located)
        joined = urlsplit(urljoin("https://hub.example/api/v1/pods", located.decode("latin-1")))
        assert joined.netloc == "hub.example"


def test_a_relative_location_begins_where_the_path_of_its_target_ends() -> None:
    head = answer((b"location", b"x"))
    for target in (b"/api/v1/pods", b"/api/v1/", b"/api/v1/pods?a=/b?c=/d"):
        located = hub_response_head(head, b"/clusters/prod", target, b"hub")
        assert located.header(b"location") == b"/clusters/prod/api/v1/x"


@pytest.mark.parametrize(
    ("host", "location"),
    [
        (b"192.0.2.1:443", b"https://192.0.2.1/clusters/other/api"),
        (b"[2001:db8::1]", b"https://[2001:DB8:0::1]:443/clusters/other/api"),
        (b"[::ffff:192.0.2.1]", b"https://[::ffff:c000:201]/clusters/other/api"),
        (b"192.0.2.1", b"https://[::ffff:192.0.2.1]/clusters/other/api"),
        (b"hub:8443", b"https://HUB:08443/clusters/other/api"),
        (b"hub:80", b"http://hub/clusters/other/api"),
    ],
)
def test_a_location_at_the_hub_is_known_however_its_host_is_written(host: bytes, location: bytes) -> None:
    head = hub_response_head(answer((b"location", location)), b"/clusters/prod", b"/", host)
    assert head.header(b"location") == b"/clusters/prod/clusters/other/api"
    # Without an unambiguous host in the request, no location can be compared with it.
    for unknown in (b"127.1", None):
        head = hub_response_head(answer((b"location", location)), b"/clusters/prod", b"/", unknown)
        assert head.header(b"location") is None


@pytest.mark.parametrize("end", [b"", b"x", b"@", b"@c!", b".", b"]"])
@pytest.mark.parametrize(
    "start", [b"a:0", b"a:1", b"a", b"0x", b"a.", b"1.", b"a-", b"[", b"[:", b"a@", b"a@b:0", b"%"]
)
def test_the_longest_host_is_read_in_no_time(start: bytes, end: bytes) -> None:
    # Each of them takes long where two parts of a pattern can share out what one of them has.
    long = start + start[-1:] * (LOCATION_BYTES_MAX - 100) + end
    for host in (b"hub.example", b"[2001:db8::1]:8443"):
        head = answer((b"location", b"https://" + long + b"/"))
        relay_response_head(head, host)
        hub_response_head(head, b"/clusters/prod", b"/", host)


def test_of_several_locations_none_is_passed_on() -> None:
    # Joined by a comma, as many clients do it, it is one path that its dots lead out of the prefix.
    out_of_it = b"a:/../../../../../clusters/other/api"
    several = answer((b"location", b"/x"), (b"x-a", b"1"), (b"location", out_of_it), status=302)
    for passed in (
        hub_response_head(several, b"/clusters/prod", b"/api/v1/pods", b"hub"),
        loopback_response_head(several, b"hub", b""),
    ):
        assert passed.headers == ((b"x-a", b"1"),)


def test_what_http_1_0_had_for_a_location_is_not_passed_on() -> None:
    head = answer((b"uri", b"/clusters/other/api"), (b"x-a", b"1"), status=302)
    for passed in (
        hub_response_head(relay_response_head(head, b"api"), b"/clusters/prod", b"/", b"hub"),
        loopback_response_head(head, b"hub", b""),
    ):
        assert passed.headers == ((b"x-a", b"1"),)


def test_a_path_of_the_api_server_is_no_host_at_the_hub() -> None:
    head = answer((b"location", b"https://10.0.0.1:443//elsewhere.example/x"))
    relayed = relay_response_head(head, b"10.0.0.1:443")
    passed = hub_response_head(relayed, b"/clusters/prod", b"/api/v1/pods", b"hub")
    assert passed.header(b"location") == b"/clusters/prod//elsewhere.example/x"


def test_a_loopback_proxys_answers_lead_to_no_other_cluster_and_nowhere_else() -> None:
    def location(value: bytes) -> bytes | None:
        head = answer((b"location", value))
        return loopback_response_head(head, b"hub.example", b"/clusters/prod").header(b"location")

    assert location(b"/clusters/prod/api?x") == b"/clusters/prod/api?x"
    assert location(b"https://hub.example/clusters/prod/api") == b"/clusters/prod/api"
    for other in (
        b"/clusters/production/api",
        b"https://hub.example/clusters/other/api",
        b"https://127.0.0.1:40123/clusters/other/api",
        b"https://elsewhere.example/clusters/prod/x",
        b"//elsewhere.example/x",
        b"x",
    ):
        assert location(other) is None


@pytest.mark.parametrize("part", [b"/a", b"/.", b"/..", b"/%2e%2E", b"a/", b"/?a", b"//hub.example/a"])
def test_a_location_is_not_longer_than_a_server_would_take(part):
    def location(size: int) -> bytes | None:
        return client_answer(answer((b"location", (part * size)[:size]), status=302)).header(b"location")

    assert (location(LOCATION_BYTES_MAX) or b"").startswith(b"/clusters/prod/")
    assert location(LOCATION_BYTES_MAX + 1) is None


def test_a_location_at_the_api_servers_own_address_becomes_a_path():
    head = relay_response_head(
        answer((b"location", b"https://10.0.0.1:443/openapi/v3?hash=1")), b"10.0.0.1:443"
    )
    assert head.header(b"location") == b"/openapi/v3?hash=1"
    head = relay_response_head(answer((b"location", b"https://other/x")), b"10.0.0.1:443")
    assert head.header(b"location") == b"https://other/x"
