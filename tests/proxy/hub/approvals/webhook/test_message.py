from __future__ import annotations

import json
import unicodedata

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.hub.approvals.request import State
from proxy.hub.approvals.requests.outbox import OPENED
from proxy.hub.approvals.view import View
from proxy.hub.approvals.webhook.message import (
    TEXT_CHARACTERS_MAX,
    Message,
    json_body,
    plain,
    slack_body,
)
from tests.proxy.hub.approvals.webhook.requests import NEW, REQUEST

MESSAGE = Message(OPENED, REQUEST, "robot", "prod", "https://console.example/requests/r1")
HOSTILE = [
    "<!channel> <@U024BE7LH> <#C024BE7LR> <!subteam^S1>",
    "@here @channel @everyone",
    "<https://evil.example|Approve>",
    "https://evil.example/approve",
    "[Approve](https://evil.example)",
    "` *bold* <https://evil.example|x> `",
    "&lt;!channel&gt; &amp;",
    "a\nApproved by `ann`\r\x1b[31m\0",
    "\u202egnp.exe\u2066\u200b\ud800",
    "x" * 100_000,
    "",
]


def of(**changes: object) -> Message:
    new = attrs.evolve(NEW, **changes)
    return attrs.evolve(MESSAGE, request=attrs.evolve(REQUEST, new=new))


def slack_text(message: Message) -> str:
    body = json.loads(slack_body(message))
    (section,) = body["blocks"]
    assert section["text"] == {"type": "mrkdwn", "text": body["text"], "verbatim": True}
    assert (body["unfurl_links"], body["unfurl_media"]) == (False, False)
    text = body["text"]
    assert isinstance(text, str)
    return text


def test_programs_get_the_request_without_difference_and_values():
    assert json.loads(json_body(MESSAGE)) == {
        "type": "request.opened",
        "request": {
            "id": "r1",
            "state": "approved",
            "agent": "robot",
            "cluster": "prod",
            "what": "delete deployments.apps shop/web",
            "reason": "look at deletions",
            "claimed_reason": "",
            "rule": "shop/risky",
            "interactive": False,
            "approvers": ["ann@example.com", "owner"],
            "created_at": "2026-05-28T20:26:40Z",
            "expires_at": "2026-05-28T21:26:40Z",
            "decided_by": "ann@example.com",
            "decided_at": "2026-05-28T20:27:40Z",
            "url": "https://console.example/requests/r1",
        },
    }
    undecided = attrs.evolve(REQUEST, decided_by="", decided_at=None)
    assert json.loads(json_body(attrs.evolve(MESSAGE, request=undecided)))["request"]["decided_at"] is None
    assert b"hunter2" not in json_body(MESSAGE) + slack_body(MESSAGE)


def test_slack_gets_text_and_a_link():
    assert slack_text(MESSAGE).splitlines() == [
        "*Approval requested*",
        "Agent `robot` in cluster `prod`: `delete deployments.apps shop/web`",
        "Rule `shop/risky`: look at deletions",
        "<https://console.example/requests/r1|Show the request>",
    ]


def test_a_stated_reason_is_marked_as_a_claim_and_makes_no_link():
    message = of(view=View(claimed_reason="see <https://evil.example|here> `now`"))
    assert json.loads(json_body(message))["request"]["claimed_reason"] == "see https evil.example here now"
    assert slack_text(message).splitlines()[2] == "Its reason, as claimed: `see https evil.example here now`"


def test_without_a_console_the_command_takes_the_place_of_the_link():
    message = attrs.evolve(MESSAGE, url="")
    assert slack_text(message).endswith("\n`hawse admin request show r1`")
    assert json.loads(json_body(message))["request"]["url"] == ""


@pytest.mark.parametrize("state", [each for each in State if each not in {State.PENDING, State.USING}])
def test_each_event_has_a_heading(state):
    heading = slack_text(attrs.evolve(MESSAGE, event=state)).splitlines()[0]
    assert heading != f"*{state}*"
    assert "{" not in heading


def test_a_decision_names_the_person():
    assert "*Denied by `ann@example.com`*" in slack_text(attrs.evolve(MESSAGE, event=State.DENIED))
    hostile = attrs.evolve(REQUEST, decided_by="` <!channel>")
    heading = slack_text(attrs.evolve(MESSAGE, event=State.DENIED, request=hostile)).splitlines()[0]
    assert heading == "*Denied by `  &lt;!channel&gt;`*"


def test_an_event_of_a_later_version_is_named():
    assert slack_text(attrs.evolve(MESSAGE, event="postponed")).startswith("*postponed*\n")


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("field", ["what", "reason"])
def test_hostile_texts_make_no_link_and_no_mention(text, field):
    check_slack(of(**{field: text}))


@given(st.text(st.sampled_from("<>@!&|`[]()*_~\\\n\r\0\u202e\u200b:/#ahtps."), max_size=80))
def test_no_text_makes_a_link_or_a_mention(text):
    check_slack(of(what=text, reason=text))
    check_slack(attrs.evolve(MESSAGE, agent=text, cluster=text))


def check_slack(message: Message) -> None:
    lines = slack_text(message).split("\n")
    assert len(lines) == 4
    assert lines[3] == "<https://console.example/requests/r1|Show the request>"
    above = "\n".join(lines[:3])
    # Slack reads controls, links and mentions between these two alone.
    assert not set("<>@[]") & set(above)
    assert "://" not in above
    # Each span of code is closed: five texts of others in spans, and none ends its own.
    assert above.count("`") == 8
    assert len(above) < 5 * TEXT_CHARACTERS_MAX * len("&amp;")


@given(st.text(max_size=2000))
def test_plain_text_is_one_visible_line(text):
    line = plain(text)
    assert len(line) <= TEXT_CHARACTERS_MAX
    assert line == line.strip()
    assert not any(unicodedata.category(each)[0] == "C" for each in line)
    assert not set("\n\r\u2028\u2029") & set(line)
    assert plain(line) == line
