from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from proxy.cli.hub import hub


def run(folder: Path, **environment: str) -> Result:
    """Run `hawse hub`, which must fail to start, on a data folder of its own."""
    settings = {
        "PUBLIC_URL": "https://hub.example",
        "DATA_DIR": str(folder / "hub"),
        "LISTEN": "127.0.0.1:0",
        "ADMIN_LISTEN": "127.0.0.1:0",
    }
    settings |= environment
    env = {f"HAWSE_HUB_{name}": value for name, value in settings.items()}
    result = CliRunner().invoke(hub, [], env={"HAWSE_HUB_CONFIG": None, **env})
    assert result.exit_code == 1
    assert result.stdout == ""
    return result


def test_faults_of_the_configuration_are_listed(tmp_path: Path) -> None:
    result = run(tmp_path, ORG="system", AUDIT_MASK="x*")
    assert result.stderr.splitlines()[0] == "hawse: the hub's configuration has faults:"
    assert result.stderr.splitlines()[2:] == [
        "  audit.mask: number 1 matches the empty text, so it would mask everything"
    ]
    assert result.stderr.splitlines()[1].startswith("  org: ")
    assert not (tmp_path / "hub").exists()
