"""Names and globs in policies: `app-*` includes names, and `!app-old` excludes one."""

from __future__ import annotations

from collections.abc import Iterable

import attrs


@attrs.frozen
class _Glob:
    """A pattern with stars, each for any characters.

    Not a regular expression: with two stars those backtrack, and agents choose the names in their URLs.
    """

    prefix: str
    inner: tuple[str, ...]
    suffix: str

    @classmethod
    def of(cls, pattern: str) -> _Glob:
        prefix, *rest = pattern.split("*")
        return cls(prefix, tuple(part for part in rest[:-1] if part), rest[-1])

    def matches(self, name: str) -> bool:
        if not name.startswith(self.prefix) or not name.endswith(self.suffix):
            return False
        # The leftmost match of each part leaves the most text for the parts behind it.
        at, end = len(self.prefix), len(name) - len(self.suffix)
        for part in self.inner:
            found = name.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return at <= end


@attrs.frozen
class Names:
    """A set of names written as patterns. A list of exclusions alone means everything else."""

    patterns: tuple[str, ...]
    _exact: frozenset[str] = attrs.field(init=False, repr=False, eq=False)
    _globs: tuple[_Glob, ...] = attrs.field(init=False, repr=False, eq=False)
    _not_exact: frozenset[str] = attrs.field(init=False, repr=False, eq=False)
    _not_globs: tuple[_Glob, ...] = attrs.field(init=False, repr=False, eq=False)
    _with_colon: tuple[_Glob, ...] = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        included = [pattern for pattern in self.patterns if not pattern.startswith("!")] or ["*"]
        excluded = [pattern[1:] for pattern in self.patterns if pattern.startswith("!")]
        object.__setattr__(self, "_exact", _without_stars(included))
        object.__setattr__(self, "_globs", _with_stars(included))
        object.__setattr__(self, "_not_exact", _without_stars(excluded))
        object.__setattr__(self, "_not_globs", _with_stars(excluded))
        object.__setattr__(
            self, "_with_colon", _with_stars(pattern for pattern in included if ":" in pattern)
        )

    def __contains__(self, name: str) -> bool:
        if name not in self._exact and not any(glob.matches(name) for glob in self._globs):
            return False
        return not self.excludes(name)

    @property
    def without_stars(self) -> list[str]:
        """The names that are written out, included or excluded."""
        return sorted(self._exact | self._not_exact)

    def excludes(self, name: str) -> bool:
        """Whether a pattern excludes the name."""
        return name in self._not_exact or any(glob.matches(name) for glob in self._not_globs)

    def overlaps(self, other: Names) -> bool:
        """Whether a name may be in both. Two lists with globs always may share one."""
        if not self._globs:
            return any(name in other for name in self._exact if name in self)
        return bool(other._globs) or other.overlaps(self)

    def includes_with_colon(self, name: str) -> bool:
        """Whether the name matches an exact pattern, or a glob that itself contains a colon."""
        return name in self._exact or any(glob.matches(name) for glob in self._with_colon)

    def __str__(self) -> str:
        return ", ".join(self.patterns)


def _without_stars(patterns: Iterable[str]) -> frozenset[str]:
    return frozenset(pattern for pattern in patterns if "*" not in pattern)


def _with_stars(patterns: Iterable[str]) -> tuple[_Glob, ...]:
    return tuple(_Glob.of(pattern) for pattern in patterns if "*" in pattern)


@attrs.frozen
class Resources:
    """A set of resources and subresources: `pods`, `pods/log`, `pods/*`, `*/scale`, `*`, `*/*`, `!secrets`.

    A subresource is a resource of its own: `pods` never includes `pods/exec`. `*` is every resource, and
    `*/*` every subresource. Ambiguous lists get the reading that permits less. So `*` in a denial includes
    every subresource. In an allowing rule `!pods` excludes pods with their subresources; in a denial it
    excludes pods alone.
    """

    patterns: tuple[str, ...]
    denies: bool = False
    _included: frozenset[tuple[str, str]] = attrs.field(init=False, repr=False, eq=False)
    _excluded: frozenset[tuple[str, str]] = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        included = {_pair(pattern) for pattern in self.patterns if not pattern.startswith("!")} or {("*", "")}
        excluded = {_pair(pattern[1:]) for pattern in self.patterns if pattern.startswith("!")}
        if self.denies:
            included |= {("*", "*")} if ("*", "") in included else set()
        else:
            excluded |= {(resource, "*") for resource, subresource in excluded if not subresource}
        object.__setattr__(self, "_included", frozenset(included))
        object.__setattr__(self, "_excluded", frozenset(excluded))

    def __contains__(self, pair: tuple[str, str]) -> bool:
        return _matches_any(pair, self._included) and not _matches_any(pair, self._excluded)

    def overlaps(self, other: Resources) -> bool:
        """Whether a resource may be in both. Two lists with stars always may share one."""
        if not any("*" in pair for pair in self._included):
            return any(pair in other for pair in self._included if pair in self)
        return any("*" in pair for pair in other._included) or other.overlaps(self)

    @property
    def named(self) -> frozenset[str] | None:
        """The names of the resources that may match; None if any may."""
        names = frozenset(resource for resource, _ in self._included)
        return None if "*" in names else names

    def __str__(self) -> str:
        return ", ".join(self.patterns)


def _pair(pattern: str) -> tuple[str, str]:
    resource, _, subresource = pattern.partition("/")
    return resource, subresource


def _matches_any(pair: tuple[str, str], patterns: frozenset[tuple[str, str]]) -> bool:
    resource, subresource = pair
    if pair in patterns or ("*", subresource) in patterns:
        return True
    return bool(subresource) and ((resource, "*") in patterns or ("*", "*") in patterns)


@attrs.frozen
class Urls:
    """Non-resource paths: `/metrics`, and `/logs/*` for everything below. A trailing slash is ignored."""

    patterns: tuple[str, ...]
    _exact: frozenset[str] = attrs.field(init=False, repr=False, eq=False)
    _prefixes: tuple[str, ...] = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        exact = frozenset(_bare(pattern) for pattern in self.patterns if not pattern.endswith("*"))
        prefixes = tuple(pattern[:-1] for pattern in self.patterns if pattern.endswith("*"))
        object.__setattr__(self, "_exact", exact)
        object.__setattr__(self, "_prefixes", prefixes)

    def __contains__(self, path: str) -> bool:
        return path.startswith(self._prefixes) or _bare(path) in self._exact

    def __str__(self) -> str:
        return ", ".join(self.patterns)


def _bare(path: str) -> str:
    return path[:-1] if path.endswith("/") and path != "/" else path
