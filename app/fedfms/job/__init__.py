"""The job: ``training.yaml`` and the folder around it."""
