"""The real upstream, for tests that need nginx to be there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.system import Missing
from benchmarks.upstream.apiserver import ApiServer, open_apiserver
from tests.programs import lacking


@pytest.fixture(scope="module")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    folder: Path = tmp_path_factory.mktemp("upstream")
    try:
        opened = open_apiserver(folder)
        server = opened.__enter__()
    except Missing as error:
        lacking(str(error))
    yield server
    opened.__exit__(None, None, None)
