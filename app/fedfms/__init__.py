"""Federated fine-tuning of Segment Anything for medical images on NVIDIA FLARE."""

__version__ = "0.1.0"
