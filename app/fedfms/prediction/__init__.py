"""From a model and images to masks in the images' own format: ``fedfms predict``."""
