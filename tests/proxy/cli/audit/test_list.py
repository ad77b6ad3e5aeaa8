"""`hawse audit list`: its defaults, its filters, and unknown names."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import sys
import termios
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from audit.record import Actor, ActorType, Event, Kind, Phase, Request, Response, Stream, utc
from audit.retention import PrunableStore
from audit.store import AuditStore
from proxy.cli.audit.commands import audit
from proxy.hub.store.store import Store
from tests.audit.events import NOW_S, call


def run(data_dir: Path, *arguments: str) -> Result:
    return CliRunner().invoke(audit, ["list", "--data-dir", str(data_dir), *arguments])


def seqs(result: Result) -> list[int]:
    """The numbers of the listed events, in a table or in JSON, without reads of the trail."""
    lines = [line for line in result.stdout.splitlines() if line[:1] != "S" and "audit.read" not in line]
    return [json.loads(line)["seq"] if line[0] == "{" else int(line.split()[0]) for line in lines]


def event(
    number: int,
    verb: str = "get",
    status: int = 200,
    *,
    resource: str = "pods",
    sub: str = "",
    text: str = "",
) -> Event:
    req = Request("GET", f"/api/{text}", verb, "", "v1", resource, sub, "app" if number % 2 else "web")
    return replace(
        call(phase=Phase.COMPLETE, at_s=NOW_S + number), req=req, resp=Response(status, processed="yes")
    )


def write(folder: Path, *events: Event) -> None:
    with closing(AuditStore(folder / "audit.db")) as store:
        store.append(events)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 events. Each read adds one."""
    folder = tmp_path_factory.mktemp("many")
    write(folder, *(event(number) for number in range(1, 121)))
    return folder


def test_a_person_is_shown_the_newest_50_and_how_to_see_more(many: Path) -> None:
    result = run(many, "--kind", "call")
    assert result.exit_code == 0, result.output
    assert seqs(result) == [*range(71, 121)]
    assert result.stderr == "hawse: showing the newest 50 events: for more use --limit 500 or --limit all\n"


def test_a_limit_is_a_number_or_all_and_is_not_commented(many: Path) -> None:
    for limit, first in (("3", 118), ("all", 1), ("0", 121)):
        result = run(many, "--kind", "call", "--limit", limit)
        assert (seqs(result), result.stderr) == ([*range(first, 121)], "")
    for wrong in ("-1", "some", "99999999999", "1.5", ""):
        result = run(many, "--limit", wrong)
        assert result.exit_code == 2
        assert f"{wrong!r} is neither a number from 0 to 1000000000 nor all" in result.stderr


def test_a_program_is_given_all_of_it(many: Path) -> None:
    result = run(many, "--kind", "call", "--json")
    assert (seqs(result), result.stderr) == ([*range(1, 121)], "")


@pytest.mark.parametrize(
    ("limit", "first"), [([], 2), (["--limit", "3"], 9), (["--json"], 1)], ids=["10", "3", "all, as JSON"]
)
def test_following_begins_with_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: list[str], first: int
) -> None:
    write(tmp_path, *(event(number) for number in range(1, 12)))

    def ended(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("audit.reader.time.sleep", ended)
    assert seqs(run(tmp_path, "--follow", *limit)) == [*range(first, 12)]


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("varied")
    write(
        folder,
        event(1, "get"),
        event(2, "delete", 403),
        event(3, "list", 404, resource="secrets"),
        event(4, "get", 0),
        replace(event(5, "get", 101, sub="exec"), stream=Stream("websocket", ("rm", "-rf", "/Data"))),
        event(6, "lock", resource="agents/keys", text="Prod%20Data"),
        replace(event(7, status=503), actor=Actor(ActorType.AGENT, "other", teams=("ops", "sre"))),
    )
    return folder


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ("--verb delete", [2]),
        ("--verb get,lock", [1, 4, 5, 6, 7]),
        ("--namespace app", [1, 3, 5, 7]),
        ("--namespace app,kube-system --verb get", [1, 5, 7]),
        ("--resource secrets,pods/exec,agents/keys", [3, 5, 6]),
        ("--resource pods", [1, 2, 4, 7]),
        ("--team ops", [7]),
        ("--team sre --status 5xx", [7]),
        ("--status 403,5xx,none", [2, 4, 7]),
        ("--status 1xx", [5]),
        ("--text /data", [5]),
        ("--text DATA", [5, 6]),
        ("--text data --verb lock", [6]),
        ("--text data --limit 1", [6]),
        ("--text data --json", [5, 6]),
        ("--text data --until 2026-09-21T14:13:26Z", [5]),
        ("--since 2026-09-21T14:13:26Z --agent other --cluster prod --status 503", [7]),
    ],
)
def test_filters_narrow_together(varied: Path, arguments: str, found: list[int]) -> None:
    result = run(varied, "--kind", "call", *arguments.split())
    assert result.exit_code == 0, result.output
    assert (seqs(result), result.stderr) == (found, "")


