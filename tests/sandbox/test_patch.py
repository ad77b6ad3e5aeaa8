from __future__ import annotations

import contextlib
import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.objects import Json, Object
from sandbox.patch import apply_configuration, json_patch, merge_patch, strategic_merge
from sandbox.status import StatusError

POD: Object = {
    "metadata": {"labels": {"a": "1", "b": "2"}, "finalizers": ["one"]},
    "spec": {
        "containers": [
            {"name": "x", "image": "i", "args": ["1"], "env": [{"name": "A", "value": "1"}]},
            {"name": "y", "image": "j"},
        ]
    },
}

values = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


# The examples of RFC 7396, appendix A.
@pytest.mark.parametrize(
    ("value", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "foo"}, None, None),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch(value: Json, patch: Json, result: Json) -> None:
    assert merge_patch(value, patch) == result


@given(values, values)
def test_a_merge_patch_without_nulls_is_idempotent_and_changes_nothing_in_place(
    value: Json, patch: Json
) -> None:
    before = copy.deepcopy(value)
    once = merge_patch(value, patch)
    assert merge_patch(once, patch) == once
    assert value == before


def test_strategic_merge_joins_lists_by_their_key() -> None:
    patch: Object = {
        "spec": {"containers": [{"name": "x", "image": "new", "env": [{"name": "B", "value": "2"}]}]}
    }
    before = copy.deepcopy(POD)
    result = strategic_merge("Pod", POD, patch)
    assert result["spec"] == {
        "containers": [
            {
                "name": "x",
                "image": "new",
                "args": ["1"],
                "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
            },
            {"name": "y", "image": "j"},
        ]
    }
    assert before == POD


def test_strategic_merge_obeys_its_directives() -> None:
    def containers(patch: Object) -> Json:
        spec = strategic_merge("Pod", POD, {"spec": patch})["spec"]
        assert isinstance(spec, dict)
        return spec["containers"]

    assert containers({"containers": [{"name": "x", "$patch": "delete"}]}) == [{"name": "y", "image": "j"}]
    assert containers({"containers": [{"$patch": "replace"}, {"name": "z"}]}) == [{"name": "z"}]
    order: Json = [{"name": "y"}, {"name": "z"}, {"name": "x"}]
    added: Json = [{"name": "z"}]
    result = containers({"$setElementOrder/containers": order, "containers": added})
    assert isinstance(result, list)
    assert [item["name"] for item in result if isinstance(item, dict)] == ["y", "z", "x"]


def test_strategic_merge_of_plain_lists_and_of_what_has_no_key() -> None:
    result = strategic_merge("Pod", POD, {"metadata": {"finalizers": ["two"], "labels": {"a": None}}})
    assert result["metadata"] == {"labels": {"b": "2"}, "finalizers": ["one", "two"]}
    emptied: Object = {"metadata": {"$deleteFromPrimitiveList/finalizers": ["one"]}}
    result = strategic_merge("Pod", POD, emptied)
    assert result["metadata"] == {"labels": {"a": "1", "b": "2"}, "finalizers": []}
    result = strategic_merge("Pod", POD, {"spec": {"containers": [{"name": "x", "args": ["2"]}]}})
    assert "'args': ['2']" in str(result)


def test_retain_keys_and_replace() -> None:
    deployment: Object = {"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}
    patch: Object = {"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}
    assert strategic_merge("Deployment", deployment, patch) == {"spec": {"strategy": {"type": "Recreate"}}}
    patch = {"spec": {"strategy": {"$patch": "replace", "type": "Recreate"}}}
    assert strategic_merge("Deployment", deployment, patch) == {"spec": {"strategy": {"type": "Recreate"}}}


def test_a_configuration_is_laid_over() -> None:
    configuration: Object = {
        "metadata": {"labels": {"c": "3"}},
        "spec": {"containers": [{"name": "y", "image": "k"}]},
    }
    result = apply_configuration("Pod", POD, configuration)
    assert result["metadata"] == {"labels": {"a": "1", "b": "2", "c": "3"}, "finalizers": ["one"]}
    assert "'image': 'k'" in str(result)
    assert "'image': 'i'" in str(result)


# From the examples of RFC 6902, appendix A.
@pytest.mark.parametrize(
    ("value", "operations", "result"),
    [
        ({"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux"}], {"baz": "qux", "foo": "bar"}),
        (
            {"foo": ["bar", "baz"]},
            [{"op": "add", "path": "/foo/1", "value": "qux"}],
            {"foo": ["bar", "qux", "baz"]},
        ),
        ({"foo": ["bar"]}, [{"op": "add", "path": "/foo/-", "value": ["a"]}], {"foo": ["bar", ["a"]]}),
        ({"baz": "qux", "foo": "bar"}, [{"op": "remove", "path": "/baz"}], {"foo": "bar"}),
        ({"foo": ["a", "b"]}, [{"op": "remove", "path": "/foo/0"}], {"foo": ["b"]}),
        ({"baz": "qux"}, [{"op": "replace", "path": "/baz", "value": "boo"}], {"baz": "boo"}),
        (
            {"a": {"b": 1}, "c": {}},
            [{"op": "move", "from": "/a/b", "path": "/c/d"}],
            {"a": {}, "c": {"d": 1}},
        ),
        ({"a": [1]}, [{"op": "copy", "from": "/a", "path": "/b"}], {"a": [1], "b": [1]}),
        ({"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": 10}], {"/": 9, "~1": 10}),
    ],
)
def test_json_patch(value: Object, operations: Json, result: Object) -> None:
    before = copy.deepcopy(value)
    assert json_patch(value, operations) == result
    assert value == before


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/a", "value": 2},
        {"op": "remove", "path": "/b"},
        {"op": "replace", "path": "/b", "value": 1},
        {"op": "add", "path": "/b/c", "value": 1},
        {"op": "add", "path": "/l/9", "value": 1},
        {"op": "spin", "path": "/a"},
        {"op": "add", "path": "a", "value": 1},
        {"op": "remove", "path": ""},
        {"op": "replace", "path": "", "value": 3},
        "remove",
    ],
)
def test_a_json_patch_that_cannot_be_applied(operation: Json) -> None:
    with pytest.raises(StatusError) as caught:
        json_patch({"a": 1, "l": []}, [operation])
    assert caught.value.code in (400, 422)


@given(
    values, st.lists(st.dictionaries(st.sampled_from(["op", "path", "from", "value"]), values), max_size=3)
)
def test_no_json_patch_raises_anything_else(value: Json, operations: list[Json]) -> None:
    with contextlib.suppress(StatusError):
        json_patch({"a": value}, operations)
