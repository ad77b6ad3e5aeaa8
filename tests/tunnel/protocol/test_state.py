from __future__ import annotations

import itertools
import re

import pytest

from tunnel.protocol.errors import IllegalTransition
from tunnel.protocol.state import TRANSITIONS, Half, Step, after


@pytest.mark.parametrize(("half", "step"), list(itertools.product(Half, Step)))
def test_every_half_meets_every_step(half: Half, step: Step) -> None:
    if (half, step) in TRANSITIONS:
        assert after(half, step) is TRANSITIONS[half, step]
    else:
        with pytest.raises(IllegalTransition, match=step.value):
            after(half, step)


def test_a_life_is_a_head_or_none_then_data_then_one_end() -> None:
    """PROTOCOL.md, "The halves of a stream", as a language: of all lives of up to five steps."""
    for count in range(6):
        for steps in itertools.product(Step, repeat=count):
            said = "".join(step.value[0] for step in steps)
            half = Half.FRESH
            try:
                for step in steps:
                    half = after(half, step)
            except IllegalTransition:
                assert not re.fullmatch("H?D*F?R*", said), said
                continue
            assert re.fullmatch("H?D*F?R*", said), said
            if "F" in said:
                assert half is Half.ENDED, said
            elif "R" in said:
                assert half is Half.BROKEN, said
            else:
                assert half is (Half.FLOWING if said else Half.FRESH)


@pytest.mark.parametrize("half", Half)
def test_reset_is_possible_at_any_time_and_ends_it(half: Half) -> None:
    assert after(half, Step.RESET).at_rest


@pytest.mark.parametrize(("half", "step"), list(itertools.product((Half.ENDED, Half.BROKEN), Step)))
def test_a_half_at_rest_stays_at_rest(half: Half, step: Step) -> None:
    following = TRANSITIONS.get((half, step), half)
    assert following is half


def test_a_head_is_the_first_word_or_none() -> None:
    assert [half for half in Half if (half, Step.HEAD) in TRANSITIONS] == [Half.FRESH]


def test_no_reset_makes_a_clean_end_of_an_unfinished_half() -> None:
    assert after(Half.FLOWING, Step.RESET) is Half.BROKEN
    assert after(Half.FRESH, Step.RESET) is Half.BROKEN
