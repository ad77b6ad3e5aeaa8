from __future__ import annotations

from benchmarks.workloads.scale import head, timed_ms


def test_a_head_names_its_cluster_and_bears_its_token() -> None:
    lines = head("cluster-0007", "secret").split("\r\n")
    assert lines[0].startswith("GET /clusters/cluster-0007/api/v1/")
    assert lines[0].endswith(" HTTP/1.1")
    assert "Authorization: Bearer secret" in lines
    assert lines[-2:] == ["", ""]


def test_what_is_timed_has_been_done_once_before() -> None:
    calls: list[int] = []
    assert timed_ms(lambda: calls.append(1)) >= 0
    assert len(calls) == 2
