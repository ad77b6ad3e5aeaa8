"""The one name that a list's query selects, as kube-apiserver determines it before it authorises.

kube-apiserver decodes the list options and takes the value of `metadata.name` from the field selector. If any
option fails to decode, including the label selector, there is no name. So this module validates both
grammars, as of Kubernetes 1.36. It refuses two kinds of label selectors that are valid there: numbers of
10^18 or more, and zero bytes, which end a word or the whole text there. Older releases refuse `a in (x,,)`:
they answer such a list with 400, regardless of the name that it was authorised for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

# Some 500 terms. A list with a longer selector counts as a list of everything here, and needs that
# permission. Reading 1 MiB of selectors would block the loop for a second.
SELECTOR_CHARACTERS_MAX = 16 * 1024

_INT64_MAX = 2**63 - 1
_INTEGER = re.compile(r"([+-]?)(?=[0-9])0*+([0-9]{0,19})")

_TERM = re.compile(r"(.*?)(!=|==|=)(.*)", re.DOTALL)
_UNESCAPED = re.compile(r"(?:[^\\,=]|\\[\\,=])*", re.DOTALL)

_TOKEN = re.compile(r"!=|==|[=!(),<>]|[^=!(),<> \t\r\n\0]+")
_BLANKS = re.compile(r"[ \t\r\n]*")
# The grammar of tokens joined by one blank. All repetition is possessive: a selector may be as long as a
# target.
_NAME = r"(?=[^ /]{1,63}(?: |\Z))[A-Za-z0-9]++(?:[-_.]++[A-Za-z0-9]++)*+"
_DNS_LABEL = r"[a-z0-9]++(?:-++[a-z0-9]++)*+"
_KEY = rf"(?:(?=[^ /]{{1,253}}/){_DNS_LABEL}(?:\.{_DNS_LABEL})*+/)?+{_NAME}"
_SET = rf"(?:in|notin) \( (?:{_NAME} )?+(?:, (?:{_NAME} )?+)*+\)"
_NUMBER = r"(?=[0-9]{1,63}(?: |\Z))0*+[0-9]{0,18}(?= |\Z)"
_COMPARED = rf"(?:{_SET}|(?:==|=|!=)(?: {_NAME})?+|[<>] {_NUMBER})"
_REQUIREMENT = rf"(?:! {_KEY}|{_KEY}(?: {_COMPARED})?+)"
_LABELS = re.compile(rf"(?:{_REQUIREMENT}(?: , {_REQUIREMENT})*+)?+")


def selected_name(parameters: Mapping[str, Sequence[str]]) -> str:
    """The name that `fieldSelector=metadata.name=x` selects; empty if there is none."""
    # Nearly every list returns here.
    if "fieldSelector" not in parameters:
        return ""
    selectors = [_first(parameters, name) for name in ("fieldSelector", "labelSelector")]
    if max(map(len, selectors)) > SELECTOR_CHARACTERS_MAX:
        return ""
    for field, operator, value in _field_terms(parameters) or ():
        if field == "metadata.name" and operator != "!=":
            return "" if value in {".", ".."} or "/" in value or "%" in value else value
    return ""


def _field_terms(parameters: Mapping[str, Sequence[str]]) -> list[tuple[str, str, str]] | None:
    """The terms of the field selector; None if kube-apiserver cannot decode the list options."""
    for option in ("timeoutSeconds", "limit"):
        if option in parameters and not _is_int64(_first(parameters, option)):
            return None
    if not is_label_selector(_first(parameters, "labelSelector")):
        return None
    return parse_field_selector(_first(parameters, "fieldSelector"))


def is_label_selector(selector: str) -> bool:
    """Whether a text is a label selector; the empty one is."""
    tokens = _TOKEN.findall(selector)
    if _BLANKS.fullmatch(_TOKEN.sub("", selector)) is None:
        return False
    return _LABELS.fullmatch(" ".join(tokens)) is not None


def parse_field_selector(selector: str) -> list[tuple[str, str, str]] | None:
    r"""Parse `a=b,c!=d`, where a backslash escapes `\`, `,` and `=` in a value; None if it is invalid.

    The terms are sorted, which is kube-apiserver's order: of two names its first one counts.
    """
    terms = []
    for text in sorted(re.findall(r"(?:[^,\\]|\\.|\\\Z)+", selector, re.DOTALL)):
        match = _TERM.fullmatch(text)
        if match is None:
            return None
        field, operator, raw = match.groups()
        if _UNESCAPED.fullmatch(raw) is None:
            return None
        terms.append((field, operator, re.sub(r"\\(.)", r"\1", raw, flags=re.DOTALL)))
    return terms


def _first(parameters: Mapping[str, Sequence[str]], name: str) -> str:
    values = parameters.get(name)
    return values[0] if values else ""


def _is_int64(value: str) -> bool:
    match = _INTEGER.fullmatch(value)
    return match is not None and -_INT64_MAX - 1 <= int(f"{match[1]}0{match[2]}") <= _INT64_MAX
