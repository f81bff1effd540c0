"""The types of audit events that the kernel records, with a word on each. A program may log types of its own beside.

The one list: what records an event names its type here (a test reads the sources), and who asks for one is helped by
it. Types are added, never renamed: records outlive versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

MEANINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "kernel_started": "a run begins: its policy, its workspace, its processes",
        "kernel_stopped": "a run ends in order, and why",
        "kernel_fault": "something of agentos itself failed; whoever waited for it was refused",
        "policy_changed": "a rule was added to the policy in force, or taken back; recorded before it counts",
        "kernel_call": "an agent asked the kernel for something",
        "agent_starting": "an agent is about to start: command, policy, level; recorded before it exists",
        "agent_waiting": "it waits for a free slot",
        "agent_started": "it runs: its pid, and that of its sentry",
        "agent_start_failed": "it could not be started, and why",
        "agent_stopped": "Linux says that its leader stopped",
        "agent_continued": "Linux says that its leader runs again",
        "agent_raised": "its function ended with an exception",
        "agent_timeout": "its time is over; what follows are signals",
        "agent_restarting": "it ended and will be started again: why, after which delay, its old and its new id",
        "agent_failed": "it ended and is not started again, although its restart policy asks for it, and why",
        "agent_exited": "it ended: exit code or signal, and what it did in numbers",
        "leftovers_killed": "processes that it left behind were ended",
        "execution_refused": "an execution was refused before there was an agent",
        "state_saved": "an agent saved its state",
        "agent_asked": "a Python agent is asked for its state, or to clean up: what, and by whom",
        "agent_answered": "what came of that: an answer, or why there is none",
        "action_allowed": "an action was allowed; recorded before it happens",
        "action_outcome": "what became of an allowed action",
        "action_refused": "an action whose record was not durable in time, and which was therefore refused",
        "policy_violation": "an action was denied, or would have been where nothing is enforced",
        "policy_violation_repeated": "how often the same denial was repeated within a second",
        "protocol_error": "an agent sent what is no frame, or ended inside one",
        "result_verified": "every module of the host program agreed to a result, which was then released",
        "result_withheld": "a module did not, and nobody was given the result",
        "signal_sent": "a signal was commanded; recorded before it is delivered",
        "signal_confirmed": "what Linux says came of it",
        "signal_vetoed": "a handler of the host program kept a signal from its agent",
        "signal_handler_failed": "a handler raised or did not answer; the signal is delivered all the same",
        "control_refused": "somebody at the control socket was refused",
        "sentry_hung": "a sentry answered nothing for too long and is ended with its tree",
        "sentry_lost": "a sentry died, and its agent with it",
        "recorder_hung": "the recorder confirmed nothing for too long and is ended",
        "recorder_restarted": "the recorder died and is started again",
        "not_recorded": "how many events could not be recorded before this one",
    }
)
EVENT_TYPES: Final = frozenset(MEANINGS)
