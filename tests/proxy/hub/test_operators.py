from __future__ import annotations

from pathlib import Path

from auth.apikey import hash as hash_key
from proxy.hub.datadir import DataDir
from proxy.hub.directory import open_directory
from proxy.hub.operators import ensure_local_operator


async def test_the_first_start_makes_the_local_operator_and_later_ones_keep_it(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path)
    pepper = data.pepper()
    for _ in range(2):
        async with open_directory(data.store_file, org="main", clock=lambda: 1.0) as directory:
            await ensure_local_operator(data, directory, pepper)
            token = data.admin_token()
            assert token is not None
            (known,) = directory.current.admin_tokens_by_hash.items()
            assert (known[0], known[1].name) == (hash_key(token, pepper), "local")
    first = token
    data.admin_token_file.unlink()
    async with open_directory(data.store_file, org="main", clock=lambda: 1.0) as directory:
        await ensure_local_operator(data, directory, pepper)
        assert data.admin_token() not in {None, first}
        # The lost token no longer opens anything.
        assert hash_key(first, pepper) not in directory.current.admin_tokens_by_hash
