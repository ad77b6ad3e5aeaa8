"""The end of an answer that cannot be completed."""

from __future__ import annotations


class CutError(Exception):
    """The answer ends here: the connection is cut, so that its client takes it for no complete one."""
