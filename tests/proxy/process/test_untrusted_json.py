from __future__ import annotations

import pytest

from proxy.process.untrusted_json import read_json


def test_what_is_json_is_read_from_either_kind_of_text() -> None:
    for text in ('{"a": [1, null]}', b'{"a": [1, null]}'):
        assert read_json(text) == {"a": [1, None]}


@pytest.mark.parametrize(
    "text", ["", "{", b"\xff", "[" * 100_000, "[" * 100_000 + "]" * 100_000, b'{"a":' * 100_000]
)
def test_what_cannot_be_read_is_one_kind_of_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        read_json(text)
