"""Attacks on tokens and identities, with the hub's own signing key in hand where that shows more."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.error import HTTPError

import attrs
import pytest
from click.testing import CliRunner

from proxy.cli.admin import admin
from proxy.cli.hub import hub
from tests.fakes.apiserver import TOKEN, Exchange, certified
from tests.system.chain import JWT, Chain
from tests.system.forgers import (
    TARGET,
    access_forger,
    ask_relay,
    cluster_id,
    dial,
    hello_forger,
    issuer,
    relay_connection,
    relay_forger,
    relay_head,
)
from tests.system.hostile import BAD_PATHS, ambiguous
from tests.system.load import parallel
from tests.system.raw import DEADLINE_S, V5, RawClient, parse
from tests.system.world import GROUP, ORG, TEAM, USER, WAYS, World, run

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(120)]


def with_token(client: RawClient, token: str, target: str = TARGET) -> bytes:
    """A head for the hub under a token of the test's own."""
    lines = [
        f"GET /clusters/{client.way}{target} HTTP/1.1",
        "Host: hub",
        f"Authorization: Bearer {token}",
        "Connection: close",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


@pytest.fixture(params=WAYS)
def client(request: pytest.FixtureRequest, chain: Chain) -> RawClient:
    return chain.client(request.param)


@contextmanager
def nothing_upstream(chain: Chain) -> Iterator[None]:
    """Nothing in the block reaches the API server: no byte, no connection."""
    before = (len(chain.server.received), len(chain.server.connections), chain.server.strangers)
    yield
    assert (len(chain.server.received), len(chain.server.connections), chain.server.strangers) == before


# -- at the relay: C04, C05, C06, C11, C30-C32 ---------------------------------------------------------------


def test_a_forger_can_make_a_token_that_is_in_order(chain: Chain) -> None:
    path, mark = chain.path(lambda exchange: exchange.answer(200, b"in order"))
    token = relay_forger(chain.world).token()
    assert ask_relay(chain.world, relay_head(token, path))[2] == b"in order"
    assert len(chain.server.seen(mark)) == 1


def test_the_relay_refuses_every_token_that_is_not(chain: Chain) -> None:
    forger = relay_forger(chain.world)
    tokens: dict[str, Callable[[], str]] = {
        **forger.bad_forms(),
        **forger.bad_users(),
        **forger.bad_groups("groups", lambda team: f"{ORG}/{team}"),
        "no extras": lambda: forger.token(ext=...),
        "extras that hold a line break": lambda: forger.token(
            ext={"hawse.dev/agent-id": "a\r\nImpersonate-Group: system:masters", "hawse.dev/session": "s"}
        ),
        "an access token": lambda: chain.client("direct").token(),
        "another cluster's": lambda: relay_forger(chain.world, "tunnel").token(),
        "an API key": lambda: chain.world.api_key,
        "the service account's": lambda: TOKEN,
    }
    with nothing_upstream(chain):
        for what, make in tokens.items():
            token = make()
            status, headers, body = ask_relay(chain.world, relay_head(token))
            assert status == 401, what
            _, processed, _ = headers["hawse-relay-failure"].split(";", 2)
            assert processed == "0", what
            assert len(token) < 20 or token.encode() not in body, f"{what}: the token came back"


@pytest.mark.parametrize("authorization", ["", "Basic eDp5", "Bearer", "bearer  x y", "Negotiate abc"])
def test_the_relay_takes_nothing_but_one_bearer_token(chain: Chain, authorization: str) -> None:
    good = relay_head(relay_forger(chain.world).token())
    line = next(line for line in good.split(b"\r\n") if line.startswith(b"Authorization"))
    with nothing_upstream(chain):
        other = f"Authorization: {authorization}".encode() if authorization else b"X-None: 1"
        assert ask_relay(chain.world, good.replace(line, other))[0] == 401
        assert ask_relay(chain.world, good.replace(line, line + b"\r\n" + line))[0] == 401


# C20, C21, C27: the relay does not take the hub's word for a parse


def test_the_relay_refuses_ambiguous_targets_itself(chain: Chain) -> None:
    forger = relay_forger(chain.world)
    with nothing_upstream(chain):
        for path in BAD_PATHS:
            status, headers, _ = ask_relay(chain.world, relay_head(forger.token(), path))
            assert status in (400, 500), path
            assert headers["hawse-relay-failure"].split(";")[1] == "0", path


@pytest.mark.parametrize("method", ["TRACE", "trace", "CONNECT"])
def test_the_relay_refuses_methods_that_echo_or_open_a_tunnel_itself(chain: Chain, method: str) -> None:
    token = relay_forger(chain.world).token()
    with nothing_upstream(chain):
        status, headers, _ = ask_relay(chain.world, relay_head(token, method=method))
        assert status in (400, 500)
        assert headers["hawse-relay-failure"].split(";")[1] == "0"
        assert f"{method} is not served" in headers["hawse-relay-failure"]


def test_the_relay_refuses_ambiguous_framing_itself(chain: Chain) -> None:
    token = relay_forger(chain.world).token()
    follower = relay_head(token)
    with nothing_upstream(chain):
        cases = list(ambiguous(relay_head(token, method="POST")).items())

        def send(number: int) -> bytes:
            with relay_connection(chain.world) as talk:
                talk.send(cases[number][1] + follower)
                return talk.rest()

        # Each takes the second in which what was refused is still read.
        for (what, _), raw in zip(cases, parallel(len(cases), send), strict=True):
            assert parse(raw).status == 400, what
            assert raw.count(b"HTTP/1.1 ") == 1, f"{what}: the bytes behind it were answered too"


def test_the_relay_writes_its_own_identity_headers_whatever_a_hub_sends(chain: Chain) -> None:
    path, mark = chain.path(lambda exchange: exchange.answer())
    forged = [
        "Impersonate-User: system:admin",
        "Impersonate-Group: system:masters",
        "Impersonate-Uid: 0",
        "Impersonate_User: system:admin",
        "X-Remote-User: system:admin",
        "Connection: Impersonate-User, Authorization",
        "Cookie: a=b",
        f"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.{'c2VjcmV0'}",
    ]
    token = relay_forger(chain.world).token()
    assert ask_relay(chain.world, relay_head(token, path, *forged))[0] == 200
    [exchange] = chain.server.seen(mark)
    assert exchange.header("impersonate-user") == [USER]
    assert exchange.header("impersonate-group") == [GROUP]
    assert exchange.header("authorization") == [f"Bearer {TOKEN}"]
    names = {name for name, _ in exchange.fields}
    assert names <= {
        "host",
        "authorization",
        "impersonate-user",
        "impersonate-group",
        "impersonate-extra-hawse.dev%2fagent-id",
        "impersonate-extra-hawse.dev%2fsession",
        "audit-id",
        "x-forwarded-for",
    }
    assert token.encode() not in chain.server.received


# -- at the hub: C04, C05, C06, C30-C32 ----------------------------------------------------------------------


def test_the_hub_refuses_every_token_that_is_not_in_order(chain: Chain, client: RawClient) -> None:
    world = chain.world
    forger = access_forger(world, client.way)
    path, _ = chain.path(lambda exchange: exchange.answer(200, b"in order"))
    assert parse(client.send(with_token(client, forger.token(), path))).body == b"in order"
    other = "direct" if client.way == "tunnel" else "tunnel"
    tokens: dict[str, Callable[[], str]] = {
        **forger.bad_forms(),
        **forger.bad_users(),
        **forger.bad_groups("teams", lambda team: team),
        "another organisation": lambda: forger.token(org="other"),
        "an agent that there is not": lambda: forger.token(agent=str(uuid.uuid4())),
        "a relay token": lambda: relay_forger(world, client.way).token(),
        "a token for the other cluster": lambda: chain.client(other).token(),
        "an API key": lambda: world.api_key,
        "the service account's": lambda: TOKEN,
    }
    with nothing_upstream(chain):
        for what, make in tokens.items():
            token = make()
            answer = parse(client.send(with_token(client, token)))
            assert answer.status == 401, what
            assert json.loads(answer.body)["reason"] == "Unauthorized"
            assert len(token) < 20 or token.encode() not in answer.raw, f"{what}: the token came back"


def test_a_token_whose_names_are_not_the_agents_own_gives_only_the_agents_own(
    chain: Chain, client: RawClient
) -> None:
    """The hub's key in an attacker's hands names another agent and team; the directory knows better."""
    forger = access_forger(chain.world, client.way)
    path, mark = chain.path(lambda exchange: exchange.answer())
    parse(client.send(with_token(client, forger.token(sub="agent:other", teams=["admins"]), path)))
    for exchange in chain.server.seen(mark):
        assert exchange.header("impersonate-user") == [USER]
        assert exchange.header("impersonate-group") == [GROUP]


def test_tokens_of_one_kind_are_nothing_at_the_tunnels_door(chain: Chain) -> None:
    world = chain.world
    hello = hello_forger(world)
    used = hello.token(jti=str(uuid.uuid4()))
    tokens: dict[str, Callable[[], str]] = {
        **{f"hello: {what}": make for what, make in hello.bad_forms().items()},
        "an access token": lambda: chain.client("tunnel").token(),
        "a relay token": lambda: relay_forger(world, "tunnel").token(),
        "an API key": lambda: world.api_key,
        "a subject that is not the issuer": lambda: hello.token(sub="urn:hawse:cluster:other"),
        "a cluster that is not the key's": lambda: hello.token(
            iss=f"urn:hawse:cluster:{cluster_id(world, 'direct')}",
            sub=f"urn:hawse:cluster:{cluster_id(world, 'direct')}",
        ),
    }
    client = chain.client("tunnel")
    for what, make in tokens.items():
        assert dial(client, make()).status == 401, what
    # Valid only once. (Without a HELLO frame behind it, no relay is registered.)
    assert dial(client, used, rest=False).status == 101
    assert dial(client, used).status == 401
    # A hello opens tunnels and is no access token.
    answer = parse(client.send(with_token(client, hello.token(jti="j2"))))
    assert answer.status == 401


# C32: the message names the skew


@pytest.mark.parametrize("age_s", [150, -90])
def test_a_refusal_for_the_clock_names_the_clock_and_the_seconds(chain: Chain, age_s: int) -> None:
    began = time.time()
    relay_token = relay_forger(chain.world).token(age_s=age_s)
    _, headers, body = ask_relay(chain.world, relay_head(relay_token))
    message = json.loads(body)["message"]
    hello = json.loads(dial(chain.client("tunnel"), hello_forger(chain.world).token(age_s=age_s)).body)
    took_s = time.time() - began
    # A token's times are whole seconds, up to one before the moment that it was made in.
    shown = range(90, round(91 + took_s) + 1) if age_s == 150 else range(round(89 - took_s), 91)
    for text in (message, headers["hawse-relay-failure"], hello["message"]):
        assert "clock" in text
        assert any(f" {seconds} s " in text for seconds in shown), text


# -- at enrolment and at minting: C05, C06 -------------------------------------------------------------------

BAD_NAMES = [
    "system:masters",
    "system",
    "a,b",
    "a\n",
    "a\r\nImpersonate-Group: system:masters",
    "\u017fystem",
    "\uff53ystem",
    "Probe",
    "",
    "$(id)",
]


def test_hostile_names_are_refused_at_enrolment(chain: Chain) -> None:
    world = chain.world

    def names() -> list[list[str]]:
        lists = [json.loads(world.admin(kind, "list", "--json")) for kind in ("agent", "team")]
        return [sorted(each["name"] for each in listed) for listed in lists]

    before = names()
    commands = (["agent", "add", "--team", TEAM, "--owner", "tests", "--"], ["team", "add", "--"])
    for name in BAD_NAMES:
        for command in commands:
            done = CliRunner().invoke(admin, [*command, name], env=world.operator)
            # The command has refused it, and has not failed.
            assert isinstance(done.exception, SystemExit), (name, done.exception)
            assert done.exit_code != 0, name
    # What reaches a user of it as a process is no traceback.
    for command in commands:
        result = world.try_admin(*command, BAD_NAMES[0])
        assert result.code != 0
        assert b"Traceback" not in result.err
    assert names() == before


def test_a_hub_does_not_start_for_an_organisation_that_could_be_kubernetes_own(tmp_path: Path) -> None:
    config = tmp_path / "hub.toml"
    for org in ("a,b", "a/b", "", "system", "system:x"):
        config.write_text(f'org = "{org}"\ndata_dir = "{tmp_path / "data"}"\nlisten = "127.0.0.1:0"\n')
        check = CliRunner().invoke(hub, ["--check", "--config", str(config)])
        assert check.exit_code == 2, org
        assert "\n  org: " in check.output, check.output
        assert not (tmp_path / "data").exists()
    # The start makes the same check.
    result = run(["hawse", "hub", "--config", str(config)], {})
    assert result.code == 1
    assert b"org" in result.err
    assert not (tmp_path / "data").exists()


def test_a_name_that_got_into_the_store_is_refused_at_minting(chain: Chain) -> None:
    """Write access to the store is not enough: no name there makes the hub speak for `system:masters`."""
    world, client = chain.world, chain.client("tunnel")
    world.admin("team", "add", "victims", "--cluster", "tunnel")
    made = world.admin("agent", "add", "victim", "--team", "victims", "--owner", "tests", "--json")
    victim = attrs.evolve(client, world=attrs.evolve(world, api_key=json.loads(made)["api_key"]))
    assert victim.token()

    def rename(table: str, old: str, new: str) -> None:
        with closing(sqlite3.connect(world.folder / "hub" / "hub.db", timeout=DEADLINE_S)) as store, store:
            changed = store.execute(f"UPDATE {table} SET name = ? WHERE name = ?", (new, old))
            assert changed.rowcount == 1
        # Any change by an operator makes the hub look at its store again.
        world.admin("team", "add", f"look-again-{uuid.uuid4().hex[:8]}")

    for table, good, bad in [
        ("agents", "victim", "system:masters"),
        ("agents", "victim", "victim\n"),
        ("teams", "victims", "x,system:masters"),
        ("teams", "victims", "\u017fystem"),
    ]:
        rename(table, good, bad)
        try:
            with pytest.raises(HTTPError) as refused:
                victim.token()
            assert refused.value.code == 401, bad
            refused.value.close()
            # It affects no other agent, and the operator gets a warning.
            assert client.token()
            assert ascii(bad)[1:-1] in chain.logs()["hub.log"]
        finally:
            rename(table, bad, good)
        assert victim.token()


# -- C29: nothing of the environment has a say ---------------------------------------------------------------


def test_the_relays_environment_does_not_lead_its_token_elsewhere(chain: Chain, client: RawClient) -> None:
    path, mark = chain.path(lambda exchange: exchange.answer(200, b"straight"))

    # The chain's relays have had HTTPS_PROXY, .netrc and SSL_CERT_FILE since they began.
    assert client.get(path).body == b"straight"

    [exchange] = chain.server.seen(mark)
    assert exchange.header("authorization") == [f"Bearer {TOKEN}"]
    assert exchange.header("proxy-authorization") == []
    assert chain.trap.visitors == 0


def test_an_api_server_that_only_the_environment_trusts_gets_no_byte(chain: Chain, client: RawClient) -> None:
    path, _ = chain.exec_path(lambda exchange: exchange.answer())
    pinned = chain.server.context
    chain.server.context = certified(chain.foreign)
    received = len(chain.server.received)
    # An upgrade would take a kept connection.
    chain.server.hang_up()
    try:
        with client.talk(client.upgrade(path, V5)) as talk:
            answer = talk.answer()
    finally:
        chain.server.context = pinned
    assert answer.status == 503
    assert len(chain.server.received) == received
    assert TOKEN not in answer.raw.decode("latin-1")


# -- C37: secrets stay where they are ------------------------------------------------------------------------


def secrets_of(world: World) -> dict[str, str]:
    """Every credential of the world, by what it is."""
    found = {"API key": world.api_key, "service account token": TOKEN}
    found["pepper"] = (world.folder / "hub" / "pepper").read_text().strip()
    found["admin token"] = (world.folder / "hub" / "admin-token").read_text().strip()
    files = [*(world.folder / "hub" / "keys").glob("*.pem"), world.folder / "relay-tunnel" / "relay.key"]
    for file in files:
        found[str(file)] = file.read_text().splitlines()[1]
    return found


def assert_no_secret(world: World, where: str, text: str) -> None:
    for what, secret in secrets_of(world).items():
        assert secret not in text, f"{what} stands in {where}"
    assert JWT.search(text) is None, f"a signed token stands in {where}"


def test_no_secret_is_said_by_anybody(chain: Chain, client: RawClient) -> None:
    world, way = chain.world, client.way

    def watch(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        exchange.wait_gone()

    path, _ = chain.path(watch)
    with world.popen(way, "get", "--raw", path) as kubectl:
        assert kubectl.stdout is not None
        assert kubectl.stdout.read(3) == b"one"
        lines = [read(file) for file in Path("/proc").glob("[0-9]*/cmdline")]
        kubectl.terminate()
        kubectl.communicate()
    assert_no_secret(world, "a command line", "\n".join(lines))

    spoken = world.kubectl(way, "-v=9", "get", "--raw", path + "/none?", "--request-timeout=1s")
    assert_no_secret(world, "kubectl -v=9", (spoken.out + spoken.err).decode())
    refused = world.kubectl(way, "-v=9", "--as=system:admin", "get", "--raw", "/version")
    assert refused.code == 1
    assert_no_secret(world, "kubectl -v=9 of a refusal", (refused.out + refused.err).decode())
    # What fails, fails without a secret in its words.
    environment = {**world.agent, "HAWSE_API_KEY": world.api_key + "x"}
    failed = run(["hawse", "login", "--hub", issuer(world)], environment)
    assert failed.code != 0
    assert_no_secret(world, "a failed login", (failed.out + failed.err).decode())


def test_logs_and_trail_hold_no_secret(chain: Chain, client: RawClient) -> None:
    # Something of each kind that could leave a trace: an answer, a refusal, a failed authentication.
    client.get("/version")
    client.get("/version", "Impersonate-User: system:admin")
    parse(client.send(with_token(client, chain.world.api_key)))
    parse(client.send(with_token(client, relay_forger(chain.world).token(age_s=90))))
    ask_relay(chain.world, relay_head(relay_forger(chain.world).token(age_s=90)))
    for name, text in chain.logs().items():
        assert_no_secret(chain.world, name, text)
    trail = chain.world.folder / "hub" / "audit.db"
    with closing(sqlite3.connect(f"file:{trail}?mode=ro", uri=True)) as store:
        tables = [name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            rows = store.execute(f'SELECT * FROM "{table}"').fetchall()
            text = "\n".join(str(column) for row in rows for column in row)
            assert_no_secret(chain.world, f"the trail's table {table}", text)


def test_the_hubs_data_folder_is_its_owners_alone(chain: Chain) -> None:
    folder = chain.world.folder / "hub"
    for path in [folder, *folder.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path
    # The agent's own files, and what `cluster add` wrote, alike.
    for file in [
        *(chain.world.folder / "agent" / "config").rglob("*"),
        *(chain.world.folder / "agent" / "cache").rglob("*"),
        *(chain.world.folder / "relay-tunnel").rglob("*"),
    ]:
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file


def read(file: Path) -> str:
    try:
        return file.read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""  # ended meanwhile


def test_an_expired_token_is_told_as_a_login_and_the_next_command_works(
    chain: Chain, client: RawClient
) -> None:
    """Case 89."""
    world = chain.world
    path, _ = chain.path(lambda exchange: exchange.answer(200, b"next"))
    expired = access_forger(world, client.way).token(age_s=61)
    url = f"{issuer(world)}/clusters/{client.way}"
    ca = str(world.folder / "hub" / "tls" / "ca.pem")
    refused = subprocess.run(
        ["kubectl", "--server", url, "--certificate-authority", ca, "--token", expired, "get", "--raw", path],
        capture_output=True,
        env={"PATH": os.environ["PATH"], "KUBECONFIG": "/dev/null", "HOME": "/nonexistent"},
        timeout=DEADLINE_S,
    )
    assert refused.returncode == 1
    assert b"You must be logged in to the server" in refused.stderr
    assert expired.encode() not in refused.stderr
    assert world.kubectl(client.way, "get", "--raw", path).out == b"next"
