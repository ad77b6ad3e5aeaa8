from __future__ import annotations

import pytest

from sandbox.objects import Object
from sandbox.selectors import exact_name, field_matcher, from_object, labels_match, parse_fields, parse_labels
from sandbox.status import StatusError


def labelled(**labels: str) -> Object:
    return {"metadata": {"name": "p", "namespace": "a", "labels": {**labels}}, "status": {"phase": "Running"}}


@pytest.mark.parametrize(
    ("selector", "matching", "other"),
    [
        ("a=1", {"a": "1"}, {"a": "2"}),
        ("a==1", {"a": "1"}, {}),
        ("a!=1", {}, {"a": "1"}),
        ("a", {"a": "x"}, {"b": "x"}),
        ("!a", {"b": "x"}, {"a": "x"}),
        ("a in (1, 2)", {"a": "2"}, {"a": "3"}),
        ("a notin (1,2)", {}, {"a": "1"}),
        ("a>3", {"a": "4"}, {"a": "x"}),
        ("a<3", {"a": "2"}, {"a": "3"}),
        ("a in (1,2),b=3", {"a": "1", "b": "3"}, {"a": "1"}),
        ("app.kubernetes.io/name=web", {"app.kubernetes.io/name": "web"}, {}),
        ("a=", {"a": ""}, {}),
        ("", {}, None),
    ],
)
def test_label_selectors(selector: str, matching: dict[str, str], other: dict[str, str] | None) -> None:
    terms = parse_labels(selector)
    assert labels_match(terms, labelled(**matching))
    assert other is None or not labels_match(terms, labelled(**other))


@pytest.mark.parametrize("selector", ["a in", "a = b = c", "a in (1", "=x"])
def test_a_label_selector_that_is_none(selector: str) -> None:
    with pytest.raises(StatusError) as caught:
        parse_labels(selector)
    assert caught.value.code == 400


def test_the_selector_of_an_object() -> None:
    terms = from_object(
        {
            "matchLabels": {"a": "1"},
            "matchExpressions": [
                {"key": "b", "operator": "In", "values": ["2", "3"]},
                {"key": "c", "operator": "DoesNotExist"},
            ],
        }
    )
    assert labels_match(terms, labelled(a="1", b="3"))
    assert not labels_match(terms, labelled(a="1", b="3", c=""))


def test_field_selectors_select_by_what_they_may_name() -> None:
    allowed = ("metadata.name", "status.phase")
    match = field_matcher(parse_fields("metadata.name=p,status.phase!=Failed"), allowed)
    assert match(labelled())
    assert not field_matcher(parse_fields("metadata.name==q"), allowed)(labelled())
    with pytest.raises(StatusError, match=r"field label not supported: spec\.x"):
        field_matcher(parse_fields("spec.x=1"), allowed)
    with pytest.raises(StatusError, match="can't understand"):
        parse_fields("metadata.name")


def test_a_selector_for_one_name_is_as_good_as_the_name() -> None:
    assert exact_name("metadata.name=p") == "p"
    assert exact_name("status.phase=Running,metadata.name=p") == "p"
    assert exact_name("metadata.name!=p") == ""
    assert exact_name("metadata.name=a/b") == ""
