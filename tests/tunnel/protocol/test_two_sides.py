"""Two connections joined by lossless queues, driven at random against a model made of dicts and bytearrays.

The model knows nothing of frames, credit or turns. It knows what was said in each direction of each stream,
and demands that the other side hears exactly that: in order, once, the end only behind the last byte, and
nothing but a beginning of it when the stream was reset.
"""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.tunnel.protocol.two_sides import TwoSides

TestTwoSides = TwoSides.TestCase
TestTwoSides.settings = settings(stateful_step_count=60)


@pytest.mark.long
class TestTwoSidesAtLength(TwoSides.TestCase):
    settings = settings(max_examples=5000, stateful_step_count=150)
