"""Dice, IoU, HD95 and ASSD by SimpleITK's filters: reference values for ours."""

from __future__ import annotations

import numpy as np
import SimpleITK


def itk_scores(predicted: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> dict[str, float]:
    """Scores of two masks that are not empty; ``spacing`` in the order of the arrays' axes."""
    # An empty margin, because SimpleITK draws no contour along the image's border.
    images = [SimpleITK.GetImageFromArray(np.pad(mask, 1).astype(np.uint8)) for mask in (predicted, reference)]
    for image in images:
        image.SetSpacing(spacing[::-1])
    overlap = SimpleITK.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*images)
    contours = [SimpleITK.LabelContour(image, fullyConnected=False) for image in images]
    distances = [
        SimpleITK.Abs(SimpleITK.SignedMaurerDistanceMap(contour, squaredDistance=False, useImageSpacing=True))
        for contour in contours
    ]
    # From each contour to the other; within a contour the map counts inwards, but the distance to it is 0.
    there, back = (
        np.where(
            SimpleITK.GetArrayViewFromImage(contours[other]) > 0, 0, SimpleITK.GetArrayViewFromImage(distances[other])
        )[SimpleITK.GetArrayViewFromImage(contours[own]) > 0]
        for own, other in ((0, 1), (1, 0))
    )
    return {
        "dice": overlap.GetDiceCoefficient(),
        "iou": overlap.GetJaccardCoefficient(),
        "hd95_mm": max(np.percentile(there, 95), np.percentile(back, 95)),
        "assd_mm": np.concatenate([there, back]).mean(),
    }
