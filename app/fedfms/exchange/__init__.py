"""What travels between server and sites, and the checks that let it pass; no FLARE, no I/O."""

from typing import TYPE_CHECKING

if not TYPE_CHECKING:  # type checkers know the new names only
    from fedfms.moved import former_names

    __getattr__ = former_names(__name__)
