"""The peers written in Go, which `make bench-go` builds."""

from __future__ import annotations

from pathlib import Path

from benchmarks.system import Missing

TOP = Path(__file__).parents[2]
PROGRAMS = TOP / "benchmarks" / "peers" / "go" / "bin"


def built(name: str) -> str:
    """The path of a built program; raises Missing with how to build it."""
    found = PROGRAMS / name
    if not found.exists():
        missing = found.relative_to(TOP)
        raise Missing(f"{name}: there is no {missing}: make bench-go, see benchmarks/README.md")
    return str(found)


def version(name: str) -> str:
    """What a program was built from, as `make bench-go` wrote it down."""
    return (PROGRAMS / f"{name}.version").read_text().strip()
