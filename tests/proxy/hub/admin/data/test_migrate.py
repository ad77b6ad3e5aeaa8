"""A hub's data folder of SQLite that is moved into PostgreSQL."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import attrs
import pytest
import sqlalchemy as sa
from alembic import command as alembic
from alembic.config import Config
from click.testing import CliRunner, Result

from audit.display import json_line
from audit.postgres.moving import CopiedTrail, MovableTrail
from audit.postgres.store import PostgresStore
from audit.record import Response
from audit.store import AuditStore
from auth.keys import SigningKey
from auth.policy.text import Source
from proxy.cli.admin.api.client import Reach
from proxy.cli.admin.hub.migrate import migrate as command
from proxy.hub.admin.data import migrate as module
from proxy.hub.admin.data.migrate import Contents, MigrateError, Target, look, migrate
from proxy.hub.approvals.request import State
from proxy.hub.check import check_hub
from proxy.hub.home.databases import move_file, note_applied, noted_address, noted_applied, noted_move
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.files.local_admin import AdminEndpoint
from proxy.hub.home.files.private_files import DataDirError
from proxy.hub.home.files.seal_file import SealFile
from proxy.hub.home.hub_instances import HubInstances
from proxy.hub.home.trails import open_names
from proxy.hub.identity.replay_postgres import PostgresUses
from proxy.hub.identity.replay_sqlite import SqliteUses
from proxy.hub.identity.replay_store import open_replay_store
from proxy.hub.store import migrations
from proxy.hub.store.clusters import RelayContact
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.engines.postgres_upgrade import upgrade
from proxy.hub.store.entities import Mode
from proxy.hub.store.federation import NewIssuer
from proxy.hub.store.roles import Role
from proxy.hub.store.sealed import write_secrets
from proxy.hub.store.secrets.signing_keys import SigningKeys
from proxy.hub.store.store import Store
from proxy.hub.store.versions.version import Version
from tests.audit.events import call, failure
from tests.audit.trails import old_file
from tests.auth.policies import policy
from tests.fakes.databases import run
from tests.postgres import PostgresServer
from tests.proxy.hub.approvals.requests.bench import grant
from tests.proxy.hub.approvals.requests.bench import opened as opened_requests
from tests.proxy.hub.postgres_hub import config_of, start, variables

# What a database has of its own.
OWN = "version", "trail", "admin_tokens_by_hash", "bundle", "signing_keys"
TRAIL = "trail_events", "trail_parts", "trail_blocks", "trail_open", "trail_late_ends"


@pytest.fixture(scope="module")
def first_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a hub that has stopped, with a row in each table."""
    data = DataDir.open(tmp_path_factory.mktemp("first") / "hub")
    old, new = SigningKey.generate(), SigningKey.generate()
    data.keys.store(SigningKeys(new, (old, new), ("a.b.c",)))
    data.pepper()
    data.admin.make_token()
    data.admin.write_endpoint(AdminEndpoint("https://127.0.0.1:1", "pem"))
    with closing(AuditStore(data.audit_file)) as trail, closing(opened(data.store_file)) as store:
        intent = call()
        trail.append([intent, call(agent="left"), failure()], boot="boot")
        trail.append([intent.completed(intent.ts, resp=Response(200))], boot="boot")
        store.accept_trail(trail.mark)
        fill(store)
        grant(data.store_file, store.snapshot(), "robot")
    return data.path


def opened(location: Path | PostgresAddress) -> Store:
    return Store(location, org="main", clock=lambda: 1000.25)


