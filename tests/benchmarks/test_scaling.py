from __future__ import annotations

from benchmarks.scaling import BEGIN, DOCUMENT, END, PARTS, chosen


def test_every_part_is_a_workload_and_has_a_variant() -> None:
    assert {workload.name for workload in chosen()} == set(PARTS)
    assert all(workload.variants for workload in chosen())


def test_the_document_has_a_place_for_the_figures() -> None:
    text = DOCUMENT.read_text()
    assert text.index(BEGIN) < text.index(END)
