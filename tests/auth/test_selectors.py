from __future__ import annotations

import pytest

from auth.selectors import SELECTOR_CHARACTERS_MAX, is_label_selector, parse_field_selector, selected_name

# The verdicts of kube-apiserver 1.36, from its audit events: a list that is narrowed to one name keeps the
# name only if its label selector is valid.
VALID = """
-
a
!a
a,b
a=
a==b
a=b,!c
a!=b
a in (x,y)
a in(x)
a in ()
a in (,)
a in (,x,)
a in (x,,y)
a in (x,,)
a in (,,x)
a in (,,)
a in (,,,)
a notin (in,notin)
in in (in)
a>1
a < 10
a.b-c_d=E
x/y=z
x.y-z/a.b=c
a=b\t
"""
INVALID = """
,
a,
,a
==
!
!!a
!a=b
a=b=c
a in x
a in (x
a in x,y)
a in (x y)
a in (,x y)
a in (,
a>
a>b
a>-1
a b
/y=z
X/y=z
x/y/z
-a
a.
a=-b
a=b.
a=ä
(a)
"""


def lines(text: str) -> list[str]:
    return ["" if line == "-" else line for line in text.strip("\n").split("\n")]


@pytest.mark.parametrize(
    "selector", [*lines(VALID), "a" * 63, f"{'p' * 253}/a", f"a={'v' * 63}", f"a>{'0' * 62}1"]
)
def test_a_label_selector_is_read(selector: str) -> None:
    assert is_label_selector(selector)


@pytest.mark.parametrize(
    "selector",
    [*lines(INVALID), "a" * 64, f"{'p' * 254}/a", f"a={'v' * 64}", f"a>{'0' * 63}1", "a\vb", "a\xa0"],
)
def test_what_is_no_label_selector_is_not(selector: str) -> None:
    assert not is_label_selector(selector)


@pytest.mark.parametrize("selector", ["a=\x00", "a\x00b", f"a>{10**18}"])
def test_what_is_not_read_to_its_end_names_nobody(selector: str) -> None:
    """kube-apiserver accepts these; a rule for one name then allows nothing here."""
    assert not is_label_selector(selector)
    assert selected_name({"fieldSelector": ["metadata.name=n"], "labelSelector": [selector]}) == ""


@pytest.mark.parametrize(
    "part", ["a-", "a=b,", "a in (x,", "a in (,", "0", "a.", "=", "(", "!", "p.", "p-", " ", "a in (x) "]
)
def test_a_selector_as_long_as_a_target_is_read_in_its_length(part: str) -> None:
    # A backtracking pattern would run for days, into the test's timeout.
    assert not is_label_selector(part * (500_000 // len(part)) + "=")


@pytest.mark.parametrize(
    ("selector", "terms"),
    [
        ("", []),
        (",,", []),
        ("b=1,a!=2", [("a", "!=", "2"), ("b", "=", "1")]),
        ("a==", [("a", "==", "")]),
        ("=x", [("", "=", "x")]),
        (r"a=b\,c\=d\\", [("a", "=", "b,c=d\\")]),
        (r"a=b\c", None),
        ("a=b\\", None),
        ("a=b=c", None),
        ("a", None),
    ],
)
def test_a_field_selector_is_sorted_terms(selector: str, terms: list[tuple[str, str, str]] | None) -> None:
    assert parse_field_selector(selector) == terms


@pytest.mark.parametrize("option", ["limit", "timeoutSeconds"])
@pytest.mark.parametrize(
    ("value", "name"),
    [
        *(
            ("5", "n"),
            ("+5", "n"),
            ("-1", "n"),
            ("007", "n"),
            ("0" * 9_999 + "7", "n"),
            ("-0", "n"),
            (str(2**63 - 1), "n"),
            (str(-(2**63)), "n"),
        ),
        *(("", ""), ("x", ""), ("+", ""), ("0x10", ""), ("1_0", ""), (" 5", ""), ("٣", ""), (str(2**63), "")),
    ],
)
def test_a_number_that_is_none_takes_the_name_away(option: str, value: str, name: str) -> None:
    assert selected_name({"fieldSelector": ["metadata.name=n"], option: [value]}) == name


def test_a_selector_that_takes_long_to_read_narrows_a_list_to_no_name() -> None:
    """It then needs the permission for a list of everything."""
    for name, filler in (("fieldSelector", ",a=b"), ("labelSelector", ",a")):
        parameters = {"fieldSelector": ["metadata.name=n"], "labelSelector": ["a"]}
        parameters[name][0] += filler * ((SELECTOR_CHARACTERS_MAX - 20) // len(filler))
        assert selected_name(parameters) == "n"
        parameters[name][0] += filler * 20
        assert len(parameters[name][0]) > SELECTOR_CHARACTERS_MAX
        assert selected_name(parameters) == ""
