"""Makes the README readable outside of the repository: `pip` and package indexes show it alone.

In:  README.md, whose links and images are relative to the repository.
Out: the same text with links that work elsewhere. pyproject.toml names the repository as the URL
     "Repository"; while it names none, the links become plain text and the images are left out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)\s]+)\)")


def with_absolute_links(text: str, repository: str | None, version: str) -> str:
    """Returns Markdown whose links to files lead to them in the repository.

    Args:
        text: Markdown with links relative to the repository.
        repository: its address; None leaves the text of links, and no images.
        version: the release whose tag the links name.
    """

    def absolute(match: re.Match[str]) -> str:
        mark, title, path = match.groups()
        if repository is None:
            return "" if mark else title
        view = "raw" if mark else "blob"
        return f"{mark}[{title}]({repository}/{view}/v{version}/{path})"

    return LINK.sub(absolute, text)


class ReadmeHook(MetadataHookInterface):
    """Sets the field `readme`, which pyproject.toml leaves to it."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Adds the README with absolute links."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = metadata.get("urls", {}).get("Repository")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": with_absolute_links(text, repository, metadata["version"]),
        }
