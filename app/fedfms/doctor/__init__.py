"""``fedfms doctor``: checks a kit, its machine and its data before every start."""