def fill(store: Store) -> None:
    """Write rows of all tables."""
    store.add_team("sre")
    store.add_team("gone")
    store.add_agent("robot", owner="ada", teams=["sre"], key_hash="h1", key_hint="x")
    store.add_code("robot", "c1")
    store.redeem_code("c1", SigningKey.generate().public)
    store.add_code("robot", "c2")
    issuer = NewIssuer("https://issuer.example")
    store.add_federation("robot", issuer, audience="urn:a:b", claims={"repository_id": "1"}, mutable=True)
    key = SigningKey.generate().public
    cluster = store.add_cluster("prod", relay_key=key, teams=["sre", "gone"], labels={"env": "prod"})
    store.remove_team("gone")
    store.add_cluster("direct", mode=Mode.DIRECT, relay_url="https://relay.example")
    store.relay_connected(RelayContact(cluster, "relay-1", "b", "0.1.0", "192.0.2.7"))
    store.apply_policies([Source(policy("- {id: all, effect: deny, verbs: [get]}"))])
    store.put_local_token("t1")
    store.add_admin_token("ops", "t2", role=Role.VIEWER)


@pytest.fixture
def data(first_folder: Path, tmp_path: Path) -> DataDir:
    """A copy of that folder."""
    shutil.copytree(first_folder, tmp_path / "hub")
    return DataDir(tmp_path / "hub")


@pytest.fixture
def address(in_postgres: PostgresAddress) -> Iterator[PostgresAddress]:
    """A database with empty tables, those of the trail included."""
    with closing(PostgresStore(lambda: in_postgres.url, wait_s=0)):
        empty_trail(in_postgres)
    yield in_postgres
    empty_trail(in_postgres)


def empty_trail(address: PostgresAddress) -> None:
    run(address, *(f"DELETE FROM {table}" for table in TRAIL), "DELETE FROM trail_epochs WHERE epoch > 0")


def ignore(step: str, done: int, total: int) -> None:
    """Show no progress."""


def to(data: DataDir, address: PostgresAddress) -> Target:
    return Target(address, SealFile(data.path / "seal.key"))


def move(data: DataDir, address: PostgresAddress) -> Contents:
    return migrate(data, to(data, address), ignore)


