"""The images of relay and hub, from Debian's packages and the locked wheels: `python -m deploy.image --help`.

Packages are unpacked, and none of their scripts runs. So the build needs no privileges. Its bytes depend on
the two locks, the checkout and SOURCE_DATE_EPOCH alone.
"""

from __future__ import annotations

import subprocess

from deploy.checkout import ROOT as ROOT


class ImageError(Exception):
    """The image cannot be built; the message says why, and what to do next."""


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that a program has printed; without one, as when it was killed, its exit code."""
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"
