"""Hatchling's hook for the text of the package's page: README.md with absolute links.

A registry shows that text without the files beside it, so relative links would be broken. The address that is
put before them is `Source` of [project.urls].
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

# What is before a relative path: Markdown's `](`, or an attribute of HTML. URLs and anchors are no such path.
_RELATIVE_LINK = re.compile(r"""(\]\(|\b(?:href|src|srcset)=")(?![a-z]+:|#|/)(?=[^)\s"]+[)"])""")


def with_absolute_links(markdown: str, address: str) -> str:
    """Put the address before each relative link."""
    return _RELATIVE_LINK.sub(rf"\1{address}/", markdown)


class PackagePage(MetadataHookInterface):
    """Sets the project's `readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = with_absolute_links(readme, metadata["urls"]["Source"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
