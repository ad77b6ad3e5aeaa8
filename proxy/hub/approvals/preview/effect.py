"""The effect of a call in a form that is compared and stored, and that reveals no value.

The effect is over real values, also of Secrets. A plain digest of a short password could be found by trying
all of them. So each request has a salt of its own, which is stored beside the digests in the request's row,
and nowhere else: the trail and the approvers get digests in which the salt is hashed with the rest
(`NewRequest.shown`). A key that all hubs share would have to be created, sealed, rotated and restored, and
equal passwords in two requests would have equal digests.
"""

from __future__ import annotations


def effect_fits(granted: str, now: str) -> bool:
    """Return whether a call with the effect `now` may use a grant for the effect `granted`.

    `now` must have been made with the salt of `granted` (`Previewer.preview(…, like=granted)`). The effects
    must be equal. For a deletecollection, a subset of the objects is the same effect.
    """
    raise NotImplementedError
