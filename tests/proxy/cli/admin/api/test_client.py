"""How `hawse admin` finds its hub, and its errors when it can't."""

from __future__ import annotations

import datetime
import socket
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner, Result

from proxy.cli.admin import admin
from proxy.cli.admin.api.client import _error_text, _plain_text_error
from proxy.cli.output import Object
from proxy.hub.admin.asgi import REQUEST_BODY_BYTES_MAX
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.devca import ensure_certificate
from proxy.hub.home.files.local_admin import AdminEndpoint
from tests.fakes.https import Asked, Reply
from tests.fakes.hub import fake_hub
from tests.proxy.cli.admin.conftest import Hub


def run(*args: str, **env: str) -> Result:
    clean: dict[str, str | None] = dict.fromkeys(
        ("HAWSE_ADMIN_URL", "HAWSE_ADMIN_TOKEN", "HAWSE_ADMIN_CA", "HAWSE_HUB_CONFIG", "HAWSE_HUB_DATA_DIR")
    )
    clean.update(env)
    return CliRunner().invoke(admin, args, env=clean)


def refusal(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("hawse: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


async def test_it_finds_the_hub_by_folder_by_option_and_by_configuration(hub: Hub, tmp_path: Path) -> None:
    config = tmp_path / "hub.toml"
    config.write_text('data_dir = "hub"\n')
    nowhere = {"HAWSE_HUB_DATA_DIR": str(tmp_path / "none")}
    for args, env in (
        ((), None),
        (("--data-dir", str(hub.data.path)), nowhere),
        (("--config", str(config)), {"HAWSE_HUB_DATA_DIR": None}),
        ((), {"HAWSE_HUB_DATA_DIR": None, "HAWSE_HUB_CONFIG": str(config)}),
    ):
        await hub.ok(*args, "team", "list", env=env)  # type: ignore[arg-type]


async def test_it_reaches_a_hub_from_elsewhere(hub: Hub, tmp_path: Path) -> None:
    token = hub.data.admin.token() or ""
    url = hub.url.replace("127.0.0.1", "localhost")
    env = {
        "HAWSE_HUB_DATA_DIR": str(tmp_path / "none"),
        "HAWSE_ADMIN_URL": url,
        "HAWSE_ADMIN_TOKEN": token,
        "HAWSE_ADMIN_CA": str(hub.ca),
    }
    await hub.ok("team", "list", env=env)
    assert "HAWSE_ADMIN_CA" in await hub.fails("team", "list", env={**env, "HAWSE_ADMIN_CA": ""})
    assert "HAWSE_ADMIN_TOKEN" in await hub.fails("team", "list", env={**env, "HAWSE_ADMIN_TOKEN": ""})
    explained = tmp_path / "explained.pem"
    explained.write_text(f"Főtanúsítvány\n{hub.ca.read_text()}", encoding="utf-8")
    await hub.ok("team", "list", env={**env, "HAWSE_ADMIN_CA": str(explained)})
    assert "https://" in await hub.fails("team", "list", env={**env, "HAWSE_ADMIN_URL": "http://localhost:1"})
    for odd in ("https://localhost:99999", "https://localhost:x", "https://[::1", "https://"):
        refused = await hub.fails("team", "list", env={**env, "HAWSE_ADMIN_URL": odd})
        assert refused == "hawse: HAWSE_ADMIN_URL must be https://host:port\n"
    wrong = await hub.fails("team", "list", env={**env, "HAWSE_ADMIN_TOKEN": "hws_x"})
    assert "refused this admin token" in wrong
    assert token not in wrong


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "cannot read {}: No such file or directory"),
        (
            "no certificate",
            "{} holds no certificate in PEM: name the CA file of the hub's certificate",
        ),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA",
            "{} holds a certificate that is damaged: name the CA file of the hub's certificate",
        ),
    ],
)
async def test_a_ca_that_cannot_be_used_is_told_with_its_variable(
    hub: Hub, content: str | None, fault: str, tmp_path: Path
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    env = {"HAWSE_ADMIN_URL": hub.url, "HAWSE_ADMIN_TOKEN": "hws_x", "HAWSE_ADMIN_CA": str(path)}
    refused = await hub.fails("team", "list", env=env)
    assert refused == f"hawse: HAWSE_ADMIN_CA: {fault.format(path)}\n"


def test_what_is_no_admin_listener_is_asked_about() -> None:
    refusal: Object = {"error": {"message": "no \x1b]0;owned\x07"}}
    assert _error_text("https://hub.example", 404, refusal) == "no \\x1b]0;owned\\x07"
    assert _error_text("https://hub.example", 404, {}) == (
        "https://hub.example answered 404: is it the hub's admin listener?"
    )


async def test_what_the_hub_answers_in_words_is_told(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = tmp_path / "big.yaml"
    big.write_text("kind: Policy\n#" + "x" * REQUEST_BODY_BYTES_MAX)
    assert await hub.fails("policy", "apply", str(big)) == (
        f"hawse: {hub.url} answered 413: the request's body is larger than {REQUEST_BODY_BYTES_MAX} bytes\n"
    )

    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("proxy.hub.admin.actions.teams.TeamActions.list_all", fail)
    assert await hub.fails("team", "list") == (
        f"hawse: {hub.url} answered 500: Internal Server Error; see the hub's log\n"
    )


@pytest.mark.parametrize("answer", [b"x", b"[]", b"[" * 100_000], ids=["text", "list", "deep"])
def test_what_is_no_object_in_json_is_no_hubs_answer(tmp_path: Path, answer: bytes) -> None:
    ca = tmp_path / "ca.pem"
    with fake_hub("") as other:
        other.reply = lambda _: (200, {}, answer)
        ca.write_text(other.ca_pem)
        environment = {"HAWSE_ADMIN_URL": other.url, "HAWSE_ADMIN_CA": str(ca), "HAWSE_ADMIN_TOKEN": "hws_x"}
        line = refusal(run("team", "list", **environment))
    assert line == f"hawse: {other.url} does not answer like a hub's admin API (status 200)\n"


@pytest.mark.parametrize(
    "command", [("team", "show", "a\udcff"), ("policy", "explain", "a\udcff", "prod", "list", "pods")]
)
def test_an_argument_that_is_not_utf_8_is_refused_in_one_line(command: tuple[str, ...]) -> None:
    line = refusal(run(*command, HAWSE_ADMIN_URL="https://127.0.0.1:1", HAWSE_ADMIN_TOKEN="hws_x"))
    assert line == "hawse: the argument 'a\\udcff' is not UTF-8\n"


def test_a_change_whose_answer_was_lost_may_have_been_made(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"

    def cut(_: Asked) -> Reply:
        raise ConnectionAbortedError

    with fake_hub("") as other:
        other.reply = cut
        ca.write_text(other.ca_pem)
        environment = {"HAWSE_ADMIN_URL": other.url, "HAWSE_ADMIN_CA": str(ca), "HAWSE_ADMIN_TOKEN": "hws_x"}
        told = {args: refusal(run(*args, **environment)) for args in (("team", "add", "x"), ("team", "list"))}
    cannot = f"hawse: cannot reach the admin API at {other.url}: the connection was cut"
    made = "; to learn whether the change was made, run `hawse audit list --kind admin.action` there"
    assert told == {("team", "add", "x"): f"{cannot}{made}\n", ("team", "list"): f"{cannot}\n"}


def test_a_hub_that_stands_still_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.cli.admin.api.client.TIMEOUT_S", 0.05)
    ca = tmp_path / "ca.pem"
    ca.write_text(trustme.CA().cert_pem.bytes().decode())
    with socket.create_server(("127.0.0.1", 0)) as still:
        url = f"https://127.0.0.1:{still.getsockname()[1]}"
        environment = {"HAWSE_ADMIN_URL": url, "HAWSE_ADMIN_CA": str(ca), "HAWSE_ADMIN_TOKEN": "hws_x"}
        line = refusal(run("team", "add", "x", **environment))
    why = "no answer within 0 s; see the hub's log"
    assert line == f"hawse: cannot reach the admin API at {url}: {why}\n"


@pytest.mark.parametrize("answer", [b"<html>", b"a\nb", b"", b"\xff\x1b"])
def test_a_page_is_not_shown(answer: bytes) -> None:
    assert _plain_text_error("https://hub.example", 502, answer) == (
        "https://hub.example does not answer like a hub's admin API (status 502)"
    )


async def test_another_certificate_at_the_pinned_address_is_not_spoken_to(hub: Hub, tmp_path: Path) -> None:
    other = DataDir.open(tmp_path / "other")
    files = ensure_certificate(other.tls_dir, (), datetime.datetime.now(datetime.UTC))
    hub.data.admin.write_endpoint(AdminEndpoint(hub.url, files.certificate.read_text()))
    assert "not trusted" in await hub.fails("team", "list")


@pytest.mark.parametrize("token", ["hws_secret\nhws_secret", "hws_secr\u00e9t"])
def test_a_token_that_is_no_header_is_refused_without_showing_it(token: str) -> None:
    line = refusal(run("team", "list", HAWSE_ADMIN_URL="https://127.0.0.1:1", HAWSE_ADMIN_TOKEN=token))
    assert line.startswith("hawse: HAWSE_ADMIN_TOKEN is not an admin token")
    assert "secr" not in line


def test_a_machine_without_a_hub_is_told_what_to_do(tmp_path: Path) -> None:
    line = refusal(run("team", "list", HAWSE_HUB_DATA_DIR=str(tmp_path / "none")))
    assert "start `hawse hub`" in line
    assert "HAWSE_ADMIN_URL" in line


def test_a_folder_that_cannot_be_looked_into_is_told_so() -> None:
    line = refusal(run("team", "list", HAWSE_HUB_DATA_DIR="x" * 300))
    assert line.endswith(
        "/admin.json: File name too long: name the hub's data folder with --data-dir, "
        "or set HAWSE_ADMIN_URL and HAWSE_ADMIN_TOKEN\n"
    )


def test_a_hub_that_does_not_run_is_told_so(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path / "hub")
    data.admin.make_token()
    files = ensure_certificate(data.tls_dir, (), datetime.datetime.now(datetime.UTC))
    # Port 1 of loopback: nothing listens there.
    data.admin.write_endpoint(AdminEndpoint("https://127.0.0.1:1", files.certificate.read_text()))
    line = refusal(run("team", "list", HAWSE_HUB_DATA_DIR=str(data.path)))
    assert "nothing listens at https://127.0.0.1:1" in line


def test_a_token_open_to_others_is_not_used(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path / "hub")
    token = data.admin.make_token()
    data.admin.write_endpoint(AdminEndpoint("https://127.0.0.1:1", "x"))
    data.admin.token_file.chmod(0o644)
    line = refusal(run("team", "list", HAWSE_HUB_DATA_DIR=str(data.path)))
    assert "chmod 600" in line
    assert token not in line


def test_a_faulty_configuration_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "hub.toml").write_text("orgg = 1")
    result = run("--config", str(tmp_path / "hub.toml"), "team", "list")
    assert result.exit_code == 1
    assert result.stderr.startswith(
        "hawse: the hub's configuration has faults:\n  orgg: no such key (did you mean org?)\n"
    )


def test_help_needs_no_hub() -> None:
    for args in ((), ("team",), ("agent",), ("agent", "key"), ("cluster",), ("relay",), ("token",), ("hub",)):
        result = run(*args, "--help", HAWSE_HUB_DATA_DIR="/nonexistent")
        assert result.exit_code == 0
        assert "Usage" in result.output


@pytest.mark.parametrize(
    "args", [("team", "add"), ("agent", "add", "x"), ("none",), ("cluster", "add", "x", "--mode", "y")]
)
def test_usage_errors_exit_2(args: tuple[str, ...]) -> None:
    assert run(*args).exit_code == 2
