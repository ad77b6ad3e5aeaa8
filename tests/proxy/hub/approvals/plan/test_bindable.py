from __future__ import annotations

import pytest

from proxy.hub.approvals.plan.bindable import check_bindable
from proxy.hub.approvals.plan.query import PAIRS_MAX
from proxy.hub.approvals.plan.refusal import CannotAskError
from tests.proxy.hub.approvals.plan.calls import ASK, INTERACTIVE, POD, Asked

PODS = b"/api/v1/namespaces/shop/pods"
# One call a line: upgraded or not (+), method, target.
EXACT = """
- GET /api/v1/namespaces/shop/pods/p
- HEAD /api/v1/namespaces/shop/pods/p
- GET /api/v1/namespaces/shop/pods
- GET /api/v1/namespaces/shop/pods?limit=500&watch=false&watch=0&continue=
- GET /api/v1/namespaces/shop/pods/p/log
- GET /api/v1/namespaces/shop/pods/p/log?follow=false&tailLines=5
- GET /api/v1/namespaces/shop/pods/p/log?follow=FALSE
- POST /api/v1/namespaces/shop/pods
- DELETE /api/v1/namespaces/shop/pods
- DELETE /api/v1/namespaces/shop/pods?resourceVersion=
- GET /api/v1/namespaces/shop/pods?resourceVersion=0
- DELETE /api/v1/namespaces/shop/pods/p
- PATCH /apis/apps/v1/namespaces/shop/deployments/web/scale
- POST /api/v1/namespaces/shop/serviceaccounts/s/token
- POST /api/v1/namespaces/shop/pods/p/eviction
- POST /some/path
- GET /healthz
- MKCOL /api/v1/namespaces/shop/pods/p
+ GET /api/v1/namespaces/shop/pods/p/exec?command=ls
+ POST /api/v1/namespaces/shop/pods/p/exec?command=ls&stdout=true&stderr=true
+ POST /api/v1/namespaces/shop/pods/p/exec?command=stdin&command=tty&stdin=false&tty=0
+ POST /api/v1/namespaces/shop/pods/p/exec?command=watch&command=--follow&follow=1&watch=1
- GET /api/v1/namespaces/shop/pods/p/exec?command=ls
"""
UNSEEN = """
+ POST /api/v1/namespaces/shop/pods/p/exec?command=sh&stdin=true
+ GET /api/v1/namespaces/shop/pods/p/exec?command=sh&stdin=1
+ GET /api/v1/namespaces/shop/pods/p/exec?command=sh&stdin=t
+ GET /api/v1/namespaces/shop/pods/p/exec?command=sh&stdin=TRUE
+ GET /api/v1/namespaces/shop/pods/p/exec?command=sh&stdin=
+ GET /api/v1/namespaces/shop/pods/p/exec?command=sh&stdin
+ GET /api/v1/namespaces/shop/pods/p/exec?command=sh&stdin=no
+ GET /api/v1/namespaces/shop/pods/p/exec?command=sh&stdin=fal%C5%BFe
+ GET /api/v1/namespaces/shop/pods/p/exec?command=sh&s%74din=1
+ GET /api/v1/namespaces/shop/pods/p/exec?stdin=false&stdin=true&command=sh
+ GET /api/v1/namespaces/shop/pods/p/exec?stdin=true&stdin=false&command=sh
+ GET /api/v1/namespaces/shop/pods/p/exec?command=sh&tty=true
- POST /api/v1/namespaces/shop/pods/p/exec?command=sh&tty=true
+ POST /api/v1/namespaces/shop/pods/p/attach
- GET /api/v1/namespaces/shop/pods/p/attach?stdin=false
+ POST /api/v1/namespaces/shop/pods/p/portforward
+ GET /api/v1/namespaces/shop/pods/p/portforward?ports=80
+ GET /apis/subresources.example.com/v1/namespaces/shop/pods/p/exec?command=ls
+ GET /apis/subresources.example.com/v1/namespaces/shop/machines/m/console
+ GET /api/v1/namespaces/shop/pods/p
- GET /api/v1/namespaces/shop/services/s/proxy
- GET /api/v1/namespaces/shop/services/s:80/proxy/x?watch=1&continue=a&follow=1
+ GET /api/v1/namespaces/shop/pods/p/proxy/x
- POST /api/v1/nodes/n/proxy/run/shop/p/c?cmd=ls
- GET /api/v1/proxy/namespaces/shop/pods/p/x
- DELETE /api/v1/proxy/nodes/n
- GET /apis/example.com/v1/namespaces/shop/things/t/proxy
"""
# Each with a word of the refusal.
REFUSED = """
watch GET /api/v1/namespaces/shop/pods?watch=true
watch GET /api/v1/namespaces/shop/pods?watch
watch GET /api/v1/namespaces/shop/pods?watch=false&watch=1
watch GET /api/v1/namespaces/shop/pods?w%61tch=1
watch HEAD /api/v1/namespaces/shop/pods?watch=1
watch GET /api/v1/namespaces/shop/pods/p?watch=1
watch GET /api/v1/watch/namespaces/shop/pods
watch GET /api/v1/watch/namespaces/shop/pods/p
watch DELETE /api/v1/watch/namespaces/shop/pods/p
watch GET /some/path?watch=1
log GET /api/v1/namespaces/shop/pods/p/log?follow=true
log GET /api/v1/namespaces/shop/pods/p/log?follow=1
log GET /api/v1/namespaces/shop/pods/p/log?follow
log GET /api/v1/namespaces/shop/pods/p/log?follow=t&tailLines=1
log GET /api/v1/namespaces/shop/pods/p/log?%66ollow=yes
log GET /api/v1/namespaces/shop/pods/p/log?follow=false&follow=true
log HEAD /api/v1/namespaces/shop/pods/p/log?follow=true
page GET /api/v1/namespaces/shop/pods?limit=500&continue=abc
page GET /api/v1/namespaces/shop/pods?continue=&continue=abc
page GET /api/v1/namespaces/shop/pods?%63ontinue=abc
page DELETE /api/v1/namespaces/shop/pods?continue=abc
version DELETE /api/v1/namespaces/shop/pods?labelSelector=a&resourceVersion=1&resourceVersionMatch=Exact
version DELETE /api/v1/namespaces/shop/pods?resourceVersion=&resource%56ersion=0
"""


