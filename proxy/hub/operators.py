"""The first operator: whoever owns the data folder administers the hub, without being enrolled."""

from __future__ import annotations

from auth.apikey import hash as hash_key
from proxy.hub.datadir import DataDir
from proxy.hub.directory import Directory

LOCAL_TOKEN = "local"  # noqa: S105 - a name


async def ensure_local_operator(data: DataDir, directory: Directory, pepper: bytes) -> None:
    """Make the token that `hawse admin` on this machine finds, unless it is there and the store knows it.

    Deleting the file and starting the hub again is thus the way back for an operator who lost every token.
    Raises DataDirError, StoreUnavailableError.
    """
    token = data.admin_token()
    if token is not None and hash_key(token, pepper) in directory.current.admin_tokens_by_hash:
        return
    token_hash = hash_key(data.make_admin_token(), pepper)
    await directory.change(lambda store: store.add_admin_token(LOCAL_TOKEN, token_hash, replace=True))
