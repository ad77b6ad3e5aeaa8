"""A hub and an agent, run by an installation."""

from __future__ import annotations

import json
import os
from pathlib import Path

import yaml

from sandbox.demo.processes import Daemons, free_port
from tests.packaging.installed import Environment


def run_hub_and_agent(environment: Environment, folder: Path) -> None:
    """Start a hub, enrol an agent, log it in, and get a credential as kubectl does."""
    port, admin_port = free_port(), free_port()
    url = f"https://127.0.0.1:{port}"
    config = folder / "hub.toml"
    config.write_text(
        f'org = "acme"\npublic_url = "{url}"\nlisten = "127.0.0.1:{port}"\ndata_dir = "{folder / "hub"}"\n'
        f'[admin]\nlisten = "127.0.0.1:{admin_port}"\n'
    )
    home = folder / "home"
    home.mkdir()
    variables = {
        "HAWSE_HUB_CONFIG": str(config),
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_CACHE_HOME": str(home / "cache"),
    }

    def run(*argv: str, **more: str) -> str:
        # In a folder that also has packages of those names.
        done = environment.run(*argv, variables={**variables, **more}, cwd=environment.site)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with Daemons(folder) as daemons:
        python = str(environment.programs / "python")
        hub = daemons.start("hub", [python, "-m", "hawse", "hub"], {**environment.variables, **variables})
        hub.wait_for("hub is ready")
        run("hawse", "admin", "team", "add", "platform")
        cluster = ("cluster", "add", "prod", "--team", "platform", "--output-dir", str(folder / "relay"))
        run(python, "-m", "hawse", "admin", *cluster)
        add = ("agent", "add", "builder", "--team", "platform", "--owner", "you@example.com")
        made = json.loads(run("hawse", "admin", *add, "--credential", "code", "--json"))
        ca = str(folder / "hub" / "tls" / "ca.pem")
        run("hawse", "login", "--hub", url, "--ca", ca, "--code", HAWSE_ENROLMENT_CODE=made["code"])
        write = (python, "-m", "hawse", "kubeconfig", "--output", str(home / "kubeconfig"))
        run(*write)
        assert plugin(home / "kubeconfig") == "hawse-credential"
        # If the PATH does not lead to the environment, the kubeconfig has the plugin's path.
        run(*write, PATH=os.defpath)
        assert plugin(home / "kubeconfig") == f"{environment.programs}/hawse-credential"
        credential = json.loads(run("hawse-credential", "--server", f"{url}/clusters/prod"))
        assert credential["kind"] == "ExecCredential"
        events = [json.loads(line) for line in run("hawse", "audit", "list", "--json").splitlines()]
        assert "token.issued" in {event["kind"] for event in events}


def plugin(kubeconfig: Path) -> object:
    """The program that kubectl runs for a credential."""
    [user] = yaml.safe_load(kubeconfig.read_text())["users"]
    return user["user"]["exec"]["command"]