def calls(lines: str) -> list[tuple[str, Asked]]:
    split = [line.split() for line in lines.strip().splitlines()]
    return [(mark, Asked(method.encode(), target.encode(), mark == "+")) for mark, method, target in split]


@pytest.mark.parametrize(("mark", "asked"), calls(EXACT))
def test_exact_calls_need_nothing(mark, asked):
    assert check_bindable(asked.info, ASK)
    assert check_bindable(asked.info, INTERACTIVE)


@pytest.mark.parametrize(("mark", "asked"), calls(UNSEEN))
def test_calls_with_unseen_bytes_need_the_rules_field(mark, asked):
    assert not check_bindable(asked.info, INTERACTIVE)
    with pytest.raises(CannotAskError, match="`interactive: true`") as refused:
        check_bindable(asked.info, ASK)
    assert refused.value.status == 403
    # What the agent can do itself.
    with_input = b"/exec?" in asked.target and b"example.com" not in asked.target
    assert ("leave out -i and -t" in refused.value.reason) == with_input


@pytest.mark.parametrize(("word", "asked"), calls(REFUSED))
@pytest.mark.parametrize("ask", [ASK, INTERACTIVE])
def test_calls_that_go_on_are_refused(word, asked, ask):
    with pytest.raises(CannotAskError, match=rf"{word} .*cannot be approved") as refused:
        check_bindable(asked.info, ask)
    assert refused.value.status == 403


@pytest.mark.parametrize(
    "query", [b"a=1;b=2", b"a;b=1", b"stdin=true;", b"a=%zz", b"%=1", b"a=%e", b"watch=1;"]
)
def test_a_query_that_readers_differ_about_is_refused(query):
    with pytest.raises(CannotAskError, match="servers read differently") as refused:
        check_bindable(Asked(target=POD + b"?" + query).info, INTERACTIVE)
    assert refused.value.status == 400


def test_a_query_of_many_pairs_is_refused():
    pairs = b"&".join([b"command=x"] * PAIRS_MAX)
    assert check_bindable(Asked(target=POD + b"/exec?" + pairs, upgrade=True).info, ASK)
    with pytest.raises(CannotAskError, match=f"{PAIRS_MAX + 1} parameters"):
        check_bindable(Asked(target=POD + b"/exec?a=1&" + pairs, upgrade=True).info, ASK)
