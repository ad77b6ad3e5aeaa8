from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.system import Endpoint, Missing
from benchmarks.systems import PEERS, golang
from benchmarks.upstream.other import OtherUpstream

NO_UPSTREAM = OtherUpstream(Endpoint("127.0.0.1", 1, Path("ca.pem")))


@pytest.mark.parametrize(
    ("system", "program"),
    [
        ("chisel", "chisel"),
        ("frp", "frps"),
        ("yamux", "yamux"),
        ("konnectivity", "proxy-server"),
        ("rdialer", "remotedialer"),
        ("rdialer-http", "remotedialer"),
    ],
)
def test_what_is_not_built_says_how_to_build_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, program: str
) -> None:
    monkeypatch.setattr(golang, "TOP", tmp_path)
    monkeypatch.setattr(golang, "PROGRAMS", tmp_path / "bin")
    with pytest.raises(Missing, match=rf"{program}: there is no bin/{program}: make bench-go"):
        with PEERS[system](tmp_path, NO_UPSTREAM):
            pytest.fail("there is no such program")
