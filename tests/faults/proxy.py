"""The fault proxy, a process of its own: TCP in the middle, which breaks as networks break.

    python -m tests.faults.proxy

It reads commands from its standard input, a JSON object a line, and answers each by one line, in order; it
ends with its input. `tests.faults.control` speaks this for the tests, and says what the commands do. Nothing
here knows what the bytes mean, and no code is shared with what is tested.
"""

from __future__ import annotations

import base64
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.faults.engine import Connection, Engine, Link
from tests.faults.impostor import Impostor
from tests.faults.pipe import End

_Command = Mapping[str, object]


class Commands:
    """What each command does to the engine; a method a command."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def obey(self, line: bytes) -> dict[str, object]:
        """Carry one command out; a mistake in it is answered, and changes nothing."""
        try:
            command = json.loads(line)
            return {"ok": self._named(str(command["do"]))(command)}
        except (KeyError, ValueError, TypeError, OSError) as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def _named(self, name: str) -> Callable[[_Command], object]:
        commands: dict[str, Callable[[_Command], object]] = {
            "open": self._open,
            "lead": self._lead,
            "shape": self._shape,
            "stall": self._stall,
            "cut": self._cut,
            "cut-next": self._cut_next,
            "refuse": self._refuse,
            "answer": self._answer,
            "accept": self._accept,
            "limit": self._limit,
            "heal": self._heal,
            "count": self._count,
        }
        return commands[name]

    def _open(self, command: _Command) -> object:
        link = self._engine.open_link(
            _text(command, "link"), _number(command, "to"), _number(command, "buffer")
        )
        return {"port": link.port}

    def _lead(self, command: _Command) -> object:
        self._link(command).target = _number(command, "to")
        return {}

    def _shape(self, command: _Command) -> object:
        link = self._link(command)
        for road in link.roads(_text(command, "way")):
            road.delay_s = _real(command, "delay_s")
            road.bytes_per_s = _real(command, "bytes_per_s") or math.inf
            road.piece_bytes = _number(command, "piece_bytes")
            road.buffer_s = _real(command, "buffer_s")
        self._engine.touch(link)
        return {}

    def _stall(self, command: _Command) -> object:
        link, stalled = self._link(command), bool(command["on"])
        ways = {"up", "down"} if command["way"] == "both" else {_text(command, "way")}
        if command["later"]:
            link.stalled_ways = link.stalled_ways | ways if stalled else link.stalled_ways - ways
        chosen = self._chosen(link, command) if command["present"] else []
        for connection in chosen:
            for name, pipe in (("up", connection.up), ("down", connection.down)):
                if name in ways:
                    pipe.stalled = stalled
        self._engine.touch(link)
        return {"connections": len(chosen)}

    def _cut(self, command: _Command) -> object:
        chosen, how = self._chosen(self._link(command), command), End(command["how"])
        for connection in chosen:
            if command["after"] is None:
                self._engine.cut(connection, how, _text(command, "side"))
            else:
                self._engine.plan_cut(connection, _text(command, "way"), _number(command, "after"), how)
        return {"connections": len(chosen)}

    def _cut_next(self, command: _Command) -> object:
        plan = (_text(command, "way"), _number(command, "after"), End(command["how"]))
        self._link(command).plans.extend([plan] * _number(command, "times"))
        return {}

    def _refuse(self, command: _Command) -> object:
        link = self._link(command)
        self._engine.refuse(link)
        self._until(link, command)
        return {}

    def _answer(self, command: _Command) -> object:
        link = self._link(command)
        certificate = command["certificate"]
        link.impostor = Impostor(
            base64.b64decode(_text(command, "data")),
            Path(str(certificate)) if certificate is not None else None,
            bool(command["hold"]),
        )
        self._until(link, command)
        return {}

    def _accept(self, command: _Command) -> object:
        self._pass(self._link(command))
        return {}

    def _until(self, link: Link, command: _Command) -> None:
        if command["for_s"] is not None:
            self._engine.after(_real(command, "for_s"), lambda: self._pass(link))

    def _pass(self, link: Link) -> None:
        link.impostor = None
        self._engine.listen(link)

    def _limit(self, command: _Command) -> object:
        link = self._link(command)
        how = End(command["how"]) if command["how"] is not None else None
        after_s = command["after_s"]
        if command["of"] == "age":
            link.age_limit = (float(str(after_s)), how or End.RST) if after_s is not None else None
        else:
            link.idle_limit = (float(str(after_s)), how) if after_s is not None else None
        self._engine.touch(link)
        return {}

    def _heal(self, command: _Command) -> object:
        link = self._link(command)
        link.age_limit = link.idle_limit = None
        link.plans.clear()
        link.stalled_ways = set()
        for road in link.roads("both"):
            road.delay_s, road.bytes_per_s, road.piece_bytes, road.buffer_s = 0.0, math.inf, 0, 0.0
        for connection in list(link.connections.values()):
            connection.up.cut_at = connection.down.cut_at = math.inf
            if connection.half:
                self._engine.cut(connection, End.RST)
            connection.up.stalled = connection.down.stalled = False
        self._pass(link)
        self._engine.touch(link)
        return {}

    def _count(self, command: _Command) -> object:
        link, now = self._link(command), time.monotonic()
        live = list(link.connections.values())
        impostor = link.impostor
        return {
            "opened": link.opened,
            "live": len(live) + (impostor.live if impostor is not None else 0),
            "live_max": max(link.live_max, impostor.live_max if impostor is not None else 0),
            "cut": link.cut,
            "up": link.passed["up"] + sum(each.up.passed for each in live),
            "down": link.passed["down"] + sum(each.down.passed for each in live),
            "silence_max_s": max([link.silence_max_s, *(now - each.moved_at for each in live)]),
            "connections": [each.number for each in live],
            "heads": impostor.heads if impostor is not None else [],
        }

    def _link(self, command: _Command) -> Link:
        return self._engine.link(_text(command, "link"))

    def _chosen(self, link: Link, command: _Command) -> list[Connection]:
        only = command["only"]
        return [each for each in link.connections.values() if only is None or each.number == only]


def _text(command: _Command, name: str) -> str:
    value = command[name]
    if not isinstance(value, str):
        raise TypeError(f"{name}: a text is expected")
    return value


def _number(command: _Command, name: str) -> int:
    value = command[name]
    if not isinstance(value, int):
        raise TypeError(f"{name}: a number is expected")
    return value


def _real(command: _Command, name: str) -> float:
    value = command[name]
    if not isinstance(value, int | float):
        raise TypeError(f"{name}: a number is expected")
    return float(value)


def main() -> None:
    """Run until standard input ends."""
    engine = Engine()
    commands = Commands(engine)
    source, rest = sys.stdin.fileno(), b""
    os.set_blocking(source, False)

    def listen() -> None:
        nonlocal rest
        received = os.read(source, 65536)
        if not received:
            sys.exit()
        *lines, rest = (rest + received).split(b"\n")
        for line in lines:
            sys.stdout.write(json.dumps(commands.obey(line)) + "\n")
            sys.stdout.flush()

    engine.watch(source, listen)
    while True:
        engine.turn()


if __name__ == "__main__":
    main()
