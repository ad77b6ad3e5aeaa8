"""Checks everything that a hub needs to start, without changing the disk or a database, or opening a port.

A start runs these checks too, so that it reports all errors together. Some errors appear only in a start: a
held lock, an address in use, and changes since the check. A hub may run on the folder during the check.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import sqlalchemy as sa

from audit.errors import AuditUnavailable
from audit.file import NeedsRecovery, translated, untouched
from audit.look import check_trail
from audit.sqlite import explained as explained_by_sqlite
from audit.store import TrailMark
from proxy.hub.health.trail_watch import disk_of, fullness
from proxy.hub.home.config import HubConfig, read
from proxy.hub.home.data_folder import ENVIRONMENT_PREFIX
from proxy.hub.home.database_status import read_postgres_status
from proxy.hub.home.databases import check_directory, faults_of_databases, noted_applied
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.devca import check_ca
from proxy.hub.home.files.private_files import DataDirError, check_writable, explained, is_there
from proxy.hub.home.files.reserve import check_reserve
from proxy.hub.home.files.seal_file import SealFile
from proxy.hub.home.sealed_secrets import check_secrets
from proxy.hub.home.trails import check_place
from proxy.hub.restart.pidfile import PidFile
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.engines.sqlite import unusable
from proxy.hub.store.migrations import MigrationError, is_older
from proxy.hub.store.sealed import read_secrets
from proxy.hub.store.snapshot import read_trail
from proxy.hub.store.versions.lineage import ACCEPT, Loss
from proxy.hub.store.versions.version import read_is_kept, read_version
from proxy.process.certificates import first_of, names_host, remarks_on, summary_of
from proxy.process.files import FileError, read_certificate
from proxy.process.findings import Findings
from proxy.process.plural import counted

_KNOWN = DataDirError, FileError, StoreUnavailableError, AuditUnavailable


def check_hub(path: Path | None, environment: Mapping[str, str]) -> tuple[HubConfig | None, Findings]:
    """Check what `hawse hub` would start with; the configuration is None if it could not be read."""
    findings = Findings()
    config = read(path, environment, findings.configuration)
    if config is None:
        return None, findings
    variables = sum(name.startswith(ENVIRONMENT_PREFIX) for name in environment)
    findings.seen["configuration"] = f"{path or 'no file'}, {counted(variables, 'variable')}"
    if not findings.has_fault_of("data_dir"):
        _look_at_folder(config, findings)
    if config.pid_file is not None:
        findings.look(PidFile(config.pid_file).check, _KNOWN)
    if not findings.has_fault_of("tls", "public_url", "cluster_hosts"):
        _look_at_certificate(config, findings)
    if not findings.has_fault_of("listen", "admin", "public_url"):
        listens = f"{config.listen}, the admin API on {config.admin.listen}; neither was opened"
        findings.seen["listens on"] = listens
        if config.peer.listen is not None and not findings.has_fault_of("peer"):
            findings.seen["other hubs"] = f"dial {config.peer.address}; {config.peer.listen} was not opened"
        if config.console.listen is not None and not findings.has_fault_of("console"):
            url, address = config.console.public_url, config.console.listen
            findings.seen["console"] = f"{url}; {address} was not opened"
        findings.warnings.extend(config.misleading)
    if config.webhook and not findings.has_fault_of("webhook"):
        receivers = ", ".join(f"{each.name} ({each.host})" for each in config.webhook)
        findings.seen["webhooks"] = f"{receivers}; nothing was sent"
    return config, findings


def _look_at_folder(config: HubConfig, findings: Findings) -> None:
    data = DataDir(config.data_dir)
    address, expected, usable = config.database.address, None, False
    if address is not None and not findings.has_fault_of("database"):
        before = len(findings.faults)
        expected = findings.look(partial(_look_at_postgres, address, data, config, findings), _KNOWN)
        usable = len(findings.faults) == before
        findings.seen["database"] = "PostgreSQL"
        findings.seen["sealing key"] = str(config.seal_file)
    there = findings.look(data.check_folder, _KNOWN)
    if not there:
        if there is not None:
            findings.seen["data folder"] = f"{data.path}, which the first start will make"
        return
    findings.look(partial(_check_file, data.lock_file), _KNOWN)
    if address is None:
        findings.look(data.keys.load, _KNOWN)
        findings.look(data.existing_pepper, _KNOWN)
    findings.look(data.admin.token, _KNOWN)
    if config.tls.certificate is None:
        findings.look(partial(check_ca, data.tls_dir), _KNOWN)
    _look_at_disk(data, findings)
    findings.look(
        partial(
            _look_at_databases,
            data,
            address if usable else None,
            expected,
            findings,
            in_postgres=address is not None,
        ),
        _KNOWN,
    )


def _check_file(file: Path) -> None:
    """Raise DataDirError for an existing file that cannot be written."""
    if is_there(file):
        try:
            check_writable(file, folder=False)
        except OSError as error:
            raise DataDirError(f"cannot write {file}: {explained(error)}") from error


def _look_at_disk(data: DataDir, findings: Findings) -> None:
    lacking = findings.look(partial(check_reserve, data.reserve_file), _KNOWN)
    disk = disk_of(data.path)
    # Skipped if the file system does not report its size; the start will show it.
    if lacking and disk.size_bytes and disk.free_bytes < lacking:
        findings.faults.append(
            f"cannot allocate {data.reserve_file}: {disk.free_bytes // 1024} KiB are free: "
            f"free {lacking // 1024} KiB of the disk"
        )
    elif (full := fullness(data.path, disk)) is not None:
        findings.warnings.append(full)


def _look_at_databases(
    data: DataDir,
    address: PostgresAddress | None,
    expected: TrailMark | None,
    findings: Findings,
    *,
    in_postgres: bool,
) -> None:
    """Check the schemas of the store and of the trail, and whether they belong together.

    `address` is that of a PostgreSQL that can be used, and `expected` the trail that its store names.
    """
    there = is_there(data.store_file) or is_there(data.address_file)
    held = "admin token" if in_postgres else "store, trail, keys"
    findings.seen["data folder"] = f"{data.path}: {held if there else 'no hub has run there yet'}"
    faults = [*faults_of_databases(data, in_postgres=in_postgres)]
    findings.faults.extend(faults)
    if in_postgres:
        # An unusable database is one fault, not one of the store and one of the trail.
        if address is not None:
            findings.look(partial(check_place, address, expected), _KNOWN)
        return
    if is_there(data.store_file) and not _is_named(data.store_file, faults):
        try:
            expected = findings.look(partial(_look_at_store, data.store_file), _KNOWN)
        except NeedsRecovery as error:
            findings.warnings.append(f"{data.store_file} was not checked: {error}")
    if not _is_named(data.audit_file, faults):
        try:
            findings.look(partial(_look_at_trail, data.audit_file, expected), _KNOWN)
        except NeedsRecovery as error:
            findings.warnings.append(f"{data.audit_file} was not checked: {error}")


def _look_at_postgres(
    address: PostgresAddress, data: DataDir, config: HubConfig, findings: Findings
) -> TrailMark | None:
    """Connect, open the secrets, and read which trail the hub writes; None before it has one.

    Raises StoreUnavailableError, and DataDirError for the directory of another hub.
    """
    # Its driver is an extra.
    from proxy.hub.store.engines.postgres import look_at

    file = SealFile(config.seal_file)
    with look_at(address) as connection:
        if connection is None:
            check_directory(data, new=read_postgres_status(address, None).tables == "missing")
            file.check()
            return None
        found, trail, version = read_secrets(connection), read_trail(connection), read_version(connection)
        applied = noted_applied(data)
        lost = applied is not None and not read_is_kept(connection, applied)
    check_directory(data, new=found.missing and trail is None)
    check_secrets(found, trail, file)
    if applied is not None and lost and not config.database.accept_rollback:
        findings.refused.append(f"{Loss(applied.number, version.number)}: {ACCEPT}")
    return trail


def _look_at_store(file: Path) -> TrailMark | None:
    """Read which trail the hub writes; None if the store names none, or is of an earlier version.

    Raises StoreUnavailableError, and NeedsRecovery.
    """
    try:
        check_writable(file, folder=False)
    except OSError as error:
        raise StoreUnavailableError(f"cannot open {file}: {explained_by_sqlite(file, error)}") from error
    try:
        with untouched(file) as connection:
            return None if is_older(connection) else read_trail(connection)
    except (MigrationError, sa.exc.DBAPIError) as error:
        raise unusable(file, error) from error


def _look_at_trail(file: Path, expected: TrailMark | None) -> None:
    if is_there(file):
        with translated(file):
            check_writable(file, folder=False)
    check_trail(file, expected)


def _is_named(file: Path, faults: list[str]) -> bool:
    return any(fault.startswith(f"{file} is ") for fault in faults)


def _look_at_certificate(config: HubConfig, findings: Findings) -> None:
    tls = config.tls
    if tls.certificate is None or tls.key is None:
        findings.seen["certificate"] = f"of a development CA in {DataDir(config.data_dir).tls_dir}"
        return
    read_it = partial(
        read_certificate, tls.certificate, tls.key, stated="tls.certificate", wildcard=config.cluster_hosts
    )
    pem = findings.look(read_it, _KNOWN)
    if pem is None:
        return
    for remark in remarks_on(pem, datetime.now(UTC), config.public_host):
        target = findings.refused if remark.refused else findings.warnings
        target.append(f"tls.certificate: {tls.certificate}: {remark.text}")
    host = config.console.tls_host
    shown = first_of(pem)
    if host not in (None, config.public_host) and shown is not None and not names_host(shown, str(host)):
        findings.refused.append(
            f"tls.certificate: {tls.certificate}: the certificate is not for {host}, the host of "
            "console.public_url, so browsers refuse it: get one that names both"
        )
    findings.seen["certificate"] = f"{tls.certificate}: {summary_of(pem)}"
