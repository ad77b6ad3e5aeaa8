"""The machine and the versions that figures come from, to compare them with others."""

from __future__ import annotations

import os
import platform
import ssl
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.system import System, Upstream

# What the data path is made of.
_PACKAGES = ("trio", "h11", "wsproto", "websockets", "cryptography", "pyjwt")


def machine() -> list[str]:
    """The processor, memory, kernel and Python, a line each."""
    return [
        f"{os.cpu_count()} x {_processor()}",
        f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB of memory",
        f"{platform.system()} {platform.release()}",
        f"{platform.python_implementation()} {platform.python_version()}, {ssl.OPENSSL_VERSION}",
    ]


def versions(upstream: Upstream, systems: Iterable[System]) -> list[str]:
    """What ran, a line each: every program once, then the packages of the data path."""
    found = dict(upstream.versions)
    for system in systems:
        found |= system.versions
    return [*(f"{name} {number}" for name, number in found.items()), ", ".join(_packages())]


def _packages() -> list[str]:
    lines = []
    for name in _PACKAGES:
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"no {name}")
    return lines


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = known.get("model name", platform.machine())
    if "cpu family" not in known:
        return name
    # The name that a virtual machine gives its processor can be that of ten years of them.
    return f"{name} (family {known['cpu family']}, model {known['model']})"
