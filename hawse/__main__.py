"""Run Hawse: the target of the console script `hawse`, and of `python -m hawse`.

The packages have short names that other distributions use too. In a wheel they are inside this folder, in a
checkout beside it. Their parent folder goes first on `sys.path` before any of them is imported. So a foreign
`auth` or `proxy` in site-packages or in the working directory is never found.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; never returns."""
    folder = os.path.dirname(__file__)
    if not os.path.isdir(os.path.join(folder, "proxy")):
        folder = os.path.dirname(folder)
    sys.path.insert(0, folder)
    from proxy.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
