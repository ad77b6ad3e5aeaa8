"""`hawse hub --check` and `hawse relay --check`, and a start that finds the same faults."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner, Result

from audit.file import untouched
from audit.store import AuditStore
from auth.keys import KeySet, SigningKey
from proxy.cli.hub import hub
from proxy.cli.relay import relay
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.files.reserve import open_reserve
from proxy.hub.store.store import Store

CA = trustme.CA()
EXPIRED = datetime.now(UTC) - timedelta(days=1)


def files_of(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Everything below a folder: contents, modes and times of change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(folder))] = content, status.st_mode, status.st_mtime_ns
    return found


def data_of_a_hub(path: Path) -> DataDir:
    """The files that a former hub leaves behind."""
    data = DataDir.open(path)
    data.keys.load_or_make()
    data.pepper()
    store = Store(data.store_file, org="main", clock=time.time)
    trail = AuditStore(data.audit_file)
    store.accept_trail(trail.mark)
    trail.close()
    store.close()
    open_reserve(data.reserve_file).close()
    return data


def certificate(folder: Path, *names: str, not_after: datetime | None = None) -> dict[str, str]:
    leaf = CA.issue_cert(*names, not_after=not_after)
    (folder / "hub.pem").write_bytes(leaf.cert_chain_pems[0].bytes())
    (folder / "hub.key").write_bytes(leaf.private_key_pem.bytes())
    return {"TLS_CERTIFICATE": str(folder / "hub.pem"), "TLS_KEY": str(folder / "hub.key")}


def run_hub(folder: Path, *argv: str, **settings: str) -> Result:
    stated = {"DATA_DIR": str(folder / "hub"), "PUBLIC_URL": "https://hub.example", **settings}
    env = {f"HAWSE_HUB_{name}": value for name, value in stated.items()}
    return CliRunner().invoke(hub, argv, env={"HAWSE_HUB_CONFIG": None, **env})


def check_hub(folder: Path, **settings: str) -> list[str]:
    """Return the faults that `hawse hub --check` prints, and check that it changes nothing on the disk."""
    before = files_of(folder)
    result = run_hub(folder, "--check", **settings)
    assert files_of(folder) == before
    if result.exit_code == 0:
        assert result.stdout.startswith("the hub can start:\n")
        return []
    assert (result.exit_code, result.stdout) == (2, "")
    heading, *faults = result.stderr.splitlines()
    assert heading.startswith("hawse: the check of the hub found ")
    return [fault.strip() for fault in faults]


def test_a_hub_that_has_never_run_can_start(tmp_path: Path) -> None:
    result = run_hub(tmp_path, "--check")
    assert result.exit_code == 0
    assert f"data folder    {tmp_path / 'hub'}, which the first start will make" in result.stdout
    assert check_hub(tmp_path) == []
    assert not (tmp_path / "hub").exists()


def test_a_hub_that_has_run_can_start(tmp_path: Path) -> None:
    data_of_a_hub(tmp_path / "hub")
    files = certificate(tmp_path, "hub.example")
    assert check_hub(tmp_path, **files) == []
    result = run_hub(tmp_path, "--check", "--json", **files)
    told = json.loads(result.stdout)
    assert (result.exit_code, told["ok"], told["faults"]) == (0, True, [])
    assert told["seen"]["data folder"] == f"{tmp_path / 'hub'}: store, trail, keys"
    assert told["seen"]["certificate"].startswith(f"{tmp_path / 'hub.pem'}: hub.example, until ")


def test_the_check_names_the_address_that_other_hubs_dial(tmp_path: Path) -> None:
    # Nothing listens there, which is the one fault.
    settings = {"DATABASE_URL": "postgresql://hawse@127.0.0.1:1/hawse", "PEER_LISTEN": "[::]:8445"}
    result = run_hub(tmp_path, "--check", "--json", PEER_ADDRESS="10.0.3.7:8445", **settings)
    told = json.loads(result.stdout)
    assert told["seen"]["other hubs"] == "dial 10.0.3.7:8445; [::]:8445 was not opened"
    assert told["warnings"] == []
    result = run_hub(tmp_path, "--check", "--json", PEER_ADDRESS="127.0.0.1:8445", **settings)
    [warning] = json.loads(result.stdout)["warnings"]
    assert "peer.address is 127.0.0.1:8445, which only hubs of this machine can dial" in warning
    result = run_hub(tmp_path, "--check", "--json", **settings)
    told = json.loads(result.stdout)
    assert "peer: peer.listen and peer.address are given together, or neither" in told["faults"]
    assert "other hubs" not in told["seen"]


def test_the_check_names_the_console_and_what_its_browsers_would_refuse(tmp_path: Path) -> None:
    files = certificate(tmp_path, "hub.example")
    console = {"CONSOLE_LISTEN": "[::]:8446", "CONSOLE_PUBLIC_URL": "https://console.example:8446"}
    [fault] = check_hub(tmp_path, **files, **console)
    assert "is not for console.example, the host of console.public_url, so browsers refuse it" in fault
    both = certificate(tmp_path, "hub.example", "console.example")
    result = run_hub(tmp_path, "--check", **both, **console)
    assert "  console        https://console.example:8446; [::]:8446 was not opened\n" in result.stdout
    # Plain HTTP on loopback needs no certificate.
    assert check_hub(tmp_path, **files, CONSOLE_LISTEN="127.0.0.1:8446") == []


def test_the_check_names_the_webhooks_and_shows_no_url(tmp_path: Path) -> None:
    file = tmp_path / "hub.toml"
    file.write_text(
        '[[webhook]]\nname = "on-call"\nurl = "https://hooks.example/hunter2"\nformat = "slack"\n'
        '[[webhook]]\nname = "audit"\nurl = "https://a.example/?k=hunter2"\nsecret_file = "webhook.secret"\n'
    )
    secret = tmp_path / "webhook.secret"
    secret.write_text(base64.b64encode(bytes(32)).decode())
    result = run_hub(tmp_path, "--check", "--config", str(file))
    assert "  webhooks       on-call (hooks.example), audit (a.example); nothing was sent\n" in result.stdout
    secret.write_text("hunter2")
    refused = run_hub(tmp_path, "--check", "--config", str(file))
    assert "webhook.2.secret_file: " in refused.stderr
    assert "openssl rand -base64 32" in refused.stderr
    assert "hunter2" not in result.stdout + refused.stderr


def test_all_faults_are_told_at_once_by_the_check_and_by_the_start(tmp_path: Path) -> None:
    data = data_of_a_hub(tmp_path / "hub")
    (data.path / "pepper").write_text("00")
    shutil.rmtree(data.keys_dir)
    (data.path / "admin-token").write_text("x")
    (data.path / "admin-token").chmod(0o644)
    with sqlite3.connect(data.store_file) as store:
        store.execute("UPDATE alembic_version SET version_num = '9999'")
        store.execute("UPDATE directory SET oldest = '9999'")
    store.close()
    data.audit_file.write_bytes(b"nothing" * 1000)
    settings = {
        **certificate(tmp_path, "old.example", not_after=EXPIRED),
        "ORG": "system",
        "PID_FILE": str(tmp_path / "no" / "pid"),
    }
    faults = check_hub(tmp_path, **settings)
    told = [
        "org: org 'system' is reserved",
        f"{data.keys_dir} holds no signing key, though this hub has run before",
        f"{data.path / 'pepper'}: not 32 bytes in hexadecimal",
        f"{data.admin.token_file} is open to other users: run chmod 600",
        f"cannot use {data.store_file}: the database is at revision 9999, which this version does not know",
        f"the audit trail {data.audit_file} is damaged",
        f"pid_file: cannot write {tmp_path / 'no' / 'pid'}: make the folder",
        f"tls.certificate: {tmp_path / 'hub.pem'}: the certificate is for old.example and not for hub",
        f"tls.certificate: {tmp_path / 'hub.pem'}: the certificate has expired on ",
    ]
    assert len(faults) == len(told)
    assert all(fault.startswith(text) for fault, text in zip(faults, told, strict=True))
    assert json.loads(run_hub(tmp_path, "--check", "--json", **settings).stdout)["faults"] == faults
    start = run_hub(tmp_path, **settings)
    assert (start.exit_code, start.stdout) == (1, "")
    # A certificate that clients refuse is only a warning at the start.
    heading, *refused = start.stderr.splitlines()
    assert heading == "hawse: the hub cannot run: 7 faults:"
    assert [line.strip() for line in refused] == faults[:-2]


def test_a_folder_that_cannot_be_made_is_told_with_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "hub"
    told = (
        f"the data folder {folder} does not exist, and cannot be made in {tmp_path}: Not a directory: "
        "create it for the user that runs the hub (mode 700), or set data_dir"
    )
    assert check_hub(tmp_path, DATA_DIR=str(folder)) == [told]
    assert run_hub(tmp_path, DATA_DIR=str(folder)).stderr == f"hawse: the hub cannot run: {told}\n"


def test_another_trail_is_told_without_being_opened(tmp_path: Path) -> None:
    data = data_of_a_hub(tmp_path / "hub")
    data.audit_file.unlink()
    (fault,) = check_hub(tmp_path)
    assert fault.startswith(f"{data.audit_file} is missing: put it back")
    AuditStore(data.audit_file).close()
    (fault,) = check_hub(tmp_path)
    assert fault.startswith(f"{data.audit_file} is another trail")


def test_a_store_of_an_earlier_version_is_left_to_the_start(tmp_path: Path) -> None:
    data = data_of_a_hub(tmp_path / "hub")
    with sqlite3.connect(data.store_file) as store:
        store.execute("UPDATE alembic_version SET version_num = '0006'")
    store.close()
    assert check_hub(tmp_path) == []


def test_a_file_that_leads_to_itself_is_a_fault_and_no_bug(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path / "hub")
    data.store_file.symlink_to(data.store_file)
    (fault,) = check_hub(tmp_path)
    assert fault.startswith(f"cannot read {data.store_file}: Too many levels of symbolic links")


LEAVE_WITHOUT_CLOSING = """
import os, sqlite3, sys
store = sqlite3.connect(sys.argv[1])
store.execute("UPDATE alembic_version SET version_num = '9999'")
store.execute("UPDATE directory SET oldest = '9999'")
store.commit()
os._exit(0)
"""


def test_what_a_killed_hub_left_in_the_wal_counts(tmp_path: Path) -> None:
    data = data_of_a_hub(tmp_path / "hub")
    subprocess.run([sys.executable, "-c", LEAVE_WITHOUT_CLOSING, data.store_file], check=True)
    (fault,) = check_hub(tmp_path)
    assert "the database is at revision 9999" in fault
    data.store_file.with_name("hub.db-shm").unlink()
    result = run_hub(tmp_path, "--check")
    assert result.exit_code == 0
    assert "hub.db was not checked: hub.db-wal exists without its -shm" in result.stderr


def test_a_database_that_is_open_is_read_as_its_writer_has_it(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("CREATE TABLE t AS SELECT 1 AS n")
    writer.commit()
    with untouched(path) as connection:
        assert connection.exec_driver_sql("SELECT n FROM t").scalar() == 1
    writer.close()


def test_a_url_for_this_machine_alone_is_a_warning(tmp_path: Path) -> None:
    result = run_hub(tmp_path, "--check", LISTEN="0.0.0.0:8443", PUBLIC_URL="https://localhost:8443")
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: it listens on 0.0.0.0:8443 for other machines")


@pytest.mark.parametrize("url", ["foo", "https://", "http://hub.example"])
def test_a_url_that_is_none_is_told_alone(tmp_path: Path, url: str) -> None:
    files = certificate(tmp_path, "hub.example")
    (fault,) = check_hub(tmp_path, PUBLIC_URL=url, LISTEN="0.0.0.0:8443", **files)
    assert fault.startswith("public_url: ")
    start = run_hub(tmp_path, PUBLIC_URL=url, LISTEN="0.0.0.0:8443", **files)
    assert start.stderr == f"hawse: the hub's configuration has faults:\n  {fault}\n"


@pytest.mark.parametrize("command", [hub, relay])
def test_json_belongs_to_the_check(command: object) -> None:
    assert command in (hub, relay)
    result = CliRunner().invoke(hub if command is hub else relay, ["--json"])
    assert (result.exit_code, "--json goes with --check only" in result.stderr) == (2, True)


KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: x
contexts: [{name: x, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "https://127.0.0.1:6443", certificate-authority: ca.crt}}]
users: [{name: u, user: {tokenFile: token}}]
"""


