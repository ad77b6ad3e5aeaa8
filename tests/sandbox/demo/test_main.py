from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from sandbox.demo.__main__ import find_programs, parse, prepare_environment, run
from sandbox.demo.processes import DemoError


def test_the_command_line() -> None:
    assert (parse([]).once, parse([]).kubeconfig, parse([]).dir) == (False, None, Path(".demo"))
    assert (parse([]).database, parse([]).hubs, parse(["--hubs", "3"]).hubs) == ("sqlite", 1, 3)
    arguments = parse(["--once", "--kubeconfig", "admin", "--dir", "elsewhere"])
    assert (arguments.once, arguments.kubeconfig, arguments.dir) == (True, Path("admin"), Path("elsewhere"))


@pytest.mark.parametrize("port", ["99999", "65534", "-1", "http"])
def test_a_port_that_is_none_is_refused_before_anything_starts(
    port: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse([f"--port={port}"])
    assert f"argument --port: '{port}' is no port from 0 to 65533" in capsys.readouterr().err
    assert parse(["--port", "0"]).port == 0


def test_neither_settings_nor_proxies_of_the_caller_reach_the_demo() -> None:
    environment = prepare_environment(
        {
            "HAWSE_HUB_LISTEN": "0.0.0.0:1",
            "PGPORT": "1",
            "HTTPS_PROXY": "http://proxy",
            "NO_PROXY": "internal",
            "PATH": "/bin",
        }
    )
    assert not {"HAWSE_HUB_LISTEN", "PGPORT"} & environment.keys()
    assert environment["NO_PROXY"] == "internal,127.0.0.1"
    assert environment["no_proxy"] == "127.0.0.1"
    assert environment["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}/bin"


def test_a_missing_kubectl_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DemoError, match="no kubectl on PATH"):
        find_programs()


def test_a_missing_kubeconfig_is_named_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with pytest.raises(DemoError, match="there is no file"):
        run(parse(["--once", "--dir", str(tmp_path / "demo"), "--kubeconfig", str(tmp_path / "missing")]))
    assert not (tmp_path / "demo").exists()
