"""``fedfms data init``: a first ``site.yaml`` from the files in a folder."""
