"""Another hub on the database of a running one, with a data folder of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

from sandbox.demo.processes import Daemon, free_port
from tests.system.world import ORG, World


def start_second_hub(world: World, name: str = "hub-b", settings: str = "") -> tuple[Daemon, Path]:
    """Start it as its operator does, with the sealing key of the first one; returns its data folder too.

    The world's hub must have a database.
    """
    data = world.folder / name
    data.mkdir(mode=0o700)
    shutil.copy(world.folder / "hub" / "seal.key", data)
    first = (world.folder / "hub.toml").read_text()
    database = first[first.index("[database]") :].split("\n[", 1)[0]
    config = world.folder / f"{name}.toml"
    config.write_text(
        f'org = "{ORG}"\npublic_url = "https://127.0.0.1:{world.hub_port}"\n'
        f'listen = "127.0.0.1:{free_port()}"\ndata_dir = "{data}"\n'
        f'[admin]\nlisten = "127.0.0.1:{free_port()}"\n{database}\n{settings}'
    )
    hub = world.daemons.start(name, ["hawse", "hub", "--config", str(config), *world.flags])
    hub.wait_for("hub is ready")
    return hub, data
