from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from auth.keys import KeySet, SigningKey
from proxy.cli.relay import relay


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    key = SigningKey.generate()
    (tmp_path / "relay-key.pem").write_bytes(key.to_pem())
    (tmp_path / "hub-keys.json").write_text(KeySet([key.public]).to_jwks())
    (tmp_path / "relay.toml").write_text(
        'cluster_id = "c1"\nprivate_key = "relay-key.pem"\n'
        '[hub]\nurl = "https://hub.invalid"\nkeys = "hub-keys.json"\n'
    )
    return tmp_path


def test_faults_of_the_configuration_are_listed(folder: Path) -> None:
    (folder / "relay.toml").write_text("mode = 1\nx = 1\n")
    result = CliRunner().invoke(relay, ["--config", str(folder / "relay.toml")], env=without_cluster())
    assert result.exit_code == 1
    assert result.stderr.startswith("hawse: the relay's configuration has faults:\n")
    assert "\n  x: no such key; " in result.stderr


def test_a_relay_without_a_configuration_says_what_writes_one() -> None:
    none = dict.fromkeys(name for name in os.environ if name.startswith("HAWSE_RELAY_"))
    result = CliRunner().invoke(relay, env=none)
    assert (result.exit_code, result.stderr) == (
        1,
        "hawse: the relay cannot run: it has no configuration: name its --config, which "
        "`hawse admin cluster add NAME --output-dir DIR` writes\n",
    )


def test_a_relay_outside_a_cluster_says_what_to_do(folder: Path) -> None:
    result = CliRunner().invoke(relay, ["--config", str(folder / "relay.toml")], env=without_cluster())
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("hawse: the relay cannot run: not in a cluster")
    assert "HAWSE_RELAY_KUBECONFIG" in result.stderr


def test_the_mode_can_be_given_by_hand(folder: Path) -> None:
    argv = ["--config", str(folder / "relay.toml"), "--mode", "direct"]
    result = CliRunner().invoke(relay, argv, env=without_cluster())
    assert "direct.listen: missing, direct mode needs it" in result.stderr


def without_cluster() -> dict[str, str | None]:
    return {"KUBERNETES_SERVICE_HOST": None, "HAWSE_RELAY_CONFIG": None}


def modules_of_a_start() -> set[str]:
    """What is loaded when a relay in tunnel mode begins to run."""
    names = ("cli.group", "cli.relay", "cli.service", "relay.check", "relay.serve")
    program = f"""
import sys
import {", ".join(f"proxy.{name}" for name in names)}
print(*sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": "."}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    return set(done.stdout.split())


# Each costs 4 to 20 ms of a start of 200, and a start needs none of them.
SLOW_TO_LOAD = {
    "importlib.metadata", "zipfile", "asyncio", "sqlite3", "common_expression_language", "concurrent.futures",
    "websockets",
    # In a pod, without guardrails.
    "yaml", "auth.policy.match", "proxy.relay.guardrails", "proxy.relay.direct",
}  # fmt: skip
# 531 with Python 3.11, 51 of them for PyJWT. A library that loads more than that is to be noticed.
MODULES_MAX = 560


def test_the_relay_loads_none_of_the_hubs_packages() -> None:
    hub = {"sqlalchemy", "alembic", "starlette", "msgspec", "prometheus_client", "audit"}
    assert not hub & modules_of_a_start()


def test_a_start_loads_no_module_that_it_does_not_need() -> None:
    loaded = modules_of_a_start()
    assert not SLOW_TO_LOAD & loaded
    assert len(loaded) <= MODULES_MAX


def test_guardrails_are_looked_at_without_a_relay(tmp_path: Path) -> None:
    rails = tmp_path / "rails.yaml"
    rails.write_text(
        "kind: Policy\nmetadata: {name: owner}\nspec:\n  bind: {teams: ['*']}\n  rules:\n"
        "    - {id: no-secrets, effect: deny, verbs: ['*'], resources: [secrets]}\n"
    )
    good = CliRunner().invoke(relay, ["--check-guardrails", str(rails)])
    assert (good.exit_code, "1 rule, the rest passes" in good.output) == (0, True)
    rails.write_text(rails.read_text().replace("effect", "effekt"))
    bad = CliRunner().invoke(relay, ["--check-guardrails", str(rails)])
    assert bad.exit_code == 1
    assert f"guardrails: {rails}:6" in bad.output
    missing = CliRunner().invoke(relay, ["--check-guardrails", str(tmp_path / "none.yaml")])
    assert "No such file" in missing.output