def test_what_was_asked_for_is_recorded(tmp_path: Path) -> None:
    write(tmp_path, event(1))
    run(
        tmp_path,
        *[
            "--verb",
            "get,list",
            "--namespace",
            "a",
            "--resource",
            "pods",
            "--status",
            "4xx",
            "--text",
            "x",
            "-n",
            "all",
        ],
    )
    last = json.loads(run(tmp_path, "--json", "--kind", "audit.read").stdout.splitlines()[0])
    assert last["note"] == ("audit list verb=get,list namespace=a resource=pods status=4xx text=x limit=all")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--verb", "delte"],
            "'delte' is none of get, list, watch, create, update, patch, delete, deletecollection, "
            "post, put, head, options, nor of hawse admin's ",
        ),
        (["--verb", "get,"], "'get,' has an empty name: expected NAME or NAME,NAME"),
        (["--namespace", "App"], "'App' is not a namespace's name, such as kube-system"),
        (["--resource", "Pod"], "'Pod' is not a resource in the API's form, such as pods or pods/log"),
        (["--team", "acme/sre"], "'acme/sre' is not a team's name, without the organisation"),
        (["--status", "40x"], "'40x' is not a status such as 403, a class such as 4xx, or none"),
        (["--status", "600"], "'600' is not a status"),
        (["--text", ""], "expected 1 to 1024 characters, not 0"),
        (["--text", "x" * 1025], "expected 1 to 1024 characters, not 1025"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_those_that_can(
    varied: Path, arguments: list[str], words: str
) -> None:
    result = run(varied, *arguments)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.usefixtures("small_search")
def test_a_text_is_looked_for_in_a_bounded_number_of_events_and_that_is_said(tmp_path: Path) -> None:
    write(tmp_path, *(event(number, text="needle" if number in {1, 8} else "hay") for number in range(1, 10)))
    result = run(tmp_path, "--kind", "call", "--text", "needle")
    assert seqs(result) == [8]
    assert result.stderr == (
        "hawse: searched the text in the newest 5 events that match the other options, back to 2026-09-21 "
        "14:13:25 UTC: to search older ones, narrow with --agent or --until\n"
    )
    result = run(tmp_path, "--text", "needle", "--until", "2026-09-21T14:13:24Z")
    assert (seqs(result), result.stderr) == ([1], "")


@pytest.fixture
def small_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audit.textsearch.TEXT_EVENTS_MAX", 5)


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub's folder: builder and prod are only in its store, robot and dev only in its trail."""
    folder = tmp_path_factory.mktemp("enrolled")
    with closing(Store(folder / "hub.db", org="acme", clock=lambda: NOW_S)) as store:
        store.add_team("platform")
        store.add_agent("builder", owner="ann", teams=["platform"])
    write(folder, replace(event(1), cluster=call(cluster="dev").cluster))
    return folder


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--agent", "bulider"],
            "unknown agent 'bulider': it is neither in the trail nor in the hub's store; did you mean "
            "builder?",
        ),
        (["--agent", "robt"], "did you mean robot?"),
        (["--agent", "agent:robot"], "did you mean robot?"),
        (
            ["--cluster", "devv"],
            "unknown cluster 'devv': it is neither in the trail nor in the hub's store",
        ),
        (["--cluster", "zzz"], "`hawse admin cluster list` lists the names"),
        (["--team", "sre,platfrom"], "unknown team 'platfrom': "),
        (["--agent", "bulider", "--json"], "did you mean builder?"),
        (["--agent", "bulider", "--follow"], "did you mean builder?"),
    ],
)
def test_a_name_that_nothing_is_known_of_is_an_error(
    enrolled: Path, arguments: list[str], words: str
) -> None:
    result = run(enrolled, *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("hawse: unknown ")
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_agent_without_events_is_told_as_that(enrolled: Path) -> None:
    result = run(enrolled, "--agent", "builder")
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "hawse: agent 'builder' is enrolled, but has no events in the trail",
        "hawse: the trail begins at 2026-09-21 14:13:21 UTC",
    ]
    for known in (["--agent", "robot"], ["--cluster", "dev"], ["--team", "sre"], ["--team", "sre,platform"]):
        result = run(enrolled, *known)
        assert (result.exit_code, result.stderr) == (0, "")


