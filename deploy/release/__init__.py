"""A release: wheel, source distribution, bill of materials, checksums. `python -m deploy.release --help`.

It is made of the commit's files alone. README.md says how a release is made.
"""

from __future__ import annotations


class ReleaseError(Exception):
    """Nothing can be released; each line of the message says why, and what to do next."""
