from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.policy.text import DEPTH_MAX, SOURCE_CHARACTERS_MAX, PolicyError, Source, read, split


def data(text: str) -> object:
    return read(Source(text)).data()


def faults(text: str) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        read(Source(text, "f.yaml"))
    return str(caught.value).splitlines()


def test_a_scalar_is_the_text_that_stands_there() -> None:
    assert data("{a: on, b: no, c: 1.10, d: 010, e: 2026-01-01, f: ~, g: ''}") == {
        "a": "on",
        "b": "no",
        "c": "1.10",
        "d": "010",
        "e": "2026-01-01",
        "f": None,
        "g": "",
    }


def test_each_value_knows_its_line_and_path() -> None:
    item = read(Source("a:\n  - b: 1\n    c: 2\n", first_line=10))
    assert isinstance(item.value, dict)
    listed = item.value["a"].value
    assert isinstance(listed, list)
    inner = listed[0].value
    assert isinstance(inner, dict)
    assert (inner["c"].line, inner["c"].path) == (12, "a[0].c")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "f.yaml:2: a: this key is already on line 1"),
        ("a: &x 1\nb: *x\n", "f.yaml:2: b: an alias (*name) is refused: write out what it stands for"),
        ("a: !!int 1\n", "f.yaml:1: a: an anchor (&name) or a tag (!name) is refused"),
        ("a: {<<: {b: 1}}\n", "f.yaml:1: a: a merge key (<<) is refused: write out what it stands for"),
        ("? [a]\n: 1\n", "f.yaml:1: a key must be text"),
        ("a: 1\n---\nb: 2\n", "f.yaml:3: a second document begins here: give each by itself"),
        ("a: 1\r---\rb: 2\r", "f.yaml:3: a second document begins here: give each by itself"),
        ("a: [1\nb: 2\n", "f.yaml:2: not valid YAML: "),
        ("a: \x00\n", "f.yaml:1: not valid YAML: "),
        ("a: ä\nb:\n\t- c\n", "f.yaml:3: not valid YAML: a tab is not allowed here: indent with spaces"),
        ("a: [1\nb: 2\n\t", "f.yaml:2: not valid YAML: "),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_with_its_line(text: str, message: str) -> None:
    assert any(fault.startswith(message) for fault in faults(text)), faults(text)


def test_a_document_has_bounds() -> None:
    assert "levels" in faults("[" * (DEPTH_MAX + 2) + "]" * (DEPTH_MAX + 2))[0]
    assert "characters exceed" in faults("a" * (SOURCE_CHARACTERS_MAX + 1))[0]


def test_a_file_is_cut_into_its_documents_with_their_lines_and_comments() -> None:
    text = "# first\na: 1\n---\n# nothing\n---\n# second\nb: 2\n--- # third\nc: 3\n"
    sources = split(text, "f.yaml")
    assert [read(source).data() for source in sources] == [{"a": "1"}, {"b": "2"}, {"c": "3"}]
    assert "# first" in sources[0].text
    for source, line in zip(sources, (2, 7, 9), strict=True):
        item = read(source)
        assert isinstance(item.value, dict)
        assert next(iter(item.value.values())).line == line


def test_a_file_of_very_many_documents_is_cut_as_fast_as_it_is_read() -> None:
    marks = 200_000
    [source] = split("---\n" * marks + "a: 1\n")
    # Counting lines from the top for each of them would take minutes.
    assert source.first_line == marks + 1


@given(st.text(max_size=200))
def test_nothing_but_a_fault_comes_of_any_text(text: str) -> None:
    for source in split(text):
        with suppress(PolicyError):
            read(source)
