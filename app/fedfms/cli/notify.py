"""``fedfms notify``: try the notices of a kit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

notify_app = typer.Typer(no_args_is_help=True, help="At a site or server: notices to its people.")


@notify_app.command("test")
def notify_test(
    kit: Annotated[
        Path | None,
        typer.Option(help="The startup kit. Default: the environment variable FEDFMS_KIT, else the current folder."),
    ] = None,
) -> None:
    """Send a notice marked as a test through everything that local/notify.yaml names.

    Ends with 1 and the reasons when one could not be sent. Waits for each at most for the seconds that the file allows.
    """
    from fedfms.errors import NOTIFY_INVALID, FedfmsError, fail
    from fedfms.site.job_location import find_kit
    from fedfms.site.kit import open_kit
    from fedfms.site.notices import try_channels
    from fedfms.site.notify_config import NOTIFY_FILE

    opened = open_kit(find_kit(kit))
    tried = try_channels(opened.folder, opened.name, again=True)
    if not tried:
        detail = "missing, or names no command, webhook or smtp: nobody is notified"
        raise fail(NOTIFY_INVALID, opened.folder / NOTIFY_FILE, detail)
    if problems := [problem for problem in tried.values() if problem is not None]:
        raise FedfmsError(problems)
    for name in tried:
        print(f"{name}: a test notice was accepted")
