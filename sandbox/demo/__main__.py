"""Run the demo: `python -m sandbox.demo [--once] [--kubeconfig FILE] [--database postgres] [--hubs 3]`, or
`make demo ARGS=…`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from sandbox.demo.cluster import NAMESPACE
from sandbox.demo.fleet import working_fleet
from sandbox.demo.folder import own_folder
from sandbox.demo.processes import ENDING_SIGNALS, DemoError, say
from sandbox.demo.script import MORE_STEPS, STEPS, run_script
from sandbox.demo.stage import Stage, running

POLL_S = 0.5
# The hub takes the next two as well.
PORT_MAX = 65_533
# With two, the one that is left while the other restarts has all calls.
SEVERAL = range(2, 6)
# Of the console's URL; the longest there is.
CODE_LIFETIME = "10m"
# The exit code that a shell reports for a program ended by Ctrl-C.
INTERRUPTED = 128 + signal.SIGINT


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="make demo",
        description="Runs a hub, a relay and a small in-memory cluster as separate processes, enrols an "
        "agent, and lets the real kubectl work through them. Then it stays up for you to try by hand.",
    )
    parser.add_argument(
        "--once", action="store_true", help="exit after the script: 0 when every step was right"
    )
    parser.add_argument(
        "--kubeconfig",
        type=Path,
        metavar="FILE",
        help="use this disposable cluster instead of the sandbox, with its administrator's kubeconfig",
    )
    parser.add_argument(
        "--database",
        choices=("sqlite", "postgres"),
        default="sqlite",
        help="the hub's database: a file, or a PostgreSQL that ends with the demo (the system's; where there "
        "is none, one from PyPI)",
    )
    parser.add_argument(
        "--hubs",
        type=int,
        choices=(1, *SEVERAL),
        default=1,
        metavar="N",
        help=f"{SEVERAL[0]} to {SEVERAL[-1]} hubs on a PostgreSQL behind a load balancer, and more steps: "
        "one is killed, relays are cut off, all are restarted",
    )
    parser.add_argument(
        "--dir", type=Path, default=Path(".demo"), metavar="DIR", help="where state and logs go"
    )
    parser.add_argument(
        "--port",
        type=port_number,
        default=8443,
        help="the hub's port, and the next two for its admin API and console; others if these are in use",
    )
    return parser.parse_args(arguments)


def port_number(text: str) -> int:
    """Parse a port that has two successors, or 0 for any free port. Raises ArgumentTypeError."""
    if not re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) or int(text) > PORT_MAX:
        raise argparse.ArgumentTypeError(f"{text!a} is no port from 0 to {PORT_MAX}")
    return int(text)


def prepare_environment(environment: dict[str, str]) -> dict[str, str]:
    """The environment of all started programs: our own programs first on the path, without your settings and
    proxies.
    """
    # PG…: libpq's settings, and the server's.
    kept = {name: value for name, value in environment.items() if not name.startswith(("HAWSE_", "PG"))}
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    for name in ("NO_PROXY", "no_proxy"):
        kept[name] = ",".join(filter(None, (environment.get(name), "127.0.0.1")))
    return kept


def find_programs() -> None:
    """Raise DemoError if a required program is missing."""
    for program in ("kubectl", "hawse"):
        if shutil.which(program) is None:
            raise DemoError(f"there is no {program} on PATH: `make demo` installs it into .venv")


def end_once(_signal: int, _frame: FrameType | None) -> None:
    """Interrupt the demo once; further signals do not interrupt the cleanup."""
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Run from the command line; returns the exit code."""
    arguments = parse()
    environment = prepare_environment(dict(os.environ))
    os.environ.clear()
    os.environ.update(environment)
    # Each of these ends the demo as Ctrl-C does, so that its objects are removed.
    for number in ENDING_SIGNALS:
        signal.signal(number, end_once)
    try:
        return run(arguments)
    except DemoError as error:
        # The first error comes first; the cleanup may have failed after it.
        if isinstance(error.__context__, DemoError) and not error.__suppress_context__:
            say(f"make demo: {error.__context__}")
        say(f"make demo: {error}")
        return 1
    except KeyboardInterrupt:
        say("make demo: interrupted")
        return INTERRUPTED


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; returns the exit code, and raises DemoError or KeyboardInterrupt."""
    find_programs()
    folder, kubeconfig = arguments.dir.resolve(), arguments.kubeconfig
    if kubeconfig is not None and not kubeconfig.is_file():
        raise DemoError(f"there is no file {kubeconfig}: name a disposable cluster's admin kubeconfig")
    cluster = None if kubeconfig is None else kubeconfig.resolve()
    hubs = arguments.hubs
    postgres = arguments.database == "postgres" or hubs > 1
    steps = (*STEPS, *MORE_STEPS) if hubs > 1 else STEPS
    with own_folder(folder), running(folder, cluster, arguments.port, postgres=postgres, hubs=hubs) as stage:
        failed = run_script(steps, stage.scene)
        if failed:
            say(f"\nmake demo: {len(failed)} of {len(steps)} steps failed: {', '.join(failed)}")
        else:
            say(f"\nall {len(steps)} steps did what they say")
        if not arguments.once:
            stay(stage)
        elif postgres:
            say("the trail ends with its PostgreSQL: to read it, run this without --once")
        else:
            say(f"the trail stays, for you to read:\n  {audit_list(stage)}")
    return 1 if failed else 0


def audit_list(stage: Stage) -> str:
    """The command that reads the session's trail, during the demo and after it."""
    settings = " ".join(f"{name}={value}" for name, value in stage.scene.hawse.environment.items())
    return f"{settings} {Path(sys.executable).parent}/hawse audit list"


def console_url(stage: Stage) -> str:
    """A URL that signs a browser in to the console, as the operator of the hub."""
    url, _ = stage.scene.hawse.run("admin", "console", "open", "--expires", CODE_LIFETIME)
    return url.strip()


def stay(stage: Stage) -> None:
    """Explain how to try it by hand, and return at Ctrl-C. Raises DemoError if a process ends by itself."""
    # All settings but HOME, which is your own.
    settings = "\n".join(
        f"  export {name}={value}"
        for name, value in stage.scene.kubectl.environment.items()
        if name != "HOME"
    )
    programs = Path(sys.executable).parent
    try:
        say("\nenrolling more agents, which work until you end this ...")
        with working_fleet(stage):
            say(
                "\nEverything stays up until Ctrl-C. Try it by hand in another terminal:\n\n"
                f"  export PATH={programs}:$PATH\n"
                f"{settings}\n"
                f"  kubectl get pods -n {NAMESPACE}\n\n"
                "watch the trail in a third:\n\n"
                f"  {audit_list(stage)} --follow\n\n"
                f"and see all of it in the console: open this in a browser within {CODE_LIFETIME}\n\n"
                f"  {console_url(stage)}\n"
            )
            while True:
                time.sleep(POLL_S)
                stage.daemons.check()
    except KeyboardInterrupt:
        say("\nstopping ...")


if __name__ == "__main__":
    sys.exit(main())
