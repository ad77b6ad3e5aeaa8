from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from auth.policy.conditions import (
    CONDITION_CHARACTERS_MAX,
    CONDITION_S_MAX,
    TEXT_CHARACTERS_MAX,
    CelConditions,
    _library,
    without_strings,
)
from auth.policy.match import ConditionError, Facts
from auth.request_kind import request_kind_of
from auth.requestinfo import parse
from tests.auth.policies import CONDITIONS, Agent, Cluster


def facts(
    request: str = "GET /api/v1/namespaces/app-1/pods/web",
    *,
    labels: dict[str, str] | None = None,
    now: float = 0.0,
) -> Facts:
    method, _, target = request.partition(" ")
    info = parse(method.encode(), target.encode())
    agent = Agent("builder", "ann@example.com", ("platform", "sre"))
    return Facts(request_kind_of(info), info, agent, Cluster("prod", labels or {}), now)


def holds(text: str, about: Facts | None = None) -> bool:
    assert CONDITIONS.check(text) == ""
    return CONDITIONS.compile(text)(about if about is not None else facts())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('request.namespace.startsWith("app-") && request.name == "web"', True),
        ('request.verb == "get" && request.reads', True),
        ('request.resource == "pods" && request.subresource == "" && request.group == ""', True),
        ('request.version == "v1" && request.path.endsWith("/web") && !request.dryRun', True),
        ('"sre" in agent.teams && agent.owner.endsWith("@example.com")', True),
        ('agent.teams.exists(team, team.startsWith("s"))', True),
        ('agent.name == "other"', False),
        ('cluster.name == "prod" && !has(cluster.labels.env)', True),
        ("now.getHours() >= 8 && now.getHours() < 18", False),
        ('now < timestamp("1970-01-01T00:00:01Z")', True),
        ("request.name.matches('^[a-z]+$')", True),
        ('request.name != "a // b"', True),
    ],
)
def test_a_condition_sees_who_asks_what_of_which_cluster_and_when(text: str, expected: bool) -> None:
    assert holds(text) is expected


FUNCTIONS = """
size("ab") == 2
"ab".contains("a")
"ab".startsWith("a")
"ab".endsWith("b")
"ab".matches("^a")
string(1) == "1"
int("1") == 1
uint(1) == 1u
double(1) == 1.0
timestamp("2027-01-15T08:00:00Z") == now
duration("1s") == duration("1000ms")
now.getFullYear() == 2027
now.getMonth() == 0
now.getDate() == 15
now.getDayOfMonth() == 14
now.getDayOfWeek() == 5
now.getDayOfYear() == 14
now.getHours() == 8
now.getMinutes() == 0
now.getSeconds() == 0
now.getMilliseconds() == 0
""".strip().splitlines()


@pytest.mark.parametrize("text", FUNCTIONS)
def test_a_function_does_what_cel_says(text: str) -> None:
    assert holds(text, facts(now=1_800_000_000.0))


def test_no_other_function_is_named() -> None:
    told = CONDITIONS.check("foo(1)").partition(", only ")[2]
    assert sorted(told.split(", ")) == sorted({re.findall(r"\w+(?=\()", text)[0] for text in FUNCTIONS})


def test_a_condition_sees_each_part_of_a_request() -> None:
    about = facts("PATCH /apis/apps/v1/namespaces/app-1/deployments/web/scale?dryRun=All")
    for text in (
        'request.verb == "patch" && !request.reads && request.group == "apps" && request.version == "v1"',
        'request.resource == "deployments" && request.subresource == "scale"',
        'request.namespace == "app-1" && request.name == "web" && request.dryRun',
        'request.path == "/apis/apps/v1/namespaces/app-1/deployments/web/scale"',
        'agent.name == "builder" && agent.owner == "ann@example.com" && agent.teams == ["platform", "sre"]',
    ):
        assert holds(text, about), text
    assert holds('cluster.labels == {"env": "prod"}', facts(labels={"env": "prod"}))


def test_a_condition_sees_a_websocket_exec_as_the_create_that_it_is() -> None:
    about = facts("GET /api/v1/namespaces/a/pods/web/exec?command=id")
    assert holds('request.verb == "create" && request.subresource == "exec" && !request.reads', about)


def test_a_label_that_is_not_there_is_an_error_and_not_an_answer() -> None:
    text = 'cluster.labels.env != "prod"'
    assert holds(text, facts(labels={"env": "test"}))
    with pytest.raises(ConditionError, match="needs 'env', which is not there"):
        holds(text)


def test_an_answer_that_is_neither_true_nor_false_is_an_error() -> None:
    with pytest.raises(ConditionError, match="gave str"):
        holds("cluster.labels.env", facts(labels={"env": "yes"}))


def test_why_a_condition_failed_is_told() -> None:
    with pytest.raises(ConditionError, match="the condition failed: index out of bounds: 2"):
        holds('agent.teams[2] == "a"')


def test_a_condition_is_timed_when_it_looks_at_the_time() -> None:
    assert CONDITIONS.timed("request.reads || now.getHours() < 8")
    assert not CONDITIONS.timed('request.name == "now" || request["now"] == 1')


@pytest.mark.parametrize(
    "target",
    [f"/metrics/{'a' * TEXT_CHARACTERS_MAX}", f"/api/v1/pods?fieldSelector=metadata.name={'a' * 9000}"],
)
def test_no_condition_has_to_search_a_text_without_end(target: str) -> None:
    about = facts(f"GET {target}")
    with pytest.raises(ConditionError, match="the request's path or name exceeds 8192 characters"):
        holds('request.path.matches("a") || request.name.matches("a")', about)
    assert holds('agent.name == "builder"', about)


