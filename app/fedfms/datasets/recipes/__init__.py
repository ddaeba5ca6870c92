"""``fedfms data prepare``: public archives, as they are distributed, to one folder and ``site.yaml`` per institution.

Each recipe declares the tree that it expects (``archive.Files``) and turns what is found into ``plan.Case`` objects;
``output`` writes them. ``docs/datasets.md`` says where the archives come from and what was decided.
"""