def test_names_are_told_without_a_store_too(tmp_path: Path) -> None:
    write(tmp_path, event(1))
    result = run(tmp_path, "--agent", "robto")
    assert (result.exit_code, result.stderr) == (
        1,
        "hawse: unknown agent 'robto': it is not in the trail, and the hub's store can't be read; "
        "did you mean robot?\n",
    )
    assert not (tmp_path / "hub.db").exists()


def test_nothing_that_matches_says_from_when_on_the_trail_speaks(tmp_path: Path) -> None:
    with closing(PrunableStore(tmp_path / "audit.db")) as store:
        store.append([event(number) for number in range(1, 10)])
        store.prune(utc(NOW_S + 5), lambda removal: replace(event(10), kind=Kind.AUDIT_PRUNED))
    begins = "hawse: the trail begins at 2026-09-21 14:13:25 UTC\n"
    result = run(tmp_path, "--verb", "delete")
    assert (result.exit_code, result.stderr) == (0, f"hawse: no event matches\n{begins}")
    plural = "hawse: no event matches (name resources in the plural, as the API does: pods, deployments)\n"
    assert run(tmp_path, "--resource", "pod").stderr == plural + begins
    # There are events, but the trail does not cover the whole span.
    result = run(tmp_path, "--since", "2026-09-21T14:13:20Z", "--kind", "call")
    assert (seqs(result), result.stderr) == ([5, 6, 7, 8, 9], begins)
    assert run(tmp_path, "--since", "2026-09-21T14:13:26Z", "--kind", "call").stderr == ""


def test_a_terminal_of_80_columns_has_no_longer_line(tmp_path: Path) -> None:
    long = replace(event(1, text="x" * 200), note="why " * 100)
    write(tmp_path, long, replace(event(2), stream=Stream("http", close_reason="client gone")))
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    argv = [sys.executable, "-m", "hawse", "audit", "list", "--data-dir", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    subprocess.run(argv, stdout=theirs, env=environment, check=True, timeout=60)
    os.close(theirs)
    lines = os.read(ours, 65536).decode().splitlines()
    os.close(ours)
    assert [len(line) <= 80 for line in lines] == [True] * 5
    assert lines[0].split() == ["SEQ", "UTC", "ACTOR", "CLUSTER", "RESULT", "TOOK", "WHAT"]
    assert lines[1] == "2026-09-21"
    assert lines[2].startswith("1      14:13:21 robot        prod     200    -      get pods -n app")
    assert lines[3].startswith("       why why ")
    assert lines[4].endswith(" get pods -n web (ended by ..")


def test_a_text_that_the_hub_masks_is_masked_in_the_event_of_the_reading(tmp_path: Path) -> None:
    config, folder = tmp_path / "hub.toml", tmp_path / "hub"
    folder.mkdir()
    config.write_text(f'data_dir = "{folder}"\n[audit]\nmask = ["pin-[0-9]+"]\n')
    with closing(AuditStore(folder / "audit.db")) as store:
        store.append([call()])
    CliRunner().invoke(audit, ["list", "--config", str(config), "--text", "my pin-4711"])
    [read] = run(folder, "--json", "--kind", "audit.read").stdout.splitlines()[:1]
    assert json.loads(read)["note"] == "audit list text=my ***"
