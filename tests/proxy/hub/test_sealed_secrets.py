"""A hub whose signing keys and pepper are in PostgreSQL, sealed by a key from a file."""

from __future__ import annotations

import base64
import re
import shutil
import time
from contextlib import closing
from pathlib import Path

import attrs
import psycopg
import pytest
from cryptography.hazmat.primitives import serialization

from proxy.hub.check import check_hub
from proxy.hub.home.config import HubConfig
from proxy.hub.home.files.private_files import DataDirError, write_private
from proxy.hub.home.files.seal_file import SealFile
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.sealed import HubSecrets
from proxy.hub.store.secrets.sealing import KEY_BYTES
from proxy.hub.store.store import Store
from tests.fakes.databases import run
from tests.proxy.hub.postgres_hub import config_of, opened, start, variables


@pytest.fixture
def config(tmp_path: Path, in_postgres: PostgresAddress) -> HubConfig:
    return config_of(tmp_path / "hub", in_postgres)


def address_of(config: HubConfig) -> PostgresAddress:
    address = config.database.address
    assert address is not None
    return address


async def secrets_of(config: HubConfig) -> HubSecrets:
    async with opened(config) as records:
        return HubSecrets(records.secrets.pepper, records.secrets.ring.current)


def all_text(address: PostgresAddress) -> str:
    """The text of all rows, as a dump has it."""
    found = []
    with psycopg.connect(address.url) as connection:
        query = "SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'"
        for (table,) in connection.execute(query).fetchall():
            found += [row for (row,) in connection.execute(f"SELECT t::text FROM {table} t")]
    return "\n".join(found)


async def test_a_dump_has_no_secret_and_the_public_halves(config: HubConfig) -> None:
    async with opened(config) as records:
        ring = records.secrets.ring
        await ring.rotate()
        secret = [records.secrets.pepper]
        for key in ring.current.all:
            raw = serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
            secret += [
                key.key.private_bytes(*raw),
                base64.b64decode(b"".join(key.to_pem().split(b"\n")[1:-2])),
            ]
        dump = all_text(address_of(config))
        for key in ring.current.all:
            assert key.public.to_jwk()["x"] in dump
        states = run(address_of(config), "SELECT kid, state FROM signing_keys")
        assert {str(kid): state for kid, state in states} == {
            key.kid: ring.current.state_of(key.kid) for key in ring.current.all
        }
    assert len(secret) == 5
    for value in secret:
        standard, urls = base64.b64encode(value).decode(), base64.urlsafe_b64encode(value).decode()
        for text in (value.hex(), standard.rstrip("="), urls.rstrip("=")):
            assert text not in dump
    files = {path.name for path in config.data_dir.iterdir() if path.is_file()}
    assert not files & {"pepper"}
    assert list((config.data_dir / "keys").iterdir()) == []


async def test_another_machine_with_the_sealing_key_goes_on_as_this_hub(
    config: HubConfig, tmp_path: Path
) -> None:
    before = await secrets_of(config)
    await start(config, "sre")
    other = config_of(tmp_path / "other", address_of(config))
    other.data_dir.mkdir(mode=0o700)
    shutil.copy(config.seal_file, other.seal_file)
    assert check_hub(None, variables(other))[1].fatal == []
    assert await start(other) == {"sre"}
    after = await secrets_of(other)
    assert (after.pepper, after.keys.active.kid) == (before.pepper, before.keys.active.kid)


async def test_a_sealing_key_from_elsewhere_is_used_for_a_new_database(
    config: HubConfig, tmp_path: Path
) -> None:
    file = tmp_path / "mounted"
    write_private(file, b"ab" * KEY_BYTES)
    mounted = attrs.evolve(config, database=attrs.evolve(config.database, seal_file=file))
    made = await secrets_of(mounted)
    assert not (config.data_dir / "seal.key").exists()
    write_private(config.data_dir / "seal.key", b"AB" * KEY_BYTES + b"\n\n")
    assert (await secrets_of(config)).pepper == made.pepper


async def test_a_hub_without_its_sealing_key_does_not_start_and_changes_nothing(
    config: HubConfig,
) -> None:
    await start(config)
    config.seal_file.unlink()
    address = address_of(config)
    before, files = all_text(address), sorted(config.data_dir.rglob("*"))
    with pytest.raises(
        DataDirError, match=r"seal\.key is missing, with the key that opens .*: copy it "
    ) as told:
        await start(config)
    _, findings = check_hub(None, variables(config))
    assert findings.faults == [str(told.value)]
    assert all_text(address) == before
    assert sorted(config.data_dir.rglob("*")) == files


async def test_a_first_start_that_was_cut_short_is_repeated(config: HubConfig) -> None:
    config.data_dir.mkdir(mode=0o700)
    write_private(config.seal_file, b"ab" * KEY_BYTES)
    await start(config)
    assert config.seal_file.read_bytes() == b"ab" * KEY_BYTES


async def test_a_running_hub_opens_what_a_new_line_of_the_file_has_sealed(config: HubConfig) -> None:
    async with opened(config) as records:
        old = config.seal_file.read_bytes()
        write_private(config.seal_file, b"ab" * KEY_BYTES + b"\n" + old)
        ring = records.secrets.ring
        # As another hub on this database.
        with closing(Store(address_of(config), org="main", clock=time.time)) as store:
            store.change_signing_keys(ring._published, SealFile(config.seal_file).load())
        assert ring.current.published is None
        await records.directory.change(lambda store: None)
        assert ring.current.published is not None
        assert await ring.rotate() != ring.current.active.kid


async def test_a_running_hub_keeps_its_keys_when_the_rows_do_not_open(
    config: HubConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(config) as records:
        ring = records.secrets.ring
        before = ring.current
        run(address_of(config), "UPDATE signing_keys SET sealed = left(sealed, 40)")
        await records.directory.change(lambda store: store.add_team("sre"))
        assert ring.current is before
        assert "cannot use the signing keys that another hub has changed: the secrets in the" in caplog.text
        with pytest.raises(StoreUnavailableError, match="is damaged, or was sealed for another row"):
            await ring.rotate()
        config.seal_file.unlink()
        with pytest.raises(StoreUnavailableError, match=r"seal\.key is missing"):
            await ring.rotate()
        assert ring.current is before
    assert re.search(r"[\w-]{60}", caplog.text) is None


async def test_a_hub_whose_sealing_key_is_lost_goes_on_as_the_manual_says(
    config: HubConfig, tmp_path: Path
) -> None:
    before = await secrets_of(config)
    assert await start(config, "sre") == {"sre"}
    manual = (Path(__file__).parents[3] / "docs" / "postgres.md").read_text()
    [statements] = re.findall(r"^    (BEGIN; DELETE FROM .*; COMMIT;)$", manual, re.MULTILINE)
    run(address_of(config), *statements.removeprefix("BEGIN; ").removesuffix(" COMMIT;").split("; "))
    moved = attrs.evolve(config, data_dir=tmp_path / "new")
    assert await start(moved) == {"sre"}
    after = await secrets_of(moved)
    assert after.pepper != before.pepper
    assert after.keys.active.kid != before.keys.active.kid
