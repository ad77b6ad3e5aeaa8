"""`hawse connect` as an agent runs it, and the clients that it is for: kubectl, and three of Python."""

from __future__ import annotations

import base64
import ctypes
import http.client
import json
import os
import select
import shlex
import signal
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.apiserver import DISCOVERY
from tests.fakes.terminal import on_terminal
from tests.system.chain import Chain
from tests.system.connecting import Running, connected
from tests.system.homes import add_agent
from tests.system.waiting import wait_until
from tests.system.world import NAMESPACE, POD, USER, World, run

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(120)]
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module", params=["tunnel", "direct"])
def connect(request: pytest.FixtureRequest, world: World) -> Iterator[Running]:
    with connected(world.agent, request.param) as running:
        yield running


def test_kubectl_does_through_it_what_it_does_straight(connect: Running, world: World) -> None:
    assert stat.S_IMODE(connect.kubeconfig.stat().st_mode) == 0o600
    whoami = connect.kubectl("auth", "whoami", "-o", "json")
    assert whoami.code == 0, whoami.err
    assert json.loads(whoami.out)["status"]["userInfo"]["username"] == USER
    for spdy in (False, True):
        done = connect.kubectl("exec", POD, "--", "sh", "-c", "echo out; echo err >&2; exit 3", spdy=spdy)
        assert (done.code, done.out) == (3, b"out\n"), done.err
        assert done.err.startswith(b"err\n")
    assert connect.kubectl("logs", POD).out == world.kubectl("straight", "logs", POD).out
    assert connect.kubectl("get", "pods", "-o", "name").out == f"pod/{POD}\n".encode()
    refused = connect.kubectl("--as=admin", "get", "pods")
    assert refused.code == 1
    assert b"the identity is agent:probe" in refused.err


