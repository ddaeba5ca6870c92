"""Which remedies may be shown where files and patients must not be named."""

from __future__ import annotations

from fedfms.errors import Problem

#: In place of a remedy that quotes what stands in a file or in ``site.yaml``.
SEE_NAMES = "It differs from case to case: add --show-ids."


class GeneralRemedy(str):
    """A remedy that is a constant of the program, so that it cannot name a file, a patient or a header's value.

    A test sees to it that it is only ever made of a constant.
    """

    __slots__ = ()


def nameless_remedy(problem: Problem) -> str:
    """What to do about a problem, without any name: its own remedy if that is general, else the catalogue's."""
    if problem.remedy is None:
        return problem.kind.remedy
    return problem.remedy if isinstance(problem.remedy, GeneralRemedy) else SEE_NAMES
