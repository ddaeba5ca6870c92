"""Outlines in the XML files of Aperio ImageScope, which MoNuSeg and MoNuSAC use."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from skimage.draw import polygon

from fedfms.data.volume.geometry import Array
from fedfms.errors import IMAGE_UNREADABLE, fail, reason_of

#: MoNuSAC's name for areas whose nuclei were not judged.
AMBIGUOUS = "ambiguous"


def filled_outlines(path: Path, size: tuple[int, ...]) -> Array:
    """Fill every outline of a file.

    Args:
        path: XML file: ``Annotation`` elements, named by their ``Attribute``, with ``Vertex`` lists in ``Region``s.
            X counts columns and Y rows in pixels from the outer corner of the first pixel.
        size: (rows, columns) of the image.

    Returns:
        uint8 (rows, columns): 255 where a pixel's centre is inside an outline, else 0.

    Raises:
        FedfmsError: FMS-D004 when the file is not such XML, or all its outlines are outside of the image.
    """
    mask: Array = np.zeros(size, dtype=np.uint8)
    drawn = 0
    try:
        root = ElementTree.parse(path).getroot()
        if root.tag != "Annotations":
            raise ValueError(f"the outermost element is {root.tag}, expected Annotations")
        for annotation in root.iter("Annotation"):
            names = [attribute.get("Name", "").lower() for attribute in annotation.iter("Attribute")]
            if AMBIGUOUS in names:
                continue
            for region in annotation.iter("Region"):
                corners = [(float(vertex.attrib["Y"]), float(vertex.attrib["X"])) for vertex in region.iter("Vertex")]
                if corners:
                    # skimage has the centre of the first pixel at 0.
                    rows, columns = (np.array(corners) - 0.5).T
                    mask[polygon(rows, columns, shape=size)] = 255
                    drawn += 1
    except (OSError, ElementTree.ParseError, KeyError, ValueError) as error:
        raise fail(IMAGE_UNREADABLE, path, reason_of(error)) from error
    if drawn and not mask.any():
        detail = f"none of its {drawn} outlines is in the image of {size[0]} rows x {size[1]} columns"
        raise fail(IMAGE_UNREADABLE, path, detail)
    return mask
