"""``fedfms data init``: a first ``site.yaml`` from a look at a folder."""
