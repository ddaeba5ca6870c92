"""Making startup kits: centrally or with keys that never leave the sites, with this project's policy laid over each.

FLARE's own ``nvflare`` commands make keys, certificates and kits; they run as processes of their own.
"""
