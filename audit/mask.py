r"""Masks text that must not be readable in the trail: always tokens, and matches of the operator's patterns.

Queries and exec arguments are kept because operators need them in an incident, and they often contain
passwords. The configured patterns are searched in each decoded value and in each `name=value`. Consecutive
values are searched as lines of one text: `^` and `$` match a value's ends, `.` stays within one value, and
`--password\s\S+` finds a password in the next argument.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from urllib.parse import quote, unquote

from msgspec.structs import replace

from audit.patterns import Pattern, compile_pattern
from audit.record import Client, Event, Request, Stream

MASK = "***"

# Credentials by their form (our keys and codes, JWTs, kubectl's bearer subprotocol), or by a tell-tale name.
_SECRETS = (
    r"hw[sco]_[A-Za-z0-9_-]{8,}",
    # Matched once from the beginning of a token, not from each `eyJ`: otherwise a target made of these
    # characters would take seconds.
    r"(?<![A-Za-z0-9_-])(?=[A-Za-z0-9_-]++\.[A-Za-z0-9_-])"
    r"[A-Za-z0-9_-]*?eyJ[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]++(?:\.[A-Za-z0-9_-]*+)?",
    r"(?<=base64url\.bearer\.authorization\.k8s\.io\.)[^\s,&]+",
    r"(?i:(?<=bearer\s)[A-Za-z0-9._~+/=-]{8,})",
    *(
        rf"(?i:(?<={name}=)[^\s&]+)"
        for name in ("access_token", "id_token", "refresh_token", "client_secret", "client_assertion")
    ),
)


_SECRET_PATTERN = re.compile("|".join(_SECRETS), re.MULTILINE)
# Every match of the pattern above contains one of these, ignoring case.
_MARKS = ("hws_", "hwc_", "hwo_", "eyj", "bearer", "_token=", "client_secret=", "client_assertion=")


# A malformed request's method or an invented name can contain a token just as the target can.
_REQUEST_NAMES = ("method", "verb", "group", "version", "namespace", "resource", "subresource", "name")

# Maximum memoized sections, since most events share theirs with others: at most some 4 MiB.
_MEMO_MAX = 1024
_MEMO_TARGET_CHARACTERS_MAX = 1024


class Masks:
    """Masks events: secrets by their form everywhere, the configured patterns in queries and arguments."""

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        """Compile the patterns; raises PatternError."""
        self._configured = tuple(compile_pattern(pattern) for pattern in patterns)
        self._all: tuple[Pattern, ...] = (_SECRET_PATTERN, *self._configured)
        self._memoized_request = lru_cache(_MEMO_MAX)(self._request)
        self._memoized_client = lru_cache(_MEMO_MAX)(self._client)

    def apply(self, event: Event) -> Event:
        """Return the event in storable form; the same object if nothing is masked."""
        req, client, stream, resp, note = event.req, event.client, event.stream, event.resp, event.note
        if req is not None:
            short = len(req.raw_target) <= _MEMO_TARGET_CHARACTERS_MAX
            req = self._memoized_request(req) if short else self._request(req)
            if req.target_kept is not None:
                req = req.shortened()
        if client is not None:
            client = self._memoized_client(client)
        if stream is not None:
            stream = self._stream(stream)
        if resp is not None and resp.reason:
            resp = replace(resp, reason=without_secrets(resp.reason))
        if note:
            note = without_secrets(note)
        if (
            req == event.req
            and client == event.client
            and stream == event.stream
            and resp == event.resp
            and note == event.note
        ):
            return event
        return replace(event, req=req, client=client, stream=stream, resp=resp, note=note)

    def _request(self, req: Request) -> Request:
        names = {name: getattr(req, name) for name in _REQUEST_NAMES}
        suspicious = _may_hold_a_secret(req.raw_target, *names.values())
        if not suspicious and not self._configured:
            return req
        masked = replace(req, raw_target=self.target(req.raw_target))
        if not suspicious:
            return masked
        return replace(masked, **{name: without_secrets(value) for name, value in names.items()})

    def _client(self, client: Client) -> Client:
        masked = replace(client, user_agent=without_secrets(client.user_agent))
        if not client.claimed_reason:
            return masked
        return replace(masked, claimed_reason=self.values([client.claimed_reason])[0])

    def _stream(self, stream: Stream) -> Stream:
        return replace(
            stream,
            proto=without_secrets(stream.proto),
            command=tuple(self.values(stream.command)),
            # From the query, like the arguments.
            container=self.values([stream.container])[0],
            close_reason=without_secrets(stream.close_reason),
        )

    def target(self, raw_target: str) -> str:
        """Mask a request target: secrets anywhere, the patterns in the values of its query."""
        path, mark, query = raw_target.partition("?")
        if "%" in path and _SECRET_PATTERN.search(decoded := unquote(path)) is not None:
            path = _quote(without_secrets(decoded), also="&+")
        else:
            path = without_secrets(path)
        if not mark:
            return path
        return f"{path}?{self._query(query)}"

    def _query(self, query: str) -> str:
        if not query:
            return query
        pairs = query.split("&")
        names = []
        values = []
        for pair in pairs:
            name, equals, value = pair.partition("=")
            names.append(f"{name}{equals}")
            values.append(unquote(value.replace("+", " ")))
        masked = self.values(values)
        lines = [unquote(name) + value for name, value in zip(names, masked, strict=True)]
        masked_lines = self.values(lines)
        result = []
        for pair, name, value, new_value, line, new_line in zip(
            pairs, names, values, masked, lines, masked_lines, strict=True
        ):
            if new_line != line:
                result.append(_quote(new_line))
            elif new_value != value:
                result.append(name + _quote(new_value))
            else:
                result.append(pair)
        return "&".join(result)

    def values(self, values: Sequence[str]) -> list[str]:
        """Mask consecutive values, searched as the lines of one text."""
        joined = "\n".join(values)
        spans = _merged(match.span() for pattern in self._all for match in pattern.finditer(joined))
        if not spans:
            return list(values)
        result = []
        start = at = 0
        for value in values:
            end = start + len(value)
            parts = []
            kept_to = start
            while at < len(spans) and spans[at][0] < end:
                low, high = max(spans[at][0], start), min(spans[at][1], end)
                if low < high:  # an empty match, such as a word boundary, masks nothing
                    parts += [value[kept_to - start : low - start], MASK]
                    kept_to = high
                if spans[at][1] > end:
                    break  # the match continues in the next value
                at += 1
            result.append("".join([*parts, value[kept_to - start :]]) if parts else value)
            start = end + 1
        return result


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans in order, with overlapping and adjacent ones merged."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(spans):
        if merged and low <= merged[-1][1]:
            low, before = merged.pop()
            high = max(high, before)
        merged.append((low, high))
    return merged


def without_secrets(value: str) -> str:
    """Return a text with what has the form of a credential masked."""
    return _SECRET_PATTERN.sub(MASK, value) if _may_hold_a_secret(value) else value


def _may_hold_a_secret(*values: str) -> bool:
    """Test for a substring that every secret contains: 0.5 µs, where the search for secrets costs 15 µs and
    more.
    """
    text = "\n".join(values)
    if "%" in text:
        text += unquote(text)
    text = text.lower()
    return any(mark in text for mark in _MARKS)


def _quote(value: str, *, also: str = "") -> str:
    return quote(value, safe=f"*=-._~/:,@$'()!;{also}")
