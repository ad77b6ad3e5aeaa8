"""Hawse's version. The wheel's metadata take it from here (pyproject.toml).

Not read from the installed metadata: importlib.metadata loads zipfile, email and csv, which costs each
command 15 ms of CPU.
"""

from __future__ import annotations

VERSION = "0.1.0"
