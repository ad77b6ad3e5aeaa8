from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from urllib.parse import quote, quote_plus, unquote_plus

import attrs
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from auth.policy.ask import Ask
from proxy.hub.approvals.plan.plan import Plan, _framed, plan_of
from proxy.hub.approvals.plan.refusal import CannotAskError
from tests.proxy.hub.approvals.plan.calls import ASK, DEPLOYMENT, INTERACTIVE, JSON, POD, Asked

CASES = settings(max_examples=1000)

# Keys and values close to each other, in several spellings.
TEXTS = st.sampled_from(["", "a", "b", "ab", "a=", "a&", "a;", "a%", "a b", "a+b", "é"])
SPELLED = TEXTS.flatmap(
    lambda text: st.sampled_from([quote(text, safe="").encode(), quote_plus(text).encode()])
)
# `timeout` is not bound, and has its own test.
PAIRS = st.lists(st.tuples(SPELLED, SPELLED), max_size=4)
PATHS = st.builds(
    "/{}/namespaces/{}/{}".format,
    st.sampled_from(["api/v1", "apis/apps/v1", "apis/apps/v1beta1"]),
    st.sampled_from(["a", "ab"]),
    st.sampled_from(
        ["pods", "pods/a", "pods/a/", "pods/ab", "pods/a/exec", "pods/a/status", "deployments/a"]
    ),
)
HEADERS = st.lists(st.sampled_from([b"", b"a", b"a/b", b"a/b;c=d", b"gzip"]), max_size=2).map(tuple)
NAMES = st.sampled_from(["a", "b", "ab", ""])
FIELDS = {
    "method": st.sampled_from([b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE"]),
    "target": st.builds(lambda path, pairs: path.encode() + b"?" + query_of(pairs), PATHS, PAIRS),
    "upgrade": st.booleans(),
    "types": HEADERS,
    "encodings": HEADERS,
    "body": st.binary(max_size=3),
    "agent": NAMES,
    "cluster": NAMES,
}


def query_of(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"&".join([b"%b=%b" % pair for pair in pairs])


@CASES
@given(
    st.builds(Asked, **FIELDS),
    st.sampled_from(sorted(FIELDS)).flatmap(lambda name: FIELDS[name].map(lambda value: {name: value})),
)
def test_any_change_of_one_field_changes_the_plan(asked, change):
    changed = attrs.evolve(asked, **change)
    if "target" in change:
        one, two = (each.target.partition(b"?") for each in (asked, changed))
        # The order of keys does not matter.
        assume(one[0] != two[0] or sorted(one[2].split(b"&")) != sorted(two[2].split(b"&")))
    streams = asked.upgrade and asked.target.startswith(b"/api/v1/") and b"/exec?" in asked.target
    if "method" in change and streams:
        # WebSocket and SPDY are one.
        assume({asked.method, changed.method} != {b"GET", b"POST"})
    assert (changed.digest == asked.digest) == (changed == asked)


@CASES
@given(PAIRS, st.randoms())
def test_sorting_of_keys_alone_does_not_change_the_plan(pairs, random):
    shuffled = list(pairs)
    random.shuffle(shuffled)
    one, two = (Asked(target=POD + b"?" + query_of(each)) for each in (pairs, shuffled))
    if spelled_values(pairs) == spelled_values(shuffled):
        assert one.digest == two.digest
    else:
        assert one.digest != two.digest


def spelled_values(pairs):
    """The pairs as they are, by their keys as Go reads them."""
    values = {}
    for key, value in pairs:
        values.setdefault(unquote_plus(key.decode()), []).append((key, value))
    return values


# Fields that hold what may separate fields.
PARTS = st.lists(st.sampled_from([b"", b"\0", b"\0\0", b"a", b"&", b"\0" * 7 + b"\1", b"\0" * 8]), max_size=5)


@CASES
@given(PARTS, PARTS)
def test_no_two_lists_of_fields_have_the_same_bytes(one, two):
    assert (_framed(one) == _framed(two)) == (one == two)


@CASES
@given(PARTS, st.sets(st.integers(0, 20)), st.sets(st.integers(0, 20)))
def test_no_two_splits_of_the_same_bytes_have_one_plan(parts, cuts_one, cuts_two):
    data = b"".join(parts)
    one, two = (split(data, sorted(cuts)) for cuts in (cuts_one, cuts_two))
    assert (_framed(one) == _framed(two)) == (one == two)
    assert (Asked(types=one).digest == Asked(types=two).digest) == (one == two)


def split(data, cuts):
    ends = [0, *cuts, len(data)]
    return tuple(data[begin:end] for begin, end in pairwise(ends))


@given(st.permutations(["a=1", "b=2", "a=3", "c="]))
def test_the_order_of_keys_does_not_change_the_plan_and_that_of_duplicates_does(pairs):
    sorted_plan = Asked(target=POD + b"?a=1&a=3&b=2&c=").plan()
    in_order = pairs.index("a=1") < pairs.index("a=3")
    assert (Asked(target=POD + b"?" + "&".join(pairs).encode()).plan() == sorted_plan) == in_order


def test_the_order_of_a_key_in_two_spellings_changes_the_plan():
    # Go reads x=1 first in one, and x=2 in the other.
    assert Asked(target=POD + b"?x=1&%78=2").plan() != Asked(target=POD + b"?%78=2&x=1").plan()


@pytest.mark.parametrize("query", [b"?timeout=34s", b"?t%69meout=1", b"?timeout=1&timeout=2", b"?timeout"])
def test_the_timeout_does_not_change_the_plan(query):
    assert Asked(target=POD + query).plan() == Asked().plan()


def test_a_backends_query_is_bound_as_it_is():
    path = b"/api/v1/namespaces/shop/services/s/proxy/x?"
    plans = {
        Asked(target=path + query).plan(INTERACTIVE)
        for query in (b"a=1&b=2", b"b=2&a=1", b"a=1&b=2&timeout=1", b"a=1;b=2", b"a=%zz")
    }
    assert len(plans) == 5


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (b"/api/v1/pods", b"/api/v1/pods/"),
        (POD, b"/api/v1/namespaces/shop/pods/%70"),
        (POD + b"?a", POD + b"?a="),
        (POD + b"?dryRun=All", POD + b"?dryRun=All&dryRun="),
    ],
)
def test_spellings_have_plans_of_their_own(one, two):
    assert Asked(target=one).plan() != Asked(target=two).plan()


def test_head_is_not_get():
    assert Asked(b"HEAD").plan() != Asked(b"GET").plan()


@pytest.mark.parametrize("stream", [b"exec", b"attach", b"portforward"])
def test_websocket_and_spdy_are_one_request(stream):
    target = POD + b"/" + stream + b"?command=ls&command=-l"
    get, post = (Asked(method, target, upgrade=True) for method in (b"GET", b"POST"))
    assert get.plan(INTERACTIVE) == post.plan(INTERACTIVE)
    put = Asked(b"PUT", get.target, upgrade=True)
    assert put.digest != get.digest
    plain = [attrs.evolve(asked, upgrade=False).plan(INTERACTIVE) for asked in (get, post)]
    assert len({get.plan(INTERACTIVE), *plain}) == 3


@pytest.mark.parametrize(
    "target",
    [b"/api/v1/nodes/n/exec", b"/apis/example.com/v1/namespaces/shop/pods/p/exec", POD + b"/resize"],
)
def test_other_upgrades_keep_their_method(target):
    get, post = (Asked(method, target, upgrade=True).plan(INTERACTIVE) for method in (b"GET", b"POST"))
    assert get != post


def test_each_word_of_a_command_is_bound_in_its_order():
    plans = {
        Asked(target=POD + b"/exec?" + query, upgrade=True).plan()
        for query in (
            b"command=rm&command=-r&command=a",
            b"command=rm&command=a&command=-r",
            b"command=rm&command=-r+a",
            b"command=rm&command=-r%20a",
            b"command=rm&command=-r&command=a&container=c",
        )
    }
    assert len(plans) == 5


@pytest.mark.parametrize(
    "bodies",
    [
        # One number to a reader with floating point.
        (b'{"n":9007199254740992}', b'{"n":9007199254740993}'),
        (b'{"a":1,"b":2}', b'{"b":2,"a":1}'),
        (b'{"a":1}', b'{"a": 1}'),
        (b'{"a":"x"}', b'{"\\u0061":"x"}'),
    ],
)
def test_a_body_is_bound_by_its_bytes(bodies):
    one, two = (Asked(b"POST", DEPLOYMENT, types=JSON, body=body).plan() for body in bodies)
    assert one != two


def test_the_parameters_of_a_type_are_bound():
    one, two = (
        Asked(b"POST", types=(each,), body=b"{}") for each in (*JSON, b"application/json; charset=utf-8")
    )
    assert one.plan() != two.plan()


def test_a_body_with_a_delete_is_bound():
    plans = {
        Asked(b"DELETE", types=JSON, body=body).plan()
        for body in (b"", b"{}", b'{"propagationPolicy":"Orphan"}')
    }
    assert len(plans) == 3


def test_protobuf_is_bound_by_its_bytes():
    protobuf = (b"application/vnd.kubernetes.protobuf",)
    one, two = (Asked(b"PUT", types=protobuf, body=b"k8s\0" + byte).plan() for byte in (b"\n", b"\r"))
    assert one != two


def test_a_plan_says_whether_it_is_exact():
    exact = plan_of(Asked().facts, b"", ASK)
    unseen = plan_of(Asked(target=POD + b"/attach", upgrade=True).facts, b"", INTERACTIVE)
    assert (exact.exact, unseen.exact) == (True, False)
    assert len(exact.digest) == 64


def test_a_plan_needs_what_its_parts_need():
    for asked, status in (
        (Asked(target=b"/api/v1/pods?watch=1"), 403),
        (Asked(b"POST", types=JSON, body=b'{"a":1,"a":1}'), 400),
    ):
        with pytest.raises(CannotAskError) as refused:
            asked.plan()
        assert refused.value.status == status


def test_the_body_behind_a_proxy_is_not_read():
    target = b"/api/v1/namespaces/shop/services/s/proxy/x"
    asked = Asked(b"POST", target, types=JSON, encodings=(b"gzip",), body=b'{"a":1,"a":2}')
    assert isinstance(plan_of(asked.facts, asked.body, Ask(("any",), interactive=True)), Plan)
