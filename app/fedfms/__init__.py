"""Federated fine-tuning of Segment Anything for medical images on NVIDIA FLARE."""

from fedfms.moved import install

__version__ = "0.1.0"

install()
