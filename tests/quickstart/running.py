"""Runs the quickstart, block by block."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sandbox.demo.processes import Daemons, free_port
from tests.quickstart.page import Block, blocks, pattern
from tests.quickstart.shell import Shell, ShellError, opened
from tests.quickstart.stand_ins import StandIns

PAGE = Path(__file__).parents[2] / "docs" / "quickstart.md"
# The page's port of the hub, which another process of this machine may have.
PORT = "8443"
# Of installing the relay, in the page.
WAYS = ("helm", "kubectl")
READY = "rollout status deployment hawse-relay"


def run_page(page: str, way: str, folder: Path, environment: dict[str, str] | None = None) -> None:
    """Run all blocks of a page by one of its ways. Raises ShellError for the first that fails, or that prints
    something else than the page shows.
    """
    home = folder / "home"
    home.mkdir()
    variables = {
        "HOME": str(home),
        "HAWSE_HUB_ADMIN_LISTEN": f"127.0.0.1:{free_port()}",
        **(environment or {}),
    }
    port = str(free_port())
    with Daemons(folder) as daemons, opened(folder, variables) as shell:
        # Those of the machine's own settings, where there are any.
        shell.run("unset XDG_CONFIG_HOME XDG_CACHE_HOME XDG_DATA_HOME KUBECONFIG\n")
        stand_ins = StandIns(folder, home, daemons)
        for block in blocks(page.replace(PORT, port)):
            if block.way in {"", way}:
                _run_block(shell, stand_ins, block)


def _run_block(shell: Shell, stand_ins: StandIns, block: Block) -> None:
    if block.stand_in:
        act: Callable[[Shell], None] = getattr(stand_ins, block.stand_in)
        act(shell)
        return
    for step in block.steps:
        printed = shell.run(step.lines, may_fail=step.output is not None)
        if step.output is not None and not pattern(step.output).search(printed):
            raise ShellError(f"line {block.number}: {step.lines} printed\n{printed}\nand not\n{step.output}")
    if READY in block.text:
        stand_ins.wait_for_relays(shell)
