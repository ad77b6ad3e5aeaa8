from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from audit.reader import AuditReader
from audit.record import Client, Kind
from audit.search.values import parse_since
from audit.store import AuditStore
from proxy.cli.audit.commands import audit
from proxy.cli.group import build_group
from tests.audit.events import NOW_S, call, failure


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    store = AuditStore(tmp_path / "audit.db")
    event = call(agent="robot", cluster="prod")
    store.append([event, event.completed(event.ts), call(agent="other", cluster="dev", at_s=NOW_S + 60)])
    store.close()
    return tmp_path


def run(*arguments: str, environment: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(audit, ["list", *arguments], env=environment)


def test_the_list_is_a_table_with_a_line_an_event(data_dir: Path) -> None:
    result = run("--data-dir", str(data_dir))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("SEQ")
    assert [line.split()[3] for line in lines[1:4]] == ["agent:robot", "agent:robot", "agent:other"]


def test_reading_is_exactly_one_event_in_the_trail(data_dir: Path) -> None:
    run("--data-dir", str(data_dir), "--agent", "robot", "--since", "2026-01-01T00:00:00Z")
    result = run("--data-dir", str(data_dir), "--json")
    kinds = [json.loads(line)["kind"] for line in result.stdout.splitlines()]
    assert kinds == ["call", "call", "call", "audit.read", "audit.read"]
    first = json.loads(result.stdout.splitlines()[3])
    assert first["actor"]["type"] == "operator"
    assert first["note"] == "audit list agent=robot since=2026-01-01T00:00:00+00:00"


def events(data_dir: Path, *arguments: str) -> list[dict[str, object]]:
    result = run("--data-dir", str(data_dir), "--json", *arguments)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def seqs(data_dir: Path, *arguments: str) -> list[object]:
    return [event["seq"] for event in events(data_dir, *arguments)]


def at(second: int) -> str:
    return datetime.fromtimestamp(NOW_S + second, UTC).isoformat()


def test_filters_narrow(data_dir: Path) -> None:
    assert seqs(data_dir, "--agent", "robot") == [1, 2]
    assert seqs(data_dir, "--cluster", "dev") == [3]
    assert seqs(data_dir, "--agent", "robot", "--cluster", "dev") == []
    assert seqs(data_dir, "--since", at(60), "--agent", "other") == [3]
    assert seqs(data_dir, "--since", at(61), "--agent", "other") == []


def test_until_ends_before_its_time(data_dir: Path) -> None:
    assert seqs(data_dir, "--until", at(60)) == [1, 2]
    assert seqs(data_dir, "--until", at(61)) == [1, 2, 3]
    assert seqs(data_dir, "--since", at(60), "--until", at(61)) == [3]
    assert seqs(data_dir, "--until", at(60), "--limit", "1") == [2]


def test_the_limit_is_of_the_newest_that_match_and_not_of_this_reading(data_dir: Path) -> None:
    assert seqs(data_dir, "--limit", "2") == [2, 3]
    assert seqs(data_dir, "-n", "2") == [3, 4]
    assert seqs(data_dir, "-n", "1", "--agent", "robot") == [2]
    assert seqs(data_dir, "-n", "0") == []
    assert seqs(data_dir, "-n", "99", "--kind", "call") == [1, 2, 3]
    notes = [event["note"] for event in events(data_dir, "--kind", "audit.read")][:5]
    assert notes == [
        "audit list limit=2",
        "audit list limit=2",
        "audit list agent=robot limit=1",
        "audit list limit=0",
        "audit list kind=call limit=99",
    ]


def test_kinds_narrow_to_any_of_them(data_dir: Path) -> None:
    store = AuditStore(data_dir / "audit.db")
    store.append([failure(), replace(call(), kind=Kind.RELAY_NEW)])
    store.close()
    assert seqs(data_dir, "--kind", "auth.failed") == [4]
    assert seqs(data_dir, "--kind", "relay.new", "--kind", "auth.failed") == [4, 5]
    wrong = run("--data-dir", str(data_dir), "--kind", "login")
    assert wrong.exit_code == 2
    assert "'login' is not one of call, preview, " in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--follow", "--until", "1h"], "--until does not go with --follow: use one of them"),
        (
            ["--since", "1h", "--until", "2h"],
            "--since '1h' is not before --until '2h': the span is empty",
        ),
        (
            ["--since", "2h", "--until", "120m"],
            "--since '2h' is not before --until '120m': the span is empty",
        ),
        (["--until", "2h", "--since", "2h"], "--since '2h' is not before --until '2h': the span is empty"),
        (["--until", "soon"], "'soon' is neither an age such as 10m, 2h or 7d, nor a time with a zone, "),
        (["--since", "2026-01-31 08:00"], "'2026-01-31 08:00' is neither an age such as 10m, 2h or 7d, nor "),
        (["--limit", "-1"], "'-1' is neither a number from 0 to 1000000000 nor all"),
    ],
)
def test_what_cannot_be_listed_is_refused_before_it_is_recorded(
    data_dir: Path, arguments: list[str], words: str
) -> None:
    result = run("--data-dir", str(data_dir), *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert seqs(data_dir) == [1, 2, 3, 4]


@pytest.mark.parametrize("follow", [[], ["--follow"]])
def test_ctrl_c_ends_it_without_a_word(
    data_dir: Path, follow: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(AuditReader, "events", interrupted)
    result = CliRunner().invoke(build_group(), ["audit", "list", "--data-dir", str(data_dir), *follow])
    assert (result.exit_code, result.stderr) == (130, "")


def test_the_data_folder_comes_from_the_hubs_configuration(data_dir: Path, tmp_path: Path) -> None:
    config = tmp_path / "hub.toml"
    config.write_text(f'org = "acme"\ndata_dir = "{data_dir}"\n')
    for arguments, environment in (
        (["--config", str(config)], {}),
        ([], {"HAWSE_HUB_CONFIG": str(config)}),
        ([], {"HAWSE_HUB_DATA_DIR": str(data_dir)}),
    ):
        result = run("--agent", "robot", *arguments, environment=environment)
        assert result.exit_code == 0, result.output
        assert len(result.stdout.splitlines()) == 3


def test_what_went_wrong_is_one_line_with_the_next_step(tmp_path: Path) -> None:
    result = run("--data-dir", str(tmp_path))
    assert result.exit_code == 1
    assert result.stderr.startswith("hawse: there is no audit trail at")
    assert "--data-dir" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert run("--config", str(tmp_path / "missing.toml")).stderr.startswith("hawse: the hub's configuration")


def test_a_trail_that_takes_no_event_is_read_with_a_warning(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audit.store.BUSY_TIMEOUT_MS", 20)
    hog = sqlite3.connect(data_dir / "audit.db", isolation_level=None)
    hog.execute("BEGIN IMMEDIATE")
    result = run("--data-dir", str(data_dir), "--json")
    hog.close()
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 3
    assert result.stderr.startswith("hawse: this reading is not recorded: ")
    assert "locked" in result.stderr


@pytest.mark.parametrize("free_blocks", [0, 8])
def test_a_disk_that_is_full_before_anybody_reads_is_one_line(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, free_blocks: int
) -> None:
    disk = list(os.statvfs(data_dir))
    disk[1], disk[4] = 4096, free_blocks
    monkeypatch.setattr("audit.sqlite.os.statvfs", lambda _: os.statvfs_result(disk))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Files can't grow, so SQLite fails as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        results = [
            run("--data-dir", str(data_dir)),
            pruned("--keep=1d", "--yes", "--data-dir", str(data_dir)),
        ]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    path = data_dir / "audit.db"
    for result in results:
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == (
            f"hawse: the audit trail {path} is unavailable: disk I/O error\n"
            if free_blocks
            else f"hawse: the audit trail {path} cannot be opened because its disk is full: free 32 KiB, "
            "or copy the file, and audit.db-wal if it exists, to a folder on another disk\n"
        )


def test_a_hostile_user_agent_reaches_no_terminal(tmp_path: Path) -> None:
    store = AuditStore(tmp_path / "audit.db")
    store.append([replace(call(), client=Client("::1", "\x1b]0;x\x07\u202e"), note="\x1b[2J")])
    store.close()
    for arguments in ([], ["--json"]):
        output = run("--data-dir", str(tmp_path), *arguments).stdout
        assert output.replace("\n", "").isprintable()
        assert output.isascii()


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("90s", timedelta(seconds=90)),
        ("10m", timedelta(minutes=10)),
        ("2h", timedelta(hours=2)),
        ("7d", timedelta(days=7)),
    ],
)
def test_since_takes_an_age(text: str, ago: timedelta) -> None:
    now = datetime(2026, 1, 31, tzinfo=UTC)
    assert parse_since(text, now) == now - ago


