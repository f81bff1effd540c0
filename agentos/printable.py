"""Text that an agent chose, made safe to look at.

A terminal obeys control sequences, and a reader is fooled by right-to-left overrides, zero-width characters and line
separators. Whatever does not print as itself is shown as its escape. The escape is for eyes: a backslash in the text
stays single, so it is not meant to be reversed; `--json` carries the exact text.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """Return `text` on one line in which every character prints as itself (str.isprintable), the others escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else escape(char) for char in text)


def escape(char: str) -> str:
    r"""Return `\n`, `\x1b`, `\u202e` or `\U000e0001` for one character."""
    return char.encode("unicode_escape").decode("ascii")
