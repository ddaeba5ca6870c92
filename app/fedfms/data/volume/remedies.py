"""Which remedies may be shown where files and patients must not be named."""

from __future__ import annotations

from fedfms.errors import Problem

#: Shown in place of a remedy that quotes a file or ``site.yaml``.
SEE_NAMES = "It differs from case to case: add --show-ids."


class GeneralRemedy(str):
    """A remedy that is a constant text of the program, so that it cannot name a file, a patient or a header's value.

    A test checks that it is made of constants only.
    """

    __slots__ = ()


def nameless_remedy(problem: Problem) -> str:
    """A remedy that may be shown without names of files: the problem's own if it is general, else the catalogue's."""
    if problem.remedy is None:
        return problem.kind.remedy
    return problem.remedy if isinstance(problem.remedy, GeneralRemedy) else SEE_NAMES
