"""Draw one slice of a phantom's patch as it is and under each transform of the standard set: docs/augmentation.png.

.venv/bin/python benchmarks/augment_pictures.py [--out docs/augmentation.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from tomoray.patches import Batch
from tomoray.phantom.cohort import make_patient
from tomoray.training.augment import augment
from tomoray.training.sample_config import AugmentConfig
from tomoray.transforms import scale_hu

SIDE_YX, SIDE_Z, SHOWN, CAPTION, COLUMNS = 160, 64, 240, 22, 4
# Each at the far end of its range; what has a direction draws it by its sample number.
TRANSFORMS = {
    "as it is": AugmentConfig(),
    "rotate": AugmentConfig(rotate=1.0),
    "scale 0.7": AugmentConfig(scale=1.0, scale_range=(0.7, 0.7)),
    "scale 1.4": AugmentConfig(scale=1.0, scale_range=(1.4, 1.4)),
    "noise 0.03": AugmentConfig(noise=1.0, noise_sigma=(0.03, 0.03)),
    "blur 1": AugmentConfig(blur=1.0, blur_sigma=(1.0, 1.0)),
    "brightness 0.75": AugmentConfig(brightness=1.0, brightness_range=(0.75, 0.75)),
    "contrast 0.75": AugmentConfig(contrast=1.0, contrast_range=(0.75, 0.75)),
    "low_resolution 0.5": AugmentConfig(low_resolution=1.0, resolution_range=(0.5, 0.5)),
    "gamma 1.5": AugmentConfig(gamma=1.0, gamma_range=(1.5, 1.5)),
    "gamma_inverted 1.5": AugmentConfig(gamma_inverted=1.0, gamma_range=(1.5, 1.5)),
    "standard, all drawn": AugmentConfig(
        rotate=1.0, scale=1.0, noise=1.0, blur=1.0, brightness=1.0, contrast=1.0, low_resolution=1.0, gamma=1.0
    ),
}


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "augmentation.png")
    options = parser.parse_args()
    batch, spacing = phantom_patch()
    rows = -(-len(TRANSFORMS) // COLUMNS)
    sheet = Image.new("L", (COLUMNS * SHOWN, rows * (SHOWN + CAPTION)), 255)
    pen = ImageDraw.Draw(sheet)
    for number, (name, config) in enumerate(TRANSFORMS.items()):
        varied = augment(batch, config, seed=3, spacing_zyx_mm=spacing)
        left, top = number % COLUMNS * SHOWN, number // COLUMNS * (SHOWN + CAPTION)
        sheet.paste(draw(varied.image[0, 0], varied.classes[0, 0]), (left, top + CAPTION))
        pen.text((left + 4, top + 4), name, fill=0, font_size=14)
    sheet.save(options.out, optimize=True)


def phantom_patch() -> tuple[Batch, tuple[float, ...]]:
    """The middle of the first patient about the slice with most of the nodules, and its spacing in mm."""
    patient = make_patient(0, 0)
    nodules = np.asarray(patient.masks["nodules"], dtype=bool)
    z = int(nodules.sum((1, 2)).argmax())
    centre = np.array([z, *(side // 2 for side in nodules.shape[1:])])
    shape = np.minimum(nodules.shape, (SIDE_Z, SIDE_YX, SIDE_YX))
    corner = np.clip(centre - shape // 2, 0, nodules.shape - shape)
    window = tuple(slice(first, first + side) for first, side in zip(corner, shape, strict=True))
    hu = torch.from_numpy(np.ascontiguousarray(patient.hu_zyx[window])).float()
    classes = torch.from_numpy(np.ascontiguousarray(nodules[window])).to(torch.uint8)
    batch = Batch(
        image=scale_hu(hu, (-1000.0, 400.0))[None, None],
        classes=classes[None, None],
        samples=(0,),
        scan_ids=("phantom",),
        waited_s=0.0,
    )
    return batch, tuple(patient.geometry.spacing_zyx_mm)


def draw(image: Tensor, classes: Tensor) -> Image.Image:
    """The middle slice, the mask's outline white."""
    z = len(image) // 2
    grey = (image[z] * 255).round().to(torch.uint8).numpy()
    mask = classes[z].numpy() > 0
    inner = mask.copy()
    for axis in (0, 1):
        for shift in (1, -1):
            inner &= np.roll(mask, shift, axis)
    grey[mask & ~inner] = 255
    return Image.fromarray(grey).resize((SHOWN - 4, SHOWN - 4), Image.Resampling.NEAREST)


if __name__ == "__main__":
    main()
