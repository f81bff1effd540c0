"""Text that an agent chose, made safe to look at.

A terminal obeys control sequences, and a reader is fooled by right-to-left overrides, zero-width characters and line
separators. Whatever does not print as itself is shown as its escape. The escape is for eyes: a backslash in the text
stays single, so it is not meant to be reversed; `--json` carries the exact text.
"""

from __future__ import annotations

from typing import Final

_KEPT: Final = frozenset("\t")


def printable(text: str) -> str:
    """Return `text` on one line in which every character prints as itself (str.isprintable), the others escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else escape(char) for char in text)


def printable_line(line: str) -> str:
    """Like printable, for a line of program output: tabs stay."""
    if line.isprintable():
        return line
    return "".join(char if char.isprintable() or char in _KEPT else escape(char) for char in line)


def escape(char: str) -> str:
    r"""Return `\n`, `\x1b`, `\u202e` or `\U000e0001` for one character."""
    return char.encode("unicode_escape").decode("ascii")
