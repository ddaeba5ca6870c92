"""Local training, validation and inference; runs in a process of its own (``fedfms.training.worker``)."""