def test_a_watch_goes_through_it(connect: Running) -> None:
    name = "connect-watch"
    watch = subprocess.Popen(
        ["kubectl", f"--namespace={NAMESPACE}", "get", "configmaps", "--watch-only", "-o", "name"],
        env={**os.environ, **connect.environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert watch.stdout is not None
        assert connect.kubectl("create", "configmap", name).code == 0
        # Whether the watch has begun is seen by its first line alone.
        for number in range(200):
            assert connect.kubectl("annotate", "configmap", name, f"n={number}", "--overwrite").code == 0
            if select.select([watch.stdout], [], [], 0.2)[0]:
                break
        assert watch.stdout.readline().strip() == f"configmap/{name}"
    finally:
        watch.kill()
        watch.communicate()
        connect.kubectl("delete", "configmap", name)


@pytest.mark.parametrize("sdk", ["kubernetes", "kr8s", "lightkube"])
def test_a_python_client_that_knows_nothing_of_hawse_works_through_it(
    connect: Running, sdk: str, echo_port: int
) -> None:
    done = run([sys.executable, "-m", "tests.system.sdks", sdk, str(echo_port)], in_root(connect.environment))
    assert done.code == 0, done.err.decode()
    check(json.loads(done.out), port_forward=sdk != "lightkube")


@pytest.mark.parametrize("sdk", ["kubernetes", "kr8s", "lightkube"])
def test_a_python_client_works_by_the_plugin_as_well(
    world: World, sdk: str, echo_port: int, tmp_path: Path
) -> None:
    file = tmp_path / "kubeconfig"
    options = [] if sdk == "kubernetes" else ["--user-per-cluster"]
    assert run(["hawse", "kubeconfig", "tunnel", "--output", str(file), *options], world.agent).code == 0
    environment = {**world.agent, "KUBECONFIG": str(file)}
    done = run([sys.executable, "-m", "tests.system.sdks", sdk, str(echo_port)], in_root(environment))
    assert done.code == 0, done.err.decode()
    check(json.loads(done.out), port_forward=sdk != "lightkube")
    # kubectl reads the same file.
    assert run(["kubectl", "--namespace", NAMESPACE, "get", "pods"], environment).code == 0


def in_root(environment: dict[str, str]) -> dict[str, str]:
    return {**environment, "PYTHONPATH": str(ROOT)}


def check(steps: dict[str, object], *, port_forward: bool) -> None:
    assert POD in steps["list"]  # type: ignore[operator]
    assert steps["watch"] == "ADDED"
    assert str(steps["logs"]).strip() == "workbench is up"
    assert sorted(str(steps["exec"]).split()) == ["err", "out"]
    if port_forward:
        assert steps["port-forward"] == "ping"


def test_c40_a_page_or_another_user_gets_nowhere(connect: Running) -> None:
    document = yaml.safe_load(connect.kubeconfig.read_text())
    [cluster] = document["clusters"]
    server = cluster["cluster"]["server"]
    host, _, path = server.removeprefix("https://").partition("/")
    pem = base64.b64decode(cluster["cluster"]["certificate-authority-data"]).decode()
    token = document["users"][0]["user"]["token"]

    def status(**headers: str) -> int:
        connection = http.client.HTTPSConnection(host, context=ssl.create_default_context(cadata=pem))
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request("GET", f"/{path}/api/v1/namespaces/{NAMESPACE}/pods", headers=named)
            return connection.getresponse().status
        finally:
            connection.close()

    good = f"Bearer {token}"
    assert status(authorization=good) == 200
    assert status(authorization=good, origin="https://evil.example") == 403
    assert status(authorization=good, host=f"evil.example:{host.partition(':')[2]}") == 403
    assert status() == 401
    assert status(authorization=good + "x") == 401
    assert host.startswith("127.0.0.1:")


BY_DISCOVERY = """
from kubernetes import config, dynamic
from kubernetes.dynamic.discovery import EagerDiscoverer

client = dynamic.DynamicClient(
    config.new_client_from_config(context="tunnel"), cache_file="discovered", discoverer=EagerDiscoverer
)
client.resources.get(kind="Widget").delete(name="precious", namespace="production")
"""


def test_a_cluster_whose_answers_lead_elsewhere_leads_to_no_other_cluster(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The official library puts a version into the path as it came, and urllib3 resolves the dots in it.
    version = "v1/../../../../direct/apis/apps/v1"
    of_group = {"groupVersion": f"w.example/{version}", "version": version}
    group = {"name": "w.example", "versions": [of_group], "preferredVersion": of_group}
    widgets = {"name": "deployments", "namespaced": True, "kind": "Widget", "verbs": ["delete"]}
    monkeypatch.setitem(DISCOVERY, "/version", {"major": "1", "minor": "37"})
    monkeypatch.setitem(DISCOVERY, "/apis", {"kind": "APIGroupList", "groups": [group]})
    monkeypatch.setitem(DISCOVERY, "/apis/apps/v1", {"kind": "APIResourceList", "resources": [widgets]})
    before = len(chain.server.exchanges)

    with connected(chain.world.agent) as running:
        environment = {**os.environ, **running.environment}
        done = subprocess.run(
            [sys.executable, "-c", BY_DISCOVERY], cwd=tmp_path, env=environment, capture_output=True
        )

    assert b"this token is only for the cluster tunnel" in done.stderr
    asked = [(exchange.method, exchange.target) for exchange in chain.server.exchanges[before:]]
    assert ("GET", "/apis") in asked
    assert [each for each in asked if each[1].startswith("/apis/apps/v1")] == []


@pytest.fixture
def hears_sighup() -> Iterator[None]:
    """A child of these tests hears a SIGHUP, also where they run under nohup(1) themselves."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hears_sighup")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly_and_takes_its_file_along(world: World, number: int, tmp_path: Path) -> None:
    output = tmp_path / "kubeconfig"
    with connected(world.agent, "--output", str(output)) as running:
        assert running.kubeconfig == output
        contexts = [each["name"] for each in yaml.safe_load(output.read_text())["contexts"]]
        assert contexts == ["direct", "tunnel"]
        again = run(["hawse", "connect", "--output", str(output)], world.agent)
        assert (again.code, again.out) == (1, b"")
        assert again.err.startswith(f"hawse: {output} exists already".encode())
        running.process.send_signal(number)
        assert running.process.wait(20) == (130 if number == signal.SIGINT else 0)
        assert not output.exists()


def stop(process: subprocess.Popen[Any]) -> None:
    """Stop the process, and return once it has stopped. A signal before that would not stay pending."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)


def signal_main_thread(process: subprocess.Popen[Any], number: int) -> None:
    """Send the signal to the main thread only.

    One for the whole process goes to any of its threads, so that two of them take two signals in any order.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # The main thread's id is the process's id.
    if libc.tgkill(process.pid, process.pid, number) != 0:
        raise OSError(ctypes.get_errno(), "tgkill")


def test_a_second_signal_does_not_kill_it_at_its_end(world: World) -> None:
    with connected(world.agent, "tunnel") as running:
        # Both signals are pending when it continues, and the lower number is handled first.
        stop(running.process)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal_main_thread(running.process, number)
        running.process.send_signal(signal.SIGCONT)
        assert running.process.wait(20) == 130
        assert not running.kubeconfig.exists()


def test_a_command_is_run_by_it_and_gives_the_status(world: World, tmp_path: Path) -> None:
    cache = world.folder / "agent" / "cache"
    before = set(cache.rglob("kubeconfig-*"))
    script = 'kubectl --namespace work get pods -o name; ls -l "$KUBECONFIG" | cut -c1-10; exit 7'
    done = run(["hawse", "connect", "tunnel", "--", "sh", "-c", script], world.agent)
    assert (done.code, done.out) == (7, f"pod/{POD}\n-rw-------\n".encode()), done.err
    # It may go where it likes.
    output = os.path.relpath(tmp_path / "kubeconfig")
    script = 'cd / && head -n 1 "$KUBECONFIG"'
    elsewhere = run(["hawse", "connect", "tunnel", "--output", output, "--", "sh", "-c", script], world.agent)
    assert (elsewhere.code, elsewhere.out) == (0, b"---\n"), elsewhere.err
    missing = run(["hawse", "connect", "--", "/missing/program"], world.agent)
    assert missing.code == 1
    assert missing.err.startswith(b"hawse: cannot run")
    killed = run(["hawse", "connect", "--", "sh", "-c", "kill -9 $$"], world.agent)
    assert killed.code == 137
    assert set(cache.rglob("kubeconfig-*")) <= before
    assert run(["hawse", "connect", "none"], world.agent).code == 1


# Ends with 10 and how often it was interrupted.
INTERRUPTED = """
import signal, sys
heard, wanted = 0, {signal.SIGINT, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
print("up", flush=True)
while signal.sigwait(wanted) == signal.SIGINT:
    heard += 1
    print("heard", flush=True)
sys.exit(10 + heard)
"""


def test_ctrl_c_interrupts_the_command_once(world: World) -> None:
    argv = ["hawse", "connect", "tunnel", "--", sys.executable, "-c", INTERRUPTED]
    with on_terminal(argv, {**os.environ, **world.agent}) as terminal:
        terminal.read_until(b"up")
        # Or two that come at once would count as one.
        stop(terminal.process)
        terminal.type(b"\x03")
        terminal.read_until(b"heard")
        for number in (signal.SIGTERM, signal.SIGCONT):
            terminal.process.send_signal(number)
        assert terminal.process.wait(20) == 11
    # One that no terminal has sent is passed on.
    environment = {**os.environ, **world.agent}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"heard\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 11


def test_it_goes_on_by_a_new_login_when_the_old_key_is_revoked(world: World, tmp_path: Path) -> None:
    home, made = add_agent(world, "renewed", tmp_path / "home")
    [old] = json.loads(world.admin("agent", "key", "list", "renewed", "--json"))
    new = json.loads(world.admin("agent", "key", "add", "renewed", "--json"))
    assert home.login(HAWSE_API_KEY=str(made["api_key"])).code == 0
    with connected(home.environment, "tunnel") as running:
        assert running.kubectl("get", "pods").code == 0
        assert home.login(HAWSE_API_KEY=new["api_key"]).code == 0
        world.admin("agent", "key", "revoke", "renewed", old["id"])
        # A token that is new is not replaced at once; and on a busy machine each kubectl takes seconds.
        wait_until(lambda: running.kubectl("get", "pods").code == 0, within_s=60)


def test_its_own_token_stands_in_its_file_alone(world: World) -> None:
    with connected(world.agent, "tunnel") as running:
        token = yaml.safe_load(running.kubeconfig.read_text())["users"][0]["user"]["token"]
        assert running.kubectl("get", "pods", "-v=9").code == 0
        arguments = Path(f"/proc/{running.process.pid}/cmdline").read_bytes()
        environment = Path(f"/proc/{running.process.pid}/environ").read_bytes()
        assert token.encode() not in arguments + environment
    for file in world.folder.rglob("*.log"):
        assert token not in file.read_text(), file
    assert shlex.quote(token) == token
