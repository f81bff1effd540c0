"""What every test shares: with AGENTOS_NO_SKIPS=1 (bin/test sets it under CI) a skipped test is a failure, by name.

And the signals of a terminal, which a shell's background job is born ignoring: what a test starts must hear them.
"""

from __future__ import annotations

import os
import signal

import pytest

_skipped: list[str] = []

for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP):
    if signal.getsignal(_number) is signal.SIG_IGN:  # exec keeps what is ignored (signal(7))
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)


def _note(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):  # an expected failure calls itself skipped, too
        _skipped.append(f"{report.nodeid}: {report.longreprtext}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _skipped and os.environ.get("AGENTOS_NO_SKIPS") == "1" and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _skipped and os.environ.get("AGENTOS_NO_SKIPS") == "1":
        terminalreporter.section("skipped, and no skip is allowed here", red=True)
        for line in _skipped:
            terminalreporter.write_line(line)
