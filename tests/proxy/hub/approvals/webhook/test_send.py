from __future__ import annotations

import base64
import hashlib
import hmac
import socket
import time

import attrs
import pytest
import trio

from proxy.hub.approvals.webhook import send
from proxy.hub.approvals.webhook.send import Receiver, SendFailedError, signature
from tests.fakes.receiver import running_receiver
from tests.proxy.hub.approvals.webhook.conftest import SECRET


async def refusal(webhook) -> str:
    with pytest.raises(SendFailedError) as failed:
        await Receiver.of(webhook).send("id", b"{}")
    text = str(failed.value)
    # The path and the query of a URL may be a secret.
    assert "hunter2" not in text
    assert "/hook" not in text
    assert "\n" not in text
    return text


async def test_a_message_is_signed_as_standard_webhooks_are(receiver, webhook_at):
    await Receiver.of(webhook_at(receiver)).send("0198-id", b'{"a":1}')
    (posted,) = receiver.posted
    assert (posted.path, posted.body) == ("/hook?key=hunter2", b'{"a":1}')
    assert posted.headers["content-type"] == "application/json"
    assert posted.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert posted.id == "0198-id"
    at = posted.headers["webhook-timestamp"]
    assert abs(int(at) - time.time()) < 60
    signed = f"0198-id.{at}.".encode() + b'{"a":1}'
    expected = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
    assert posted.headers["webhook-signature"] == f"v1,{expected}"


def test_the_signature_is_the_one_of_the_standards_example():
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    expected = b"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == expected


async def test_each_part_changes_the_signature():
    base = signature(SECRET, "a", 1, b"x")
    others = [
        signature(bytes(32), "a", 1, b"x"),
        signature(SECRET, "b", 1, b"x"),
        signature(SECRET, "a", 2, b"x"),
        signature(SECRET, "a", 1, b"y"),
    ]
    assert len({base, *others}) == 5


async def test_a_new_secret_is_used_without_a_restart(receiver, webhook_at):
    webhook = webhook_at(receiver)
    there = Receiver.of(webhook)
    await there.send("id", b"{}")
    webhook.secret_file.write_text("whsec_" + base64.b64encode(bytes(24)).decode())
    await there.send("id", b"{}")
    one, two = (posted.headers["webhook-signature"] for posted in receiver.posted)
    assert one != two
    webhook.secret_file.write_text("hunter2")
    assert "does not hold base64" in await refusal(webhook)
    webhook.secret_file.unlink()
    assert "not a regular file" in await refusal(webhook)
    assert len(receiver.posted) == 2


async def test_slack_needs_no_secret(receiver, webhook_at):
    await Receiver.of(webhook_at(receiver, format="slack", secret_file=None)).send("id", b"{}")
    assert "webhook-signature" not in receiver.posted[0].headers


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(receiver, webhook_at, status, tmp_path):
    with running_receiver(tmp_path) as other:
        receiver.answer = lambda _: (status, {"location": other.url})
        assert "redirects, which is not followed" in await refusal(webhook_at(receiver))
        assert len(receiver.posted) == 1
        assert other.posted == []


@pytest.mark.parametrize("status", [400, 404, 410, 429, 500, 503])
async def test_another_answer_is_a_failure(receiver, webhook_at, status):
    receiver.answer = lambda _: (status, {"retry-after": "0"})
    assert await refusal(webhook_at(receiver)) == f"127.0.0.1 answered {status}"


async def test_a_private_address_has_to_be_allowed(receiver, webhook_at):
    for name in ("127.0.0.1", "localhost"):
        url = f"https://{name}:{receiver.port}/hook"
        said = await refusal(webhook_at(receiver, url=url, allow_private_address=False))
        assert "not a public address (if that is intended, set allow_private_address = true)" in said
    never = await refusal(webhook_at(receiver, url="https://169.254.169.254/hook"))
    assert "the hub never connects to" in never
    assert receiver.posted == []


async def test_a_certificate_of_another_authority_is_refused(receiver, webhook_at, tmp_path):
    with running_receiver(tmp_path) as other:
        assert "cannot reach 127.0.0.1" in await refusal(webhook_at(receiver, ca_file=other.ca_file))
        assert "cannot reach 127.0.0.1" in await refusal(webhook_at(receiver, ca_file=None))
    assert receiver.posted == []


async def test_a_receiver_that_hangs_is_given_up(receiver, webhook_at, monkeypatch):
    monkeypatch.setattr(send, "SEND_S", 0.3)
    receiver.answer = receiver.hang
    began = time.monotonic()
    assert "has not answered within" in await refusal(webhook_at(receiver))
    assert time.monotonic() - began < 5


async def test_what_accepts_and_says_nothing_is_given_up(receiver, webhook_at, monkeypatch):
    monkeypatch.setattr(send, "SEND_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/hook"
        assert "has not answered within" in await refusal(webhook_at(receiver, url=url))


async def test_a_cancelled_send_ends_at_once(receiver, webhook_at):
    receiver.answer = receiver.hang
    with trio.move_on_after(0.3) as scope:
        await Receiver.of(webhook_at(receiver)).send("id", b"{}")
    assert scope.cancelled_caught


def test_a_configuration_does_not_show_its_url(receiver, webhook_at):
    assert "hunter2" not in repr(webhook_at(receiver))
    assert "hunter2" not in repr(attrs.evolve(webhook_at(receiver), name="x"))