@pytest.fixture
def relay_folder(tmp_path: Path) -> Path:
    """All files that a relay outside a cluster starts with."""
    key = SigningKey.generate()
    (tmp_path / "relay.key").write_bytes(key.to_pem())
    (tmp_path / "hub-keys.json").write_text(KeySet([key.public]).to_jwks())
    (tmp_path / "hub-ca.pem").write_bytes(CA.cert_pem.bytes())
    (tmp_path / "ca.crt").write_bytes(CA.cert_pem.bytes())
    (tmp_path / "token").write_text("secret-token")
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    (tmp_path / "rails.yaml").write_text(
        "kind: Policy\nmetadata: {name: owner}\nspec:\n  bind: {teams: ['*']}\n  rules:\n"
        "    - {id: no-secrets, effect: deny, verbs: ['*'], resources: [secrets]}\n"
    )
    (tmp_path / "relay.toml").write_text(
        'cluster_id = "c1"\nprivate_key = "relay.key"\nkubeconfig = "kubeconfig"\nguardrails = "rails.yaml"\n'
        '[hub]\nurl = "https://hub.invalid"\nkeys = "hub-keys.json"\nca = "hub-ca.pem"\n'
        '[direct]\nlisten = "127.0.0.1:0"\ncertificate = "hub.pem"\nkey = "hub.key"\n'
    )
    return tmp_path