def test_since_takes_a_time_with_its_zone_and_nothing_else(data_dir: Path) -> None:
    assert parse_since("2026-01-31T08:00:00+02:00", datetime.now(UTC)) == datetime(2026, 1, 31, 6, tzinfo=UTC)
    for wrong in ("yesterday", "10", "m", "-5m", "2026-01-31T08:00:00", "9999999999d", "999999d"):
        result = run("--data-dir", str(data_dir), "--since", wrong)
        assert result.exit_code == 2, wrong


def test_follow_shows_events_as_they_are_written(data_dir: Path) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "hawse", "audit", "follow", "--json"),
            *("--limit", "1", "--kind", "call", "--data-dir", str(data_dir)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    try:
        # The read's own event shows that the follower has started.
        reader = AuditReader(data_dir / "audit.db")
        while len(reader.query()) < 4:
            assert process.poll() is None
        reader.close()
        store = AuditStore(data_dir / "audit.db")
        store.append([call(agent="late")])
        store.close()
        names = [json.loads(process.stdout.readline())["actor"]["name"] for _ in range(2)]
        assert names == ["other", "late"]
        process.send_signal(2)
        _, stderr = process.communicate(timeout=10)
        assert (process.returncode, stderr) == (130, "")
    finally:
        process.kill()
        process.communicate()


def pruned(*arguments: str) -> Result:
    return CliRunner().invoke(audit, ["prune", *arguments])


def test_a_trail_is_shortened_and_says_so(data_dir: Path, tmp_path: Path) -> None:
    archive = tmp_path / "old.jsonl"
    kept = run("--data-dir", str(data_dir), "--json").stdout.splitlines()
    result = pruned("--keep", "1h", "--yes", "--data-dir", str(data_dir), "--archive", str(archive))
    assert result.exit_code == 0, result.output
    assert archive.read_text().splitlines() == kept[:2]  # the third began what has not ended
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert result.stdout == f"removed 2 events, 1 to 2, sha256={digest}\n"
    left = [json.loads(line) for line in run("--data-dir", str(data_dir), "--json").stdout.splitlines()]
    assert [event["kind"] for event in left] == ["call", "audit.read", "audit.pruned", "audit.read"]
    assert left[2]["actor"]["type"] == "operator"
    assert left[2]["note"] == f"2 events, 1 to 2, sha256={digest} archive={archive}"
    assert pruned("--keep", "1h", "--yes", "--data-dir", str(data_dir)).stdout == "no event is that old\n"


@pytest.mark.parametrize("age", ["9m", "90", "0s", "1y"])
def test_minutes_are_no_age_to_shorten_a_trail_to(data_dir: Path, age: str) -> None:
    result = pruned("--keep", age, "--yes", "--data-dir", str(data_dir))
    assert result.exit_code == 2
    assert f"'{age}' is not an age in days or hours, such as 90d or 36h" in result.stderr
    assert seqs(data_dir) == [1, 2, 3, 4]


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("first_s", [0.0, 60.0])
def test_what_takes_long_shows_at_a_terminal_how_far_it_has_come(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, first_s: float
) -> None:
    monkeypatch.setattr("proxy.cli.progress.FIRST_S", first_s)
    monkeypatch.setattr("proxy.cli.progress.EVERY_S", 0.0)
    monkeypatch.setattr("audit.retention.SLICE_ROWS", 1)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    audit.main(["prune", "--keep=1h", "--yes", "--data-dir", str(data_dir)], standalone_mode=False)
    lines = ["events read: 1 of 2", "events read: 2 of 2", "events removed: 1 of 2", ""]
    shown = [f"\r\033[K{line}" for line in lines] if first_s == 0.0 else []
    assert terminal.getvalue() == "".join(shown)


@pytest.mark.parametrize("age", ["90", "2026-01-31T08:00:00Z", "-1d", "9999999d", "999999d"])
def test_what_is_no_age_removes_nothing(data_dir: Path, age: str) -> None:
    result = pruned(f"--keep={age}", "--yes", "--data-dir", str(data_dir))
    assert result.exit_code == 2
    assert len(run("--data-dir", str(data_dir), "--json").stdout.splitlines()) == 3 + 1


def test_the_archive_is_recorded_with_its_whole_path(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert pruned("--keep=1h", "--yes", "--data-dir", str(data_dir), "--archive=old.jsonl").exit_code == 0
    told = json.loads(run("--data-dir", str(data_dir), "--json").stdout.splitlines()[1])
    assert told["note"].endswith(f" archive={tmp_path / 'old.jsonl'}")


def test_a_trail_that_cannot_be_shortened_is_one_line(data_dir: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (["--data-dir", str(tmp_path / "none")], "name the hub's data folder with --data-dir"),
        (
            ["--data-dir", str(data_dir), "--archive", str(data_dir / "audit.db")],
            f"{data_dir / 'audit.db'} exists already, so nothing is removed: choose another file\n",
        ),
    ):
        result = pruned("--keep", "1d", "--yes", *arguments)
        assert result.exit_code == 1
        assert words in result.output
        assert len(result.output.splitlines()) == 1
    assert not (tmp_path / "none").exists()


def test_a_trail_that_is_there_is_not_asked_for(tmp_path: Path) -> None:
    (tmp_path / "audit.db").write_bytes(b"no database" * 1000)
    for result in (
        pruned("--keep=1d", "--yes", "--data-dir", str(tmp_path)),
        run("--data-dir", str(tmp_path)),
    ):
        assert result.exit_code == 1
        assert "is damaged: file is not a database; stop the hub, move the file" in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_a_folder_that_cannot_be_looked_into_is_one_line() -> None:
    for command in (pruned, run):
        result = command(*(["--keep=1d", "--yes"] if command is pruned else []), "--data-dir", "x" * 300)
        assert result.exit_code == 1
        assert "/database: File name too long" in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_a_folder_that_another_user_keeps_is_told_as_that(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may do everything, so the system call itself must fail.
    def refuse(path: Path, **_: object) -> os.stat_result:
        if path.name != "audit.db":
            return os.stat(path)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(Path, "stat", refuse)
    for result in (
        run("--data-dir", str(data_dir)),
        pruned("--keep=1d", "--yes", "--data-dir", str(data_dir)),
    ):
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == (
            f"hawse: the audit trail {data_dir / 'audit.db'} is unavailable: Permission denied: "
            "run this as the user that the data folder belongs to\n"
        )