def test_a_slow_condition_is_an_error() -> None:
    def times() -> Iterator[float]:
        yield from (0.0, CONDITION_S_MAX)
        # A single slow evaluation is not the condition's fault.
        yield from (10.0, 10.0 + CONDITION_S_MAX * 1.1, 20.0, 20.0)
        yield from (30.0, 30.0 + CONDITION_S_MAX * 2, 40.0, 40.0 + CONDITION_S_MAX * 1.1)

    taken = times()
    condition = CelConditions(lambda: next(taken)).compile("true")
    assert condition(facts()) is True
    assert condition(facts()) is True
    with pytest.raises(ConditionError, match=r"took 5\.5 ms, more than 5"):
        condition(facts())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 +", "not valid CEL: 1:4: Syntax error"),
        ("namespace == 'a'", "not valid CEL"),
        ("x == 1", 'there is no "x" in a condition, only request, agent, cluster, now'),
        ("request.nmae == 'a'", 'there is no "request.nmae", only verb,'),
        ("agent.teams.exists(t, u == 'a')", 'there is no "u" in a condition'),
        ("foo(1)", 'there is no function "foo", only contains,'),
        ("now.getHours('Europe/Berlin') > 1", "it cannot be evaluated"),
        ("request.verb", "it gives str: a condition must be true or false"),
        ("true // on", "comments, raw strings and triple quotes are refused"),
        ('request.name == r"a"', "comments, raw strings and triple quotes are refused"),
        ('request.name == """a"""', "comments, raw strings and triple quotes are refused"),
        ("[1].all(a, [1].all(b, [1].all(c, true)))", "3 of all, exists, exists_one, map and filter exceed"),
        ("[1].exists(a, [1].exists_one(b, [1].map(c, c) == [1]))", "3 of all, exists, exists_one, map and"),
        ("[1].map ( a, [1].filter(b, [1].all(c, true)))", "3 of all, exists, exists_one, map and filter"),
        ("[1].all(a, [1].filter(b, true) == [1])", ""),
        ("[1].exists (agent, agent.nope == 1)", ""),
        ("true" + " " * CONDITION_CHARACTERS_MAX, "1004 characters exceed the 1000"),
        ("true" + " " * (CONDITION_CHARACTERS_MAX - 4), ""),
        ("request . nmae == 'a'", 'there is no "request.nmae", only verb,'),
        ("cluster\n.owner == 'a'", 'there is no "cluster.owner", only name, labels'),
        ("agent.owners == 'a'", 'there is no "agent.owners", only name, owner, teams'),
        (r"request.name == '\' // ' || true", ""),
        ("request.name == R'a'", "comments, raw strings and triple quotes are refused"),
        ("request.name == ' ' || '''a''' == 'a'", "comments, raw strings and triple quotes are refused"),
        ("'a' == b'a'", "comments, raw strings and triple quotes are refused"),
        ('"a" == B"a"', "comments, raw strings and triple quotes are refused"),
        ("request", "it gives dict: a condition must be true or false"),
        ("request['nmae'] == 'a'", ""),
        ("!" * 900 + "true", ""),
        ("(" * 400 + "true" + ")" * 400, "not valid CEL"),
    ],
)
def test_what_can_never_be_right_is_refused_when_it_is_read(text: str, message: str) -> None:
    told = CONDITIONS.check(text)
    assert told.startswith(message), told
    assert bool(told) is bool(message)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a == 'b' && c == \"d'e\"", "a == '' && c == ''"),
        (r"""'a\'b' == "c\"d" """, "'' == '' "),
        ("'' + \"\"", "'' + ''"),
        ("'a\nb'", "'a\nb'"),
        ('"a\nb"', '"a\nb"'),
        (r"'a\\' + x + 'b'", "'' + x + ''"),
    ],
)
def test_what_is_only_text_is_taken_out(text: str, plain: str) -> None:
    assert without_strings(text) == plain


# The pinned library in use, in a process that has loaded nothing else.
LIBRARY = """
import json, sys, threading, time
from auth.policy.conditions import _SAMPLE, CelConditions, _library

conditions = CelConditions(time.thread_time)
answers = []
check = lambda: answers.append(conditions.check("request.nope"))
threads = [threading.Thread(target=check) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
held = conditions.compile("request.name == 'a' && !('env' in cluster.labels)")(_SAMPLE)
loaded = list(sys.modules)
program = _library().compile("agent.teams.exists(team, team == now)")
import cel  # as it comes: the same module, since a second one would panic
same = cel.compile is _library().compile
print(json.dumps([answers, held, loaded, sorted(program.variables()), sorted(program.functions()), same]))
"""
TOOLKIT = {"typer", "rich", "prompt_toolkit", "pygments", "pydantic", "shellingham", "markdown_it", "cel"}


def test_the_library_is_loaded_once_and_without_its_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY], cwd=Path(__file__).parents[3], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    answers, held, loaded, variables, functions, same = json.loads(done.stdout)
    assert [answer.partition(",")[0] for answer in answers] == ['there is no "request.nope"'] * 4
    assert held is True
    assert TOOLKIT.isdisjoint(loaded)
    assert variables == ["agent", "now", "team"]
    assert "_==_" in functions
    assert same is True


def test_the_library_is_the_one_that_the_lock_pins() -> None:
    lock = (Path(__file__).parents[3] / "requirements.lock").read_text()
    assert f"\ncommon-expression-language=={version('common-expression-language')} " in lock
    assert Path(str(_library().__file__)).name.startswith("cel.")
