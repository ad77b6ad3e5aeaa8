from __future__ import annotations

import time

from proxy.process.suggestions import did_you_mean, near_names


def test_the_nearest_names_are_named_the_best_first() -> None:
    names = ["sre-1", "sre-2", "deploy-bot", "sre-prod", "sre-11"]
    assert near_names("sre1", names) == ["sre-1", "sre-11", "sre-2"]
    assert did_you_mean("deploybot", names) == " (did you mean deploy-bot?)"
    assert did_you_mean("SRE-2", ["sre-2"]) == " (did you mean sre-2?)"
    assert did_you_mean("dep", names) == " (did you mean deploy-bot?)"
    assert did_you_mean("x", names) == did_you_mean("", names) == ""


def test_very_many_names_take_no_longer_than_some() -> None:
    names = [f"agent-of-a-team-with-a-long-name-{number:06}" for number in range(100_000)]
    began = time.thread_time()
    near_names("a" * 100_000, names)
    near_names("agent-of-a-team-with-a-long-name-7", names)
    assert time.thread_time() - began < 1
