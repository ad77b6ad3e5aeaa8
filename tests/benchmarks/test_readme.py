from __future__ import annotations

from benchmarks.readme import BEGIN, DOCUMENT, END, PARTS, chosen
from benchmarks.workloads import BY_NAME


def test_every_part_is_a_workload_that_has_its_variants() -> None:
    assert [workload.name for workload in chosen()] == list(PARTS)
    for name, (variants, systems) in PARTS.items():
        (whole,) = (workload for workload in BY_NAME[name] if workload.name == name)
        assert set(variants) <= set(whole.variants)
        assert (systems or set()) <= (whole.systems or {"nginx", "hawse"})


def test_the_document_has_a_place_for_the_figures() -> None:
    text = DOCUMENT.read_text()
    assert text.index(BEGIN) < text.index(END)
