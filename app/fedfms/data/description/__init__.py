"""The description of a site's data: ``site.yaml``, its path patterns and its label values."""
