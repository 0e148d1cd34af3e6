"""Metadata that need the address of the repository, which stands once, in pyproject.toml."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class Metadata(MetadataHookInterface):
    """Set ``project.readme`` and, if the address is known, ``project.urls``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Package indexes show no pictures and links with relative paths: prefix them with the address."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        address = str(self.config.get("repository", "")).rstrip("/")
        if address:
            metadata["urls"] = {
                "Repository": address,
                "Issues": f"{address}/issues",
                "Changelog": f"{address}/blob/main/CHANGELOG.md",
            }
            text = absolute(text, address)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def absolute(text: str, address: str) -> str:
    """Prefix the relative links of a Markdown text with the address of the repository, those of pictures with /raw/."""
    relative = r"\((?!https?://|#|mailto:)([^)\s]+)\)"
    text = re.sub(rf"(!\[[^\]]*\]){relative}", rf"\1({address}/raw/main/\2)", text)
    return re.sub(rf"(?<!!)(\[[^\]]*\]){relative}", rf"\1({address}/blob/main/\2)", text)
