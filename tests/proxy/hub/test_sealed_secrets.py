"""A hub whose signing keys and pepper are in PostgreSQL, sealed by a key from a file."""

from __future__ import annotations

import base64
import re
import shutil
from pathlib import Path

import attrs
import psycopg
import pytest
from cryptography.hazmat.primitives import serialization

from proxy.hub.check import check_hub
from proxy.hub.home.config import HubConfig
from proxy.hub.home.keyring import KeyRing
from proxy.hub.home.private_files import DataDirError, write_private
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.sealed import HubSecrets
from proxy.hub.store.sealing import KEY_BYTES
from proxy.hub.store.signing_keys import KeyState
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


async def publish(ring: KeyRing) -> None:
    """Make the first step of a rotation alone, as where the hub crashes after it."""
    await ring._change(ring._published)


async def refused(config: HubConfig) -> str:
    """Return why a hub does not start; `--check` says the same, and neither changes anything."""
    address = address_of(config)
    before, files = all_text(address), sorted(config.data_dir.rglob("*"))
    with pytest.raises(DataDirError) as told:
        await start(config)
    _, findings = check_hub(None, variables(config))
    assert findings.faults == [str(told.value)]
    assert "\n" not in str(told.value)
    assert all_text(address) == before
    assert [file for file in sorted(config.data_dir.rglob("*")) if file.name != "hub.lock"] == [
        file for file in files if file.name != "hub.lock"
    ]
    return str(told.value)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "seal.key is missing, with the key that opens the signing keys in the database: copy it from"),
        (b"", "seal.key holds 0 keys, and not 1 to 8; restore it from a backup"),
        (b"00" * 32 + b"\n" + b"5EC4E7" * 9, "seal.key: line 2 is not 32 bytes in hexadecimal; correct it"),
        (b"5EC4E7\xff" * 9, "seal.key: line 1 is not 32 bytes in hexadecimal; correct it"),
        (
            b"5e" * 32,
            "seal.key does not open the secrets in the database: 'secrets/pepper' is sealed by",
        ),
    ],
)
async def test_secrets_that_the_file_does_not_open_start_no_hub(
    config: HubConfig, content: bytes | None, why: str
) -> None:
    await start(config)
    config.seal_file.unlink()
    if content is not None:
        write_private(config.seal_file, content)
    told = await refused(config)
    assert why in told
    assert "5e" * 8 not in told.lower()
    assert "5ec4e7" not in told.lower()


async def test_a_sealing_key_that_others_can_read_starts_no_hub(config: HubConfig) -> None:
    await start(config)
    config.seal_file.chmod(0o640)
    assert "seal.key is open to other users: run chmod 600" in await refused(config)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (
            "UPDATE secrets SET sealed = left(sealed, 40)",
            "'secrets/pepper' is damaged, or was sealed for",
        ),
        ("UPDATE secrets SET sealed = 'x'", "'secrets/pepper' is not a sealed value that this version knows"),
        (
            "UPDATE secrets SET sealed = (SELECT sealed FROM signing_keys)",
            "'secrets/pepper' is damaged",
        ),
        ("UPDATE signing_keys SET kid = 'x'", "'signing_keys/x' is damaged, or was sealed for another row"),
        (
            "UPDATE signing_keys SET sealed = (SELECT sealed FROM secrets)",
            "is damaged, or was sealed for another",
        ),
        ("UPDATE signing_keys SET state = 'retiring'", "signing_keys has 0 active and 0 published keys"),
        ("DELETE FROM signing_keys", "signing_keys has 0 active and 0 published keys"),
        ("DELETE FROM secrets", "secrets/pepper is missing"),
        ("DELETE FROM signing_keys; DELETE FROM secrets", "has no signing keys, though a hub has run on it"),
    ],
)
async def test_rows_that_no_hub_has_written_start_no_hub(config: HubConfig, damage: str, why: str) -> None:
    await start(config)
    run(address_of(config), damage)
    told = await refused(config)
    assert why in told
    assert told.endswith("restore a backup")


async def test_two_keys_whose_rows_are_exchanged_start_no_hub(config: HubConfig) -> None:
    async with opened(config) as records:
        await records.secrets.ring.rotate()
    run(
        address_of(config),
        "UPDATE signing_keys k SET sealed = o.sealed FROM signing_keys o WHERE o.kid <> k.kid",
    )
    assert "is damaged, or was sealed for another row: restore a backup" in await refused(config)


async def test_a_first_start_that_was_cut_short_is_repeated(config: HubConfig) -> None:
    config.data_dir.mkdir(mode=0o700)
    write_private(config.seal_file, b"ab" * KEY_BYTES)
    await start(config)
    assert config.seal_file.read_bytes() == b"ab" * KEY_BYTES


async def test_a_new_sealing_key_on_the_first_line_seals_all_at_the_next_start(config: HubConfig) -> None:
    async with opened(config) as records:
        await records.secrets.ring.rotate()
    before = await secrets_of(config)
    old = config.seal_file.read_bytes()
    write_private(config.seal_file, b"ab" * KEY_BYTES + b"\n" + old)
    await start(config)
    rows = all_text(address_of(config))
    # The old key is not needed any more.
    write_private(config.seal_file, b"ab" * KEY_BYTES)
    after = await secrets_of(config)
    assert all_text(address_of(config)) == rows
    assert after.pepper == before.pepper
    assert [key.kid for key in after.keys.public] == [key.kid for key in before.keys.public]
    assert after.keys.succession == before.keys.succession
    write_private(config.seal_file, old)
    assert "is sealed by another key" in await refused(config)


async def test_a_running_hub_opens_what_a_new_line_of_the_file_has_sealed(config: HubConfig) -> None:
    async with opened(config) as records:
        old = config.seal_file.read_bytes()
        write_private(config.seal_file, b"ab" * KEY_BYTES + b"\n" + old)
        ring = records.secrets.ring
        await ring.rotate()
        assert len(ring.current.all) == 2


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


async def test_a_published_key_that_a_crash_has_left_signs_after_the_next_start(config: HubConfig) -> None:
    async with opened(config) as records:
        ring = records.secrets.ring
        old = ring.current.active.kid
        await publish(ring)
        next_one = ring.current.published
        assert next_one is not None
        assert ring.current.active.kid == old
    async with opened(config) as records:
        ring = records.secrets.ring
        assert ring.current.state_of(next_one.kid) is KeyState.PUBLISHED
        assert ring.current.succession == ()
        await ring.activate()
        assert ring.current.active.kid == next_one.kid
        assert len(ring.current.succession) == 1
