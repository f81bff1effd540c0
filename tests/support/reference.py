"""The code blocks of the API reference (tests/conformance/reference.md), by their names, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

REFERENCE: Final = Path(__file__).resolve().parent.parent / "conformance" / "reference.md"
_FENCED: Final = re.compile(r"^```python (signature|run): ([^\n]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> dict[str, str]:
    """Return the text of each block of one kind, `signature` or `run`, in the order of the reference."""
    return {name: text for found, name, text in _FENCED.findall(REFERENCE.read_text()) if found == kind}
