"""A hub with its console, a relay and a cluster, as processes; and people who sign in to it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from proxy.cli.admin import admin
from sandbox.demo.processes import free_port
from tests.console.browser.chromium import Chromium
from tests.console.browser.tab import Tab, new_tab
from tests.system.raw import RawClient
from tests.system.world import World, invoke, running_world

# One agent makes a thousand calls a second here, as a hundred might.
SETTINGS = """
[limits]
requests_per_second = 0
[console]
listen = "127.0.0.1:{port}"
"""


@attrs.frozen
class Token:
    """An admin token, whose holder signs in."""

    name: str
    environment: Mapping[str, str]


@attrs.frozen
class ConsoleWorld:
    """The processes, and where the console is."""

    world: World
    origin: str

    @property
    def client(self) -> RawClient:
        """The agent's connection to the hub, in bytes of its own."""
        return RawClient(self.world, "tunnel")

    def token(self, name: str, role: str, *options: str) -> Token:
        """Make an admin token."""
        made = json.loads(self.world.admin("token", "add", name, "--role", role, "--json", *options))
        return Token(
            name,
            {
                "HAWSE_ADMIN_URL": f"https://127.0.0.1:{self.world.admin_port}",
                "HAWSE_ADMIN_TOKEN": made["token"],
                "HAWSE_ADMIN_CA": str(self.world.ca),
            },
        )

    def url(self, token: Token | None = None) -> str:
        """A URL that signs in once, with the role of the token, or on the hub's machine as an admin."""
        environment = self.world.operator if token is None else token.environment
        made = json.loads(invoke(admin, "console", "open", "--json", environment=environment))
        assert made["url"].startswith(f"{self.origin}/signin#code=")
        url: str = made["url"]
        return url

    @contextlib.contextmanager
    def signed_in(self, chromium: Chromium, token: Token | None = None) -> Iterator[Tab]:
        """A tab of a new browser whose person has signed in. It must have no faults in the end."""
        with new_tab(chromium.browser, self.origin) as tab:
            sign_in(tab, self.url(token))
            yield tab
            tab.check()


def sign_in(tab: Tab, url: str) -> None:
    """Open a URL of `hawse admin console open`, and click."""
    tab.page.goto(url)
    tab.page.get_by_text("You will be signed in").wait_for()
    tab.page.get_by_role("button", name="Sign in").click()
    tab.page.wait_for_url(f"{tab.origin}/")


@contextlib.contextmanager
def running_console(folder: Path) -> Iterator[ConsoleWorld]:
    """Bring a world with a console up in `folder`, and take it down again."""
    port = free_port()
    with running_world(folder, hub_settings=SETTINGS.format(port=port)) as world:
        yield ConsoleWorld(world, f"http://127.0.0.1:{port}")
