from __future__ import annotations

from benchmarks.systems.leg import straight


def test_without_a_detour_the_private_end_dials_the_public_one() -> None:
    assert straight(8443) == 8443
