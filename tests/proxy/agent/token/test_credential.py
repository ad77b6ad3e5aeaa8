"""The exec plugin as kubectl runs it: real processes of the real console script."""

from __future__ import annotations

import calendar
import json
import math
import os
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from proxy.agent.local import files
from proxy.agent.local.account import Account, save_account
from proxy.agent.local.errors import AgentError
from proxy.agent.token.credential import cached_token, credential, read_exec_info
from tests.fakes.https import Asked, Reply
from tests.fakes.hub import FakeHub
from tests.proxy.agent.conftest import API_KEY, Home
from tests.proxy.agent.token.exec_info import NO_CLUSTER, V1, exec_info

HAWSE = str(Path(sys.executable).parent / "hawse")


def start(home: Home, info: str | None, *arguments: str) -> subprocess.Popen[str]:
    environment = home.environment | ({} if info is None else {"KUBERNETES_EXEC_INFO": info})
    return subprocess.Popen(
        [HAWSE, "credential", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(home: Home, info: str | None, *arguments: str) -> tuple[int, str, str]:
    process = start(home, info, *arguments)
    stdout, stderr = process.communicate(timeout=30)
    return process.returncode, stdout, stderr


def ask(home: Home, hub: FakeHub, cluster: str = "prod", api_version: str = V1) -> dict[str, str]:
    status, stdout, stderr = run(home, exec_info(hub.url, cluster, api_version))
    assert (status, stderr) == (0, "")
    answer = json.loads(stdout)
    assert (answer["apiVersion"], answer["kind"]) == (api_version, "ExecCredential")
    found = answer["status"]
    assert isinstance(found, dict)
    return found


@pytest.mark.usefixtures("account")
def test_kubectl_gets_a_token_in_its_own_version_that_expires_ten_seconds_early(
    home: Home, hub: FakeHub
) -> None:
    before_s = int(time.time())
    answer = ask(home, hub, api_version="client.authentication.k8s.io/v1beta1")
    assert answer["token"] == "token-1-prod"
    expires_s = calendar.timegm(time.strptime(answer["expirationTimestamp"], "%Y-%m-%dT%H:%M:%SZ"))
    assert before_s + 49 <= expires_s <= time.time() + 49


@pytest.mark.usefixtures("account")
def test_a_second_kubectl_gets_the_same_token_from_the_cache(home: Home, hub: FakeHub) -> None:
    assert ask(home, hub) == ask(home, hub)
    assert hub.token_calls == 1
    assert ask(home, hub, "dev")["token"] == "token-2-dev"


def start_together(home: Home, hub: FakeHub, number: int) -> list[subprocess.Popen[str]]:
    """Start that many plugins; the hub answers the first once all others wait at the lock."""
    released = threading.Event()
    usual = hub.reply

    def reply(asked: Asked) -> Reply:
        released.wait(20)
        hub.reply = usual
        hub.asked.remove(asked)
        return hub.answer(asked)

    hub.reply = reply
    processes = [start(home, exec_info(hub.url)) for _ in range(number)]
    deadline_s = time.monotonic() + 10
    while sum(map(is_at_a_lock, processes)) < number and time.monotonic() < deadline_s:
        time.sleep(0.01)
    released.set()
    return processes


def is_at_a_lock(process: subprocess.Popen[str]) -> bool:
    """Whether the process holds or waits for a lock: it keeps the file open meanwhile."""
    with suppress(FileNotFoundError):
        for link in Path(f"/proc/{process.pid}/fd").iterdir():
            if os.readlink(link).endswith(".lock"):
                return True
    return False


@pytest.mark.usefixtures("account")
def test_parallel_kubectls_make_one_call(home: Home, hub: FakeHub) -> None:
    processes = start_together(home, hub, 8)
    tokens = {json.loads(process.communicate(timeout=30)[0])["status"]["token"] for process in processes}
    assert tokens == {"token-1-prod"}
    assert hub.token_calls == 1


@pytest.mark.usefixtures("account")
def test_parallel_kubectls_share_a_failure_and_the_next_one_asks_again(home: Home, hub: FakeHub) -> None:
    hub.reply = lambda _: FakeHub.refusal(503, "the hub is starting")
    for process in start_together(home, hub, 4):
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == 1
        assert stderr == f"hawse: {hub.url} answered 503: the hub is starting\n"
    assert hub.token_calls == 1
    hub.reply = None
    assert ask(home, hub)["token"] == "token-2-prod"


@pytest.mark.usefixtures("account")
def test_from_its_cache_it_takes_less_than_100_ms_and_imports_nothing_heavy(home: Home, hub: FakeHub) -> None:
    ask(home, hub)
    took_s = []
    # The fastest of several runs, since other tests run on the same cores.
    while len(took_s) < 10 or (min(took_s) >= 0.1 and len(took_s) < 100):
        began_s = time.perf_counter()
        ask(home, hub)
        took_s.append(time.perf_counter() - began_s)
    assert min(took_s) < 0.1
    assert hub.token_calls == 1
    script = (
        "import os, sys; sys.argv = ['hawse', 'credential']; os._exit = sys.exit\n"
        "from proxy.cli.main import main\n"
        "try:\n main()\n"
        "finally:\n print(' '.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=home.environment | {"KUBERNETES_EXEC_INFO": exec_info(hub.url)},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[4],
    )
    assert json.loads(done.stdout)["status"]["token"] == "token-1-prod"
    packages = {module.partition(".")[0] for module in done.stderr.split()}
    assert packages.isdisjoint(
        {"click", "trio", "cryptography", "ssl", "attr", "attrs", "yaml", "http", "jwt"}
    )


@pytest.mark.usefixtures("account")
def test_what_lies_on_the_disk_is_the_owners_alone(home: Home, hub: FakeHub) -> None:
    ask(home, hub)
    for file in home.files():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    cache = next(file for file in home.files() if file.name.endswith("_prod.json"))
    assert API_KEY not in cache.read_text()


def set_since(entry: dict[str, float], back_s: float) -> dict[str, float]:
    """The cache as it would be if the clock had been set back this far since."""
    return entry | {name: entry[name] + back_s for name in ("until", "started")}


@pytest.mark.usefixtures("account")
@pytest.mark.parametrize(
    "change",
    [
        "expired",
        "endless",
        "too long",
        "future",
        "back",
        "ahead",
        "before",
        "damaged",
        "deep",
        "open",
        "other login",
    ],
)
def test_a_cache_that_does_not_fit_is_not_used(
    home: Home, hub: FakeHub, account: Account, change: str
) -> None:
    ask(home, hub)
    cache = next(file for file in home.files() if file.name.endswith("_prod.json"))
    entry = json.loads(cache.read_text())
    match change:
        case "expired":
            cache.write_text(json.dumps(entry | {"until": time.time() + 2}))
        case "endless":
            cache.write_text(json.dumps(entry | {"until": math.inf}))
        case "too long":
            cache.write_text(json.dumps(entry | {"until": time.time() + 70}))
        case "future":
            cache.write_text(json.dumps(set_since(entry, 3600)))
        case "back":
            cache.write_text(json.dumps(set_since(entry, 20)))
        case "ahead":
            cache.write_text(json.dumps(set_since(entry, -20)))
        case "before":
            del entry["started"]
            cache.write_text(json.dumps(entry))
        case "damaged":
            cache.write_text("{")
        case "deep":
            cache.write_text("[" * 100_000)
        case "open":
            cache.chmod(0o644)
        case _:
            save_account(home.environment, account._replace(serial="serial-2"))
    assert ask(home, hub)["token"] == "token-2-prod"
    assert ask(home, hub)["token"] == "token-2-prod"


@pytest.mark.usefixtures("account")
@pytest.mark.parametrize("part", ["hawse/tokens", "hawse/tokens/{place}_prod.json"])
def test_a_cache_that_cannot_be_written_costs_a_call_and_not_the_token(
    home: Home, hub: FakeHub, part: str
) -> None:
    # Also for root, which no folder's mode keeps out.
    place = hub.url.removeprefix("https://").replace(":", "_")
    taken = Path(home.environment["XDG_CACHE_HOME"], part.format(place=place))
    if part.endswith(".json"):
        taken.mkdir(parents=True)
    else:
        taken.parent.mkdir(parents=True)
        taken.touch()
    assert ask(home, hub)["token"] == "token-1-prod"
    assert ask(home, hub)["token"] == "token-2-prod"
    hub.reply = lambda _: FakeHub.refusal(503, "the hub is starting")
    assert run(home, exec_info(hub.url))[::2] == (1, f"hawse: {hub.url} answered 503: the hub is starting\n")


def test_a_lock_that_a_stopped_plugin_keeps_costs_a_wait_and_not_the_token(
    home: Home, hub: FakeHub, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LOCK_WAIT_S", 0.05)
    first = cached_token(home.environment, account, "prod").token
    (lock,) = [file for file in home.files() if file.name.endswith("_prod.json.lock")]
    with files.locked(str(lock)):
        assert cached_token(home.environment, account, "prod", refused=first).token == "token-2-prod"


@pytest.mark.usefixtures("account")
def test_a_key_is_sent_to_the_hub_it_is_for_and_to_no_other(home: Home, hub: FakeHub) -> None:
    status, stdout, stderr = run(home, exec_info("https://evil.example"))
    assert (status, stdout) == (1, "")
    # And the message does not ask the agent to send its key there.
    told = f"hawse: not logged in to https://evil.example, only to {hub.url}: do not log in there"
    assert stderr.startswith(told)
    assert "hawse login" not in stderr


@pytest.mark.usefixtures("account")
def test_a_kubectl_that_verifies_nobody_is_given_no_token(home: Home, hub: FakeHub) -> None:
    insecure = {"insecure-skip-tls-verify": True}
    # A cached token is withheld as well.
    assert run(home, exec_info(hub.url))[0] == 0
    status, stdout, stderr = run(home, exec_info(hub.url, **insecure))
    assert (status, stdout) == (1, "")
    assert "so the token could go to an impostor" in stderr
    assert run(home, exec_info(hub.url, **{"insecure-skip-tls-verify": False}))[0] == 0


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (None, "kubeconfig with `hawse kubeconfig --user-per-cluster`"),
        ("{", "not an ExecCredential"),
        ("[]", "not an ExecCredential"),
        pytest.param("[" * 100_000, "not an ExecCredential", id="deep"),
        (NO_CLUSTER, "provideClusterInfo"),
        (NO_CLUSTER, "--user-per-cluster"),
        (exec_info("https://hub.example", api_version="client.authentication.k8s.io/v1alpha1"), "v1alpha1"),
        (exec_info("http://hub.example"), "is not https://<hub>/clusters/<name>"),
        (exec_info("https://hub.example", "../x"), "is not https"),
        (exec_info("https://hub.example", "prod\x1b[2J"), r"\x1b[2J is not https"),
        (exec_info("https://user:secret@hub.example"), "is not https"),
    ],
)
def test_what_is_wrong_is_one_line_on_stderr(home: Home, info: str | None, message: str) -> None:
    status, stdout, stderr = run(home, info)
    assert (status, stdout) == (1, "")
    assert stderr.startswith("hawse: ")
    assert stderr.count("\n") == 1
    assert message in stderr
    assert "Traceback" not in stderr


def test_a_server_behind_a_port_or_a_trailing_slash_is_understood() -> None:
    server = "https://hub.example:443/clusters/prod/"
    info = json.dumps({"apiVersion": V1, "spec": {"cluster": {"server": server}}})
    assert read_exec_info(info) == (V1, server, "https://hub.example", "prod")


@pytest.mark.usefixtures("account")
def test_a_hub_that_never_ends_its_answer_is_given_up(home: Home, hub: FakeHub) -> None:
    hub.delay_s = 1.5
    script = (
        "import sys; from proxy.agent.token import credential as c; "
        "c.DEADLINE_S = 1; sys.exit(c.run_plugin())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=home.environment | {"KUBERNETES_EXEC_INFO": exec_info(hub.url)},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[4],
    )
    assert done.returncode == 1
    assert done.stderr == "hawse: no token from the hub within 1 s: try again\n"


@pytest.mark.parametrize(("stdout", "reason"), [("full", "No space left on device"), ("pipe", "Broken pipe")])
@pytest.mark.usefixtures("account")
def test_an_output_that_takes_no_answer_is_one_line_on_stderr(
    home: Home, hub: FakeHub, stdout: str, reason: str
) -> None:
    if stdout == "full":
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        unread, descriptor = os.pipe()
        os.close(unread)
    environment = home.environment | {"KUBERNETES_EXEC_INFO": exec_info(hub.url)}
    environment.pop("PYTHONUNBUFFERED", None)
    done = subprocess.run(
        [HAWSE, "credential"], env=environment, stdout=descriptor, stderr=subprocess.PIPE, text=True
    )
    os.close(descriptor)
    assert done.stderr == f"hawse: cannot write the credential: {reason}\n"
    assert done.returncode == 1


@pytest.mark.usefixtures("account")
def test_no_secret_is_in_what_it_says(home: Home, hub: FakeHub) -> None:
    hub.reply = lambda _: FakeHub.refusal(401, "not accepted")
    with pytest.raises(AgentError) as error:
        credential(home.environment | {"KUBERNETES_EXEC_INFO": exec_info(hub.url)})
    assert API_KEY not in str(error.value)
    assert API_KEY not in "".join(file.read_text() for file in home.files() if "tokens" in file.parts)


def test_its_help_is_reached_the_long_way(home: Home) -> None:
    status, stdout, _ = run(home, None, "--help")
    assert status == 0
    assert "KUBERNETES_EXEC_INFO" in stdout


def test_a_client_that_says_nothing_is_told_apart_by_an_argument(
    home: Home, account: Account, hub: FakeHub
) -> None:
    server = f"{hub.url}/clusters/dev"
    document = json.loads(credential(home.environment, server))
    assert document["apiVersion"] == "client.authentication.k8s.io/v1beta1"
    assert document["status"]["token"] == "token-1-dev"
    # kubectl's KUBERNETES_EXEC_INFO has priority.
    environment = {**home.environment, "KUBERNETES_EXEC_INFO": exec_info(hub.url, "prod")}
    document = json.loads(credential(environment, server))
    assert (document["apiVersion"][-3:], document["status"]["token"]) == ("/v1", "token-2-prod")
    # Some clients state a version but no cluster.
    document = json.loads(credential({**home.environment, "KUBERNETES_EXEC_INFO": NO_CLUSTER}, server))
    assert (document["apiVersion"], document["status"]["token"]) == (V1, "token-1-dev")
    for wrong in (
        "http://hub.example/clusters/dev",
        "https://hub.example",
        "https://hub.example/clusters/../x",
    ):
        with pytest.raises(AgentError, match="is not https://<hub>/clusters/<name>"):
            credential(home.environment, wrong)
