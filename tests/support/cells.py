"""Runs files as the cells of a notebook, one after the other, in one `__main__` and one event loop that never rests.

    python cells.py FILE...
As IPython does it: a cell that awaits at its top level is a coroutine, which the running loop carries out; any other
is executed while that loop runs. What a cell defines has no source file.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import sys
from pathlib import Path
from types import ModuleType


async def main(texts: list[str]) -> None:
    notebook = sys.modules["__main__"] = ModuleType("__main__")
    for number, text in enumerate(texts):
        code = compile(text, f"<cell {number}>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        outcome = eval(code, notebook.__dict__)
        if inspect.iscoroutine(outcome):
            await outcome


asyncio.run(main([Path(path).read_text() for path in sys.argv[1:]]))
