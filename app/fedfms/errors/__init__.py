"""Every failure a user can meet, each with a stable id, a cause and a remedy.

An error has two texts. The *local* text names files, keys and values and stays on the machine where it
arose. The *public* text holds only the id, the title and a count; it is the only one that may reach
FLARE's loggers and replies, because FLARE streams error logs to the server.

`docs/errors.md` lists the catalogue; a test keeps the two the same. Everybody imports from here.
"""

# ruff: noqa: F403 - the catalogue in several files reads as one

from fedfms.errors.data import *
from fedfms.errors.doctor import *
from fedfms.errors.exchange import *
from fedfms.errors.jobs import *
from fedfms.errors.kits import *
from fedfms.errors.models import *
from fedfms.errors.problem import *
from fedfms.errors.sites import *
from fedfms.errors.wording import *
