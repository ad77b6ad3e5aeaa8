from __future__ import annotations

import itertools
import re

import pytest

from proxy.exchange.http_state import ANSWER, REQUEST, IllegalStep, State, Step, Transitions

# A letter for each step. The lives of a message are words, and the tables accept a language.
LETTERS = {
    Step.HEAD: "h",
    Step.EXPECT: "e",
    Step.WHOLE: "w",
    Step.CONTINUE: "c",
    Step.DATA: "d",
    Step.END: ".",
    Step.ANSWERED: "a",
    Step.ASKED: "q",
    Step.INTERIM: "i",
    Step.SWITCH: "s",
    Step.REFUSE: "r",
    Step.NEXT: "n",
    Step.FAULT: "f",
}

# A request: its head, a body with or without a 100 before it, its end, and the next one. A body whose 100 was
# not sent when the answer began comes all the same, or not at all.
REQUESTS = r"(?:n*(?:w|(?:h|e[cad])d*\.)n)*n*(?:w|(?:h|e[cad])d*\.|(?:hd*|e|e[cad]d*)?f*)"
# An answer: to a request, behind interim heads, or to one that was refused; nothing follows a switch.
ONE_ANSWER = r"(?:qi*(?:w|hd*\.)|rhd*\.)"
ANSWERS = rf"(?:n*{ONE_ANSWER}n)*n*(?:{ONE_ANSWER}|qi*s|(?:qi*(?:hd*)?|r(?:hd*)?)f*|)"


@pytest.mark.parametrize(("table", "language"), [(REQUEST, REQUESTS), (ANSWER, ANSWERS)])
def test_the_lives_of_up_to_five_steps_are_a_language(table: Transitions, language: str) -> None:
    accepted = re.compile(language)
    steps = sorted({step for _, step in table}, key=lambda step: step.name)
    for count in range(6):
        for life in itertools.product(steps, repeat=count):
            word = "".join(LETTERS[step] for step in life)
            state = State.IDLE
            try:
                for step in life:
                    state = table[state, step]
            except IllegalStep:
                assert accepted.fullmatch(word) is None, word
            else:
                assert accepted.fullmatch(word) is not None, word
                assert (state is State.DONE) == (word[-1:] in {"w", "."}), word
                assert (state is State.BROKEN) == (word[-1:] == "f"), word


@pytest.mark.parametrize("table", [REQUEST, ANSWER])
@pytest.mark.parametrize(("state", "step"), list(itertools.product(State, Step)))
def test_every_state_meets_every_step(table: Transitions, state: State, step: Step) -> None:
    if (state, step) in table:
        assert isinstance(table[state, step], State)
    else:
        with pytest.raises(IllegalStep, match=f"{step.value} where the message is {state.value}"):
            table[state, step]


@pytest.mark.parametrize("table", [REQUEST, ANSWER])
def test_nothing_unsays_a_clean_end_and_a_broken_message_stays_broken(table: Transitions) -> None:
    assert {step for state, step in table if state is State.DONE} == {Step.NEXT}
    assert {following for (state, _), following in table.items() if state is State.BROKEN} == {State.BROKEN}


def test_no_100_follows_the_beginning_of_an_answer() -> None:
    assert {state for state, step in ANSWER if step is Step.INTERIM} == {State.AWAITED}
    assert {state for state, step in REQUEST if step is Step.CONTINUE} == {State.WITHHELD}
    assert REQUEST[State.WITHHELD, Step.ANSWERED] is not State.WITHHELD


def test_a_lookup_is_no_call() -> None:
    # Enum's own hash is a Python function, which each lookup would call twice.
    assert State.__hash__ is Step.__hash__ is object.__hash__
