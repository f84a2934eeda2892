"""Why a step does not start warm."""

from __future__ import annotations


class WarmFailed(Exception):
    """A warm start did not come about. ``lasting`` when trying again is no use."""

    def __init__(self, why: str, *, lasting: bool = False) -> None:
        super().__init__(why)
        self.lasting = lasting
