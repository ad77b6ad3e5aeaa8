"""Hold the strict reading of HTTP/1.1 to its references, for as long as one likes.

    python -m tests.fuzz [--count N] [--seed N]

The inputs are valid heads and bodies after random accidents; `tests.fuzz.guided` finds others by coverage. It
stops at the first difference, and shows it.
"""

from __future__ import annotations

import argparse
import random
import time

from proxy.message.strict import read_request_head
from tests.fuzz.differential import check_canonical, check_chunks, check_request, check_response
from tests.fuzz.mutation import CANONICAL, CHUNKS, REQUESTS, RESPONSES, mutated


def run(count: int, seed: int) -> dict[str, int]:
    """Check so many mutated inputs; returns how many of each kind."""
    source = random.Random(seed)
    other = read_request_head(REQUESTS[0])
    done = dict.fromkeys(("requests", "answers", "canonical", "chunked bodies"), 0)
    for number in range(count):
        match number % 8:
            case 0 | 1 | 2 | 3:
                check_request(mutated(source, REQUESTS), other)
                done["requests"] += 1
            case 4 | 5:
                check_response(mutated(source, RESPONSES))
                done["answers"] += 1
            case 6:
                check_canonical(mutated(source, CANONICAL))
                done["canonical"] += 1
            case _:
                sizes = [source.randrange(1, 12) for _ in range(source.randrange(20))]
                check_chunks(mutated(source, CHUNKS), sizes)
                done["chunked bodies"] += 1
    return done


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
