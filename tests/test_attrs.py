"""What is said to attrs is said in a class that attrs makes."""

from __future__ import annotations

from tests.modules import modules, run

# In any other class `attrs.Factory(list)` is no list, and a type checker takes it for one all the same.
FIND_WHAT_IS_LEFT = """
import importlib, sys
import attrs

for_attrs = (type(attrs.Factory(list)), type(attrs.field()))
names = sys.argv[1:]
packages = {name.partition(".")[0] for name in names}
left, seen = [], set()


def look_into(made):
    for name, value in vars(made).items():
        if isinstance(value, for_attrs):
            left.append(f"{made.__module__}.{made.__qualname__}.{name}")
        look_at(value)


def look_at(value):
    if isinstance(value, type) and value not in seen and value.__module__.partition(".")[0] in packages:
        seen.add(value)
        look_into(value)


for name in names:
    for value in vars(importlib.import_module(name)).values():
        look_at(value)
assert len(seen) > 100, seen
assert not left, left
"""


def test_no_class_has_a_default_that_only_attrs_would_make() -> None:
    run(FIND_WHAT_IS_LEFT, *modules())
