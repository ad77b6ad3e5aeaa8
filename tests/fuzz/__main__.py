"""Hold the strict reading of HTTP/1.1 to its references, for as long as one likes.

    python -m tests.fuzz [--count N] [--seed N]

The inputs are valid heads, bodies and whole conversations after random accidents; `tests.fuzz.guided` finds
others by coverage. It stops at the first difference, and shows it.
"""

from __future__ import annotations

import argparse
import random
import time

from proxy.message.strict import read_request_head
from tests.fuzz.conversations import ASKED, check_answers, check_requests
from tests.fuzz.differential import check_canonical, check_chunks, check_request, check_response
from tests.fuzz.mutation import ANSWERS, CALLS, CANONICAL, CHUNKS, REQUESTS, RESPONSES, mutated


def run(count: int, seed: int) -> dict[str, int]:
    """Check so many mutated inputs; returns how many of each kind."""
    source = random.Random(seed)
    other = read_request_head(REQUESTS[0])
    kinds = ("requests", "answers", "canonical", "chunked bodies", "conversations")
    done = dict.fromkeys(kinds, 0)
    asked = list(ASKED)
    for number in range(count):
        match number % 12:
            case 0 | 1 | 2:
                check_request(mutated(source, REQUESTS), other)
                done["requests"] += 1
            case 3 | 4:
                check_response(mutated(source, RESPONSES))
                done["answers"] += 1
            case 5:
                check_canonical(mutated(source, CANONICAL))
                done["canonical"] += 1
            case 6:
                check_chunks(mutated(source, CHUNKS), _sizes(source))
                done["chunked bodies"] += 1
            case 7 | 8 | 9:
                calls = [source.choice(CALLS) for _ in range(source.randrange(3))]
                calls.insert(source.randrange(len(calls) + 1), mutated(source, CALLS))
                check_requests(b"".join(calls), _sizes(source))
                done["conversations"] += 1
            case _:
                answers = [source.choice(ANSWERS) for _ in range(source.randrange(3))]
                answers.insert(source.randrange(len(answers) + 1), mutated(source, ANSWERS))
                check_answers(answers, _sizes(source), source.choice(asked))
                done["conversations"] += 1
    return done


def _sizes(source: random.Random) -> list[int]:
    """The sizes of the pieces in which an input comes; what is left comes as one."""
    return [source.randrange(1, 12) for _ in range(source.randrange(20))]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    done = run(options.count, options.seed)
    print(", ".join(f"{count} {kind}" for kind, count in done.items()), end="")
    print(f" in {time.monotonic() - began:.0f} s: no difference")


if __name__ == "__main__":
    main()
