"""``fedfms doctor``: looks at a kit, its machine and its data before every start."""
