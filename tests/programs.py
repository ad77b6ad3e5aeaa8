"""Programs of Debian that a few tests run."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

CI_VARIABLES = ("CI", "HAWSE_CI")
"""Any of these makes a missing program a failure; `.ci/run` sets the second one."""


def lacking(reason: str) -> NoReturn:
    """Skip a test that lacks a program, or fail it where all tests have to run."""
    if any(os.environ.get(variable) for variable in CI_VARIABLES):
        pytest.fail(reason)
    pytest.skip(reason)


def installed(name: str, package: str, *, path: str | None = None) -> str:
    """Return where a program is; see `lacking`."""
    found = shutil.which(name, path=path)
    if found is None:
        lacking(f"{name} is not installed: apt-get install {package}")
    return found
