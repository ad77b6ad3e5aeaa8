"""Where the time of a new token goes: CPU ms of the plugin's process, step by step.

    .venv/bin/python -m benchmarks.units.plugin [RUNS]

Each step is a fresh process that does the steps before it as well, and ends as the plugin does. The runs of
all steps alternate. A step's figure is its least CPU time less that of the step before, as disturbances only
add. The last step is the plugin as kubectl runs it, with an own key, at a hub of its own.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.systems.hawse import TOP, enrolled
from benchmarks.upstream.kubectl import open_kubectl_server
from benchmarks.workloads.kubectl import Asked, Home, with_plugin

RUNS: Final = 30
# Each adds to the one before.
STEPS: Final = (
    ("Python, its start and end", ""),
    ("json, re, typing", "import json, re, typing"),
    ("the plugin, which reads the question, the login and its cache", "import proxy.agent.token.credential"),
    ("ssl, socket", "import ssl"),
    ("the request to the hub", "import proxy.agent.hub.requests"),
    ("Ed25519 and the assertion", "import auth.assertion"),
    ("a TLS context", "ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)"),
)
WHOLE: Final = "the connection, the signature, the answer, the files, and the shell before it"


def step(code: str) -> Asked:
    """Run a fresh interpreter to its end."""
    program = f"import os, gc; gc.disable(); {code}; os._exit(0)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began_ns = time.perf_counter_ns()
    subprocess.run([sys.executable, "-c", program], check=True, cwd=TOP, stdin=subprocess.DEVNULL)
    took_ns = time.perf_counter_ns() - began_ns
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Asked(took_ns / 1e6, cpu_s * 1e3)


def measure(runs: int, whole: Callable[[], Asked]) -> list[tuple[str, Asked]]:
    """The least time and CPU time of each step and of those before it."""
    codes = ["; ".join(code for _, code in STEPS[1:number]) for number in range(1, len(STEPS) + 1)]
    taken: list[list[Asked]] = [[] for _ in range(len(STEPS) + 1)]
    for _ in range(runs):
        for number, code in enumerate(codes):
            taken[number].append(step(code or "pass"))
        taken[-1].append(whole())
    names = [*(name for name, _ in STEPS), WHOLE]
    return [
        (name, Asked(min(each.took_ms for each in of), min(each.cpu_ms for each in of)))
        for name, of in zip(names, taken, strict=True)
    ]


def main() -> None:
    """Run from the command line."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    with tempfile.TemporaryDirectory(prefix="hawse-bench-plugin-") as name:
        folder = Path(name)
        for part in ("upstream", "hawse", "home"):
            (folder / part).mkdir()
        with (
            open_kubectl_server(folder / "upstream") as server,
            enrolled(folder / "hawse", server, "hawse", {}) as found,
        ):
            home = Home(folder / "home")
            question = with_plugin(home, found)

            def whole() -> Asked:
                home.forget_token()
                return home.ask_plugin(question)

            rows = measure(runs, whole)
    print("| | CPU ms | ms | CPU ms with all before |\n|---|---:|---:|---:|")
    before = Asked(0.0, 0.0)
    for title, now in rows:
        cpu_ms, took_ms = now.cpu_ms - before.cpu_ms, now.took_ms - before.took_ms
        print(f"| {title} | {cpu_ms:.1f} | {took_ms:.1f} | {now.cpu_ms:.1f} |")
        before = now


if __name__ == "__main__":
    main()
