"""What Helm renders of two sets of values, so that tests without Helm can compare it.

`make charts-rendered` writes these files, and `make charts` holds them equal to Helm's output. Their first
line has the digest of the chart that they were rendered from: a change of the chart is noticed without Helm.
"""

from __future__ import annotations

from pathlib import Path

from deploy.charts import digest

FOLDER = Path(__file__).parent
RENDERED = ("example", "everything")


def first_line() -> str:
    return f"# Rendered by Helm from the chart with the SHA-256 {digest('hawse-relay')}.\n"


def path(name: str) -> Path:
    return FOLDER / f"{name}.yaml"
