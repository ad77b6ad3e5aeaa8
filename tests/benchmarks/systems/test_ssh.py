from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.system import Endpoint, Missing
from benchmarks.systems import ssh
from benchmarks.upstream.other import OtherUpstream

NO_UPSTREAM = OtherUpstream(Endpoint("127.0.0.1", 1, Path("ca.pem")))


def options(text: str) -> dict[str, str]:
    return dict(line.strip().split(" ", 1) for line in text.splitlines())


def test_sshd_listens_on_loopback_alone_and_with_keys_of_the_folder_alone(tmp_path: Path) -> None:
    stated = options(ssh.server_configuration(tmp_path, 2022))
    assert stated["ListenAddress"] == "127.0.0.1:2022"
    assert Path(stated["HostKey"]).parent == tmp_path
    assert Path(stated["AuthorizedKeysFile"]).parent == tmp_path
    assert stated["PasswordAuthentication"] == "no"


def test_neither_end_chooses_a_cipher(tmp_path: Path) -> None:
    both = ssh.server_configuration(tmp_path, 1) + ssh.client_configuration(tmp_path, 2)
    assert "Ciphers" not in both
    assert "Compression" not in both


def test_ssh_dials_the_port_of_the_leg_with_the_folder_s_key(tmp_path: Path) -> None:
    stated = options(ssh.client_configuration(tmp_path, 2023))
    assert stated["Port"] == "2023"
    assert Path(stated["IdentityFile"]) == tmp_path / "user_key"
    assert stated["ExitOnForwardFailure"] == "yes"


def test_without_sshd_it_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.processes.shutil.which", lambda name, path=None: None)
    with pytest.raises(Missing, match="ssh: sshd is not installed: make bench-peers"):
        with ssh.open_ssh(tmp_path, NO_UPSTREAM):
            pytest.fail("there is no sshd")