def run_relay(folder: Path, *argv: str) -> Result:
    none: dict[str, str | None] = dict.fromkeys(
        name for name in os.environ if name.startswith("HAWSE_RELAY_")
    )
    env = {**none, "KUBERNETES_SERVICE_HOST": None, "HTTPS_PROXY": None, "https_proxy": None}
    return CliRunner().invoke(relay, ["--config", str(folder / "relay.toml"), *argv], env=env)


def test_a_relay_whose_files_are_whole_can_start(relay_folder: Path) -> None:
    before = files_of(relay_folder)
    result = run_relay(relay_folder, "--check")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("the relay can start:\n")
    assert "API server     127.0.0.1:6443, which was not asked" in result.stdout
    assert "1 rule, the rest passes" in result.stdout
    assert "secret-token" not in result.output
    assert files_of(relay_folder) == before
    certificate(relay_folder, "relay.example")
    assert json.loads(run_relay(relay_folder, "--check", "--json", "--mode", "direct").stdout)["ok"] is True


def test_all_faults_of_a_relay_are_told_at_once_by_the_check_and_by_the_start(relay_folder: Path) -> None:
    folder = relay_folder
    (folder / "relay.key").write_text("nothing")
    (folder / "hub-keys.json").unlink()
    (folder / "hub-ca.pem").write_text("nothing")
    (folder / "token").write_text("")
    (folder / "ca.crt").unlink()
    (folder / "rails.yaml").write_text((folder / "rails.yaml").read_text().replace("effect", "effekt"))
    result = run_relay(folder, "--check")
    assert (result.exit_code, result.stdout) == (2, "")
    heading, *faults = [line.strip() for line in result.stderr.splitlines()]
    assert heading == f"hawse: the check of the relay found {len(faults)} faults:"
    for text in (
        f"private_key: {folder / 'relay.key'}: ",
        "hub.keys: cannot be read: No such file or directory, looked for in ",
        f"hub.ca: {folder / 'hub-ca.pem'} holds no certificate in PEM: name the file of the CA",
        f"guardrails: {folder / 'rails.yaml'}:6",
        f"kubeconfig: {folder / 'token'}: no token in it",
        f"kubeconfig: {folder / 'ca.crt'} cannot be read: No such file or directory",
    ):
        assert sum(fault.startswith(text) for fault in faults) >= 1, text
    start = run_relay(folder)
    assert start.exit_code == 1
    assert [line.strip() for line in start.stderr.splitlines()][1:] == faults


def test_a_relay_whose_certificate_has_expired_is_told(relay_folder: Path) -> None:
    certificate(relay_folder, "relay.example", not_after=EXPIRED)
    result = run_relay(relay_folder, "--check", "--mode", "direct")
    assert result.exit_code == 2
    assert f"direct.certificate: {relay_folder / 'hub.pem'}: the certificate has expired on " in result.stderr


def test_a_pod_is_told_of_everything_that_it_lacks(tmp_path: Path) -> None:
    env = {
        "HAWSE_RELAY_CLUSTER_ID": "c1",
        "HAWSE_RELAY_HUB_URL": "https://hub.example",
        "HAWSE_RELAY_HUB_KEYS": str(tmp_path / "none.json"),
        "KUBERNETES_SERVICE_HOST": None,
    }
    result = CliRunner().invoke(relay, ["--check"], env=env)
    assert result.exit_code == 2
    for text in ("hub.keys: ", "private_key: missing", "not in a cluster (KUBERNETES_SERVICE_HOST"):
        assert f"\n  {text}" in result.stderr