def contents(folder: Path) -> dict[str, bytes]:
    """All files, without the lock, the sealing key, and those that SQLite makes for its readers."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.endswith(("-shm", "-wal", ".lock", ".key"))
    }


def described(location: Path | PostgresAddress) -> dict[str, object]:
    """A snapshot, without what each database has of its own, and the times of last use."""
    with closing(opened(location)) as store:
        snapshot = store.snapshot()
        found = attrs.asdict(snapshot, recurse=False, filter=lambda field, _: field.name not in OWN)
        tokens = snapshot.admin_tokens_by_hash.values()
        found["bundles"] = [store.bundle(row.version) for row in store.bundles()]
        return {**found, "admin_tokens": {token.name: token for token in tokens if token.name != "local"}}


def test_everything_is_moved_and_the_files_stay_as_they_were(data: DataDir, address: PostgresAddress) -> None:
    # As after an earlier move, which was undone.
    note_applied(data, Version(1000, "of another database"))
    before = contents(data.path)
    moved = move(data, address)
    assert all(moved.rows.values()), moved.rows
    assert moved.rows == {**dict.fromkeys(moved.rows, 1), "clusters": 2, "policy_bundles": 2}
    assert moved.events == 4
    assert described(address) == described(data.store_file)
    with closing(open_names(address)) as there, closing(open_names(data.audit_file)) as here:
        printed, copied = (
            "".join(f"{json_line(row)}\n" for row in reader.query()) for reader in (here, there)
        )
    assert copied == printed
    assert moved.sha256 == sha256(printed.encode()).hexdigest()
    after = contents(data.path)
    for name in ("database", "moved", "applied"):
        assert after.pop(name) != before.pop(name, b"")
    assert after == before
    with closing(opened(address)) as store:
        assert noted_applied(data) == store.version()
        secrets = store.sealed_secrets().open(SealFile(data.path / "seal.key").load())
    keys = data.keys.load()
    assert keys is not None
    assert (secrets.pepper, secrets.keys.succession) == (data.existing_pepper(), keys.succession)
    assert [key.kid for key in secrets.keys.public] == [key.kid for key in keys.public]
    assert (noted_address(data), noted_move(data).address) == (address, address)


async def test_a_hub_starts_on_the_copy_and_no_longer_on_the_files(
    data: DataDir, address: PostgresAddress
) -> None:
    move(data, address)
    assert await start(config_of(data.path, address)) == {"sre"}
    assert await start(config_of(data.path, address)) == {"sre"}
    told = (
        r"this hub was moved to PostgreSQL on \d{4}-\d\d-\d\d: set database\.url to "
        rf'"{re.escape(address.url)}"; to go back to {data.store_file}'
    )
    with pytest.raises(DataDirError, match=told) as caught:
        await start(config_of(data.path, None))
    assert check_hub(None, variables(config_of(data.path, None)))[1].faults == [str(caught.value)]
    with pytest.raises(MigrateError, match="was moved to PostgreSQL on"):
        move(data, address)
    # The way back that the message names.
    for file in (move_file(data), data.address_file):
        file.unlink()
    assert await start(config_of(data.path, None)) == {"sre"}


@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [
        pytest.param(module, "copy_rows", True, id="within the transaction"),
        pytest.param(MovableTrail, "copy_to", True, id="when the events are copied"),
        pytest.param(CopiedTrail, "sum_up", True, id="before the commit"),
        pytest.param(module, "note_address", False, id="after the commit"),
        pytest.param(module, "note_move", False, id="between the two files"),
        pytest.param(module, "note_move", True, id="at the end"),
    ],
)
def test_a_migration_that_is_cut_is_repeated(
    data: DataDir,
    address: PostgresAddress,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    after: bool,
) -> None:
    real: Callable[..., object] = getattr(owner, name)

    def cut(*args: object) -> None:
        if after:
            real(*args)
        raise KeyboardInterrupt

    before = contents(data.path)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, cut)
        with pytest.raises(KeyboardInterrupt):
            move(data, address)
    committed = owner is module and name.startswith("note")
    if not committed:
        for table in ("teams", "trail_events"):
            assert run(address, f"SELECT count(*) FROM {table}") == [(0,)]
        assert contents(data.path) == before
    if (name, after) == ("note_move", True):
        with pytest.raises(MigrateError, match="was moved to PostgreSQL on"):
            move(data, address)
    else:
        assert move(data, address).events == 4
    assert run(address, "SELECT count(*) FROM trail_events") == [(4,)]
    assert noted_move(data) is not None


def test_a_copy_whose_sealing_key_is_lost_gets_no_other_key(
    data: DataDir, address: PostgresAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "note_address", cut)
        with pytest.raises(KeyboardInterrupt):
            move(data, address)
    file = data.path / "seal.key"
    kept = file.rename(data.path.parent / "seal.key")
    for why in ("is missing, with the key that opens", "does not open the secrets in the database"):
        told = refused(data, address)
        assert why in told
        assert told.endswith("from the hub that has run on this database, or from a backup")
        with pytest.raises(MigrateError, match=why):
            look(data, to(data, address))
        if not file.exists():
            SealFile(file).load_or_make()
    kept.replace(file)
    assert move(data, address).events == 4


async def test_a_used_token_stays_used(data: DataDir, address: PostgresAddress) -> None:
    now = time.time()
    async with open_replay_store(SqliteUses(data.seen_file)) as store:
        assert await store.enter("hello", "prod", "used", now + 60, now)
        # An expired one is deleted with the next use.
        assert await store.enter("hello", "prod", "expired", now - 1, now)
    move(data, address)
    assert run(address, "SELECT count(*) FROM seen") == [(1,)]
    async with open_replay_store(PostgresUses(lambda: address.url)) as store:
        assert not await store.enter("hello", "prod", "used", now + 60, now)
        assert await store.enter("hello", "prod", "another", now + 60, now)


def test_no_approval_is_moved(data: DataDir, address: PostgresAddress) -> None:
    move(data, address)
    with opened_requests(address) as table, opened_requests(data.store_file) as there:
        (request,) = there.every_open()
        moved = table.get(request.id)
        assert (moved.state, moved.because) == (State.CANCELLED, "the hub was moved to another database")
        assert moved.ended_at is not None
        assert (moved.new, moved.decided_by) == (there.get(request.id).new, request.decided_by)
        assert not table.use(request.id, 0)


def test_used_tokens_that_cannot_be_read_are_named(data: DataDir, address: PostgresAddress) -> None:
    data.seen_file.write_bytes(b"x" * 512)
    assert f"cannot read {data.seen_file}: file is not a database: remove it" in refused(data, address)


def test_a_check_changes_nothing_while_a_hub_runs(data: DataDir, postgres_database: str) -> None:
    empty = PostgresAddress(postgres_database)
    with data.locked(), closing(opened(data.store_file)):
        before = contents(data.path)
        found = look(data, to(data, empty))
        assert contents(data.path) == before
    assert run(empty, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
    # It makes the tables itself.
    assert found == attrs.evolve(move(data, empty), sha256="")


def test_a_role_that_cannot_delete_events_is_enough(
    data: DataDir, postgres: PostgresServer, postgres_database: str
) -> None:
    postgres.execute("CREATE ROLE mover LOGIN")
    owner = PostgresAddress(postgres_database)
    mover = PostgresAddress(postgres_database.replace("postgres@", "mover@"))
    try:
        run(owner, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        assert "run `hawse admin database upgrade --owner postgres`" in refused(data, mover)
        upgrade(owner, "mover")
        assert move(data, mover).events == 4
    finally:
        run(owner, "DROP OWNED BY mover")
        postgres.execute("DROP ROLE mover")


def refused(data: DataDir, address: PostgresAddress) -> str:
    """The error, in one line, of a migration that changes nothing."""
    before = contents(data.path)
    with pytest.raises(MigrateError) as caught:
        move(data, address)
    assert contents(data.path) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_hub_that_runs_or_drains_is_not_moved(
    data: DataDir, address: PostgresAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    with data.locked():
        assert refused(data, address) == f"a hub ({os.getpid()}) runs on {data.path}: stop it first"
    with HubInstances(data.instances_dir).registered("boot"):
        assert "still finishes its open calls" in refused(data, address)
    monkeypatch.setattr(module, "BUSY_TIMEOUT_S", 0)
    # As another command that writes.
    with closing(sqlite3.connect(data.audit_file, isolation_level=None)) as raw:
        raw.execute("BEGIN IMMEDIATE")
        assert refused(data, address) == f"cannot read {data.audit_file}: database is locked"


def test_a_database_that_is_not_empty_is_not_used(data: DataDir, address: PostgresAddress) -> None:
    told = f"the database is not empty, and holds no copy of {data.path}: name an empty one"
    with closing(opened(address)) as store:
        store.add_team("other")
    assert refused(data, address) == told
    with pytest.raises(MigrateError, match="not empty"):
        look(data, to(data, address))
    with closing(opened(address)) as store:
        store.remove_team("other")
    run(address, "DELETE FROM retired_teams")
    with closing(PostgresStore(lambda: address.url, wait_s=0)) as trail:
        trail.append([failure()])
    assert refused(data, address) == told
    assert run(address, "SELECT count(*) FROM trail_events") == [(1,)]


def test_a_database_that_goes_away_has_nothing_of_the_copy(
    data: DataDir, address: PostgresAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'hawse-hub'"

    def end(*args: object) -> None:
        run(address, ends)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_secrets", end)
        told = refused(data, address)
        assert "cannot be copied: terminating connection due to administrator command: nothing was" in told
        assert told.endswith("run this again")
        patch.setattr(module, "copy_used_tokens", end)
        patch.setattr(module, "write_secrets", write_secrets)
        told = refused(data, address)
    assert told.startswith("cannot use the PostgreSQL database: terminating connection due to administrator")
    assert told.endswith(": start the server, or correct database.url")
    assert move(data, address).events == 4


def test_a_folder_of_a_hub_that_was_killed_is_moved(
    data: DataDir, address: PostgresAddress, tmp_path: Path
) -> None:
    with closing(opened(data.store_file)) as store, closing(AuditStore(data.audit_file)) as trail:
        store.add_team("late")
        trail.append([call()], boot="boot")
        # With what is in the -wal files alone.
        killed = DataDir(shutil.copytree(data.path, tmp_path / "killed"))
    assert killed.store_file.with_name("hub.db-wal").stat().st_size
    moved = move(killed, address)
    assert (moved.rows["teams"], moved.events) == (2, 5)


@pytest.mark.parametrize("table", ["teams", "trail_events"])
def test_a_copy_that_differs_is_undone(data: DataDir, address: PostgresAddress, table: str) -> None:
    column = "name" if table == "teams" else "phase"
    run(
        address,
        "CREATE FUNCTION other() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN NEW.{column} := 'other'; RETURN NEW; END $$",
        f"CREATE TRIGGER other BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION other()",
    )
    try:
        told = refused(data, address)
    finally:
        run(address, "DROP FUNCTION other CASCADE")
    what = "teams" if table == "teams" else "sha256"
    assert told.startswith(
        f"the copy in PostgreSQL differs from the data folder in {what}, so nothing was changed"
    )
    assert run(address, f"SELECT count(*) FROM {table}") == [(0,)]


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        (
            "UPDATE teams SET name = printf('%.64c', 'x')",
            "PostgreSQL cannot hold a row of teams: value too long",
        ),
        ("UPDATE teams SET name = char(0)", "PostgreSQL cannot hold a row of teams: PostgreSQL text fields"),
        ("UPDATE agent_keys SET jwk = '{'", "hub.db holds a row that cannot be read: "),
        (
            "UPDATE alembic_version SET version_num = '0007'",
            "hub.db is of another version: start a hub of this",
        ),
        (
            "UPDATE alembic_version SET version_num = '9999'",
            "hub.db is of another version: start a hub of this",
        ),
    ],
)
def test_rows_that_cannot_be_copied_are_named(
    data: DataDir, address: PostgresAddress, statement: str, told: str
) -> None:
    run(data.store_file, statement)
    assert told in refused(data, address)


async def test_a_folder_of_the_first_version_is_moved_after_one_start(
    data: DataDir, address: PostgresAddress
) -> None:
    for file in (data.store_file, data.audit_file):
        file.unlink()
    old_file(data.audit_file, [call()])
    engine = sa.create_engine(f"sqlite:///{data.store_file}", poolclass=sa.NullPool)
    with engine.begin() as connection:
        settings = Config()
        settings.set_main_option("script_location", str(Path(migrations.__file__).parent))
        settings.attributes["connection"] = connection
        alembic.upgrade(settings, "0001")
        connection.execute(sa.text("INSERT INTO teams VALUES ('1', 'first', 1.0)"))
    data.store_file.chmod(0o600)
    assert "hub.db is of another version: start a hub of this version on it once" in refused(data, address)
    assert await start(config_of(data.path, None)) == {"first"}
    assert move(data, address).events == 1
    assert await start(config_of(data.path, address)) == {"first"}


def test_a_folder_that_is_no_hubs_or_lacks_a_part_is_refused(
    data: DataDir, address: PostgresAddress, tmp_path: Path
) -> None:
    told = "is no hub's data folder: name it by --data-dir or HAWSE_HUB_DATA_DIR"
    for name in ("missing", "empty"):
        if name == "empty":
            (tmp_path / name).mkdir(mode=0o700)
        assert refused(DataDir(tmp_path / name), address) == f"{tmp_path / name} {told}"
    data.audit_file.rename(tmp_path / "audit.db")
    assert "audit.db is missing: put it back" in refused(data, address)
    (tmp_path / "audit.db").rename(data.audit_file)
    run(data.audit_file, "DROP TABLE late_ends")
    assert "audit.db is of an earlier version: start a hub of this version on it once" in refused(
        data, address
    )
    (data.path / "pepper").unlink()
    assert "pepper is missing, though this hub has run before" in refused(data, address)


def invoke(data: DataDir, address: PostgresAddress, *options: str) -> Result:
    """Run `hawse admin migrate`."""
    return CliRunner().invoke(command, ["--to", address.url, *options], obj=Reach(None, data.path))


def test_the_command_prints_the_hubs_configuration(data: DataDir, address: PostgresAddress) -> None:
    checked = invoke(data, address, "--check")
    assert checked.exit_code == 0, checked.output
    assert re.search(r"^events +4$", checked.stdout, re.MULTILINE)
    assert checked.stderr.endswith(f"{data.path} can be moved: stop the hub, and run this without --check\n")
    done = invoke(data, address)
    assert done.exit_code == 0, done.output
    assert tomllib.loads(done.stdout) == {"database": {"url": address.url}}
    assert re.search(r": 18 rows and 4 events in [\d.]+ s, \d+ events a second\nput this into", done.stderr)
    with closing(open_names(address)) as trail:
        note = json.loads(trail.query()[-1].body)["note"]
        events = b"".join(json_line(row).encode() + b"\n" for row in trail.query()[:4])
    assert note == f"4 events, sha256={sha256(events).hexdigest()}"
    again = invoke(data, address)
    assert (again.exit_code, again.stdout) == (1, "")
    assert "was moved to PostgreSQL on" in again.stderr


def test_the_command_prints_json(data: DataDir, address: PostgresAddress, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("not asked for\n")
    options = "--json", "--password-file", str(tmp_path / "password")
    checked = json.loads(invoke(data, address, "--check", *options).stdout)
    settings = {"url": address.url, "password_file": str(tmp_path / "password")}
    assert (checked["moved"], checked["events"], checked["database"]) == (False, 4, settings)
    moved = json.loads(invoke(data, address, *options).stdout)
    assert len(moved.pop("sha256")) == 64
    assert moved.pop("seconds") > 0
    assert moved == {**checked, "moved": True}


def test_faults_name_the_options_and_no_secret(data: DataDir, tmp_path: Path) -> None:
    for url, told in (
        (
            "postgresql://hawse:SECRET@localhost/hawse",
            "--to must hold no password: put it into a file, and name ",
        ),
        (
            "postgresql://hawse@db.example/hawse",
            "--to the server must prove its identity: add sslmode=verify",
        ),
        (f"postgresql://hawse@/hawse?host={tmp_path}", ": start the server, or correct --to\n"),
    ):
        done = invoke(data, PostgresAddress(url))
        assert (done.exit_code, done.stdout) == (1, "")
        assert told in done.stderr
        assert "SECRET" not in done.stderr
        assert done.stderr.count("\n") == 1
    done = invoke(data, PostgresAddress("postgresql://hawse@localhost/hawse"), "--password-file", "missing")
    assert "--password-file" in done.stderr
    assert "database.password_file" not in done.stderr


def test_a_line_a_second_shows_how_far_it_is(
    data: DataDir, address: PostgresAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.cli.progress.FIRST_S", 0)
    monkeypatch.setattr("proxy.cli.progress.LOGGED_EVERY_S", 0)
    monkeypatch.setattr("audit.postgres.moving.PAGE_ROWS", 2)
    lines = invoke(data, address).stderr.splitlines()[:6]
    steps = "events read", "events copied", "events compared"
    assert lines == [f"{step}: {done} of 4" for step in steps for done in (2, 4)]
