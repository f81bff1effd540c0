"""For tests, yours too: what stands in for the outside world where a test must decide what it does."""

from agentos.testing.clock import ManualClock as ManualClock

__all__ = ["ManualClock"]
