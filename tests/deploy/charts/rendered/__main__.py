from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.deploy.charts.helm.programs import Helm
from tests.deploy.charts.rendered import RENDERED, first_line, path
from tests.deploy.charts.sets import SETS

with tempfile.TemporaryDirectory() as folder:
    helm = Helm(Path(sys.argv[1]).absolute(), Path(folder))
    for name in RENDERED:
        path(name).write_text(first_line() + helm.render(SETS[name]))
