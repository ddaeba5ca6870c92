"""First ``site.yaml`` files, written from what is found in a folder."""
