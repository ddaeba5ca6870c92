"""The data of a hospital: its description, the readers of its files, the splits, and the model inputs.

Importing this package is fast; pydicom, nibabel and MONAI are imported where they are used.
"""
