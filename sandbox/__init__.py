"""The room of the wall: what holds an agent to its policy from outside. Its import name is `agentos.sandbox`."""

if not __name__.startswith("agentos."):
    raise ImportError(f"this folder is no package of its own: import agentos.{__name__}")
