"""``python3 -m fedfms.cli``: the ``fedfms`` command with the Python that is named, as kits' start scripts need it."""

from fedfms.cli import main

main()
