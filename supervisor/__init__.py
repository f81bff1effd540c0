"""The room of the processes: guard, zygote, kernel, sentry. Its import name is `agentos.supervisor`."""

if not __name__.startswith("agentos."):
    raise ImportError(f"this folder is no package of its own: import agentos.{__name__}")
