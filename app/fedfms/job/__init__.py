"""The job: ``training.yaml`` and the folder around it."""

from typing import TYPE_CHECKING

if not TYPE_CHECKING:  # type checkers know the new names only
    from fedfms.moved import former_names

    __getattr__ = former_names(__name__)
