"""What a hospital has: its description, the readers, the splits, and the way from a file to a model input.

Importing this package is fast; pydicom, nibabel and MONAI are imported where they are used.
"""
