"""The spec's import name: `from agent_os import KernelSpace` is `from agentos import KernelSpace`."""

from __future__ import annotations

from typing import Any

import agentos
from agentos import *  # noqa: F403 - a facade: exactly agentos' public names
from agentos import __version__ as __version__

__all__ = list(agentos.__all__)


def __getattr__(name: str) -> Any:
    return getattr(agentos, name)
