"""Exit statuses: how a command tells a script the ends of its jobs."""

from __future__ import annotations

from collections.abc import Iterable

from schemas.errors import from_document
from schemas.job import Job, JobState

_OF_STATE = {
    JobState.DEPLOYED: 0,
    JobState.UNCHANGED: 0,
    JobState.QUARANTINED: 4,
    JobState.NEEDS_INPUT: 5,
    JobState.CANCELLED: 130,
}
_WORST_LAST = (0, 130, 5, 3, 4, 1)


def exit_status(job: Job) -> int:
    """Return the exit status a job's end stands for; 1 when the fault is ours."""
    if job.state in _OF_STATE:
        return _OF_STATE[job.state]
    return 1 if job.error is not None and from_document(job.error).exit_code == 1 else 3


def worst(jobs: Iterable[Job]) -> int:
    """Return the worst exit status of several jobs."""
    return max(map(exit_status, jobs), key=_WORST_LAST.index, default=0)
