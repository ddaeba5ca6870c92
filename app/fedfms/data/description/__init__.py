"""What a site says that it has: ``site.yaml`` and the small languages in it."""
