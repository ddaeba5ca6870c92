"""What travels between server and sites, and the checks that let it pass; no FLARE, no I/O."""
