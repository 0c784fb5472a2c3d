"""A network as a MONAI bundle: MONAI alone runs it, on NIfTI files.

The bundle holds the program of `torch.export`, so that networks of TomoRay's own need no TomoRay there, and the same
weights apart, where `monai.bundle.load` looks for them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from tomoray.training.config import TrainConfig

_AXES = "SPL"  # of the array: axes grow to Superior, Posterior, Left


def bundle_files(config: TrainConfig, about: Mapping[str, Any], *, program: bytes, weights: bytes) -> dict[str, bytes]:
    """The files of a bundle by their path in it.

    Args:
        config: how the network was trained.
        about: `tomoray.export.describe`.
        program: of `torch.export.save`.
        weights: a state dict with the program's own names.
    """
    return {
        "configs/metadata.json": _dump(_metadata(config, about)),
        "configs/inference.json": _dump(_inference(config)),
        "models/model.pt2": program,
        "models/model.pt": weights,
        "docs/README.md": _readme(config).encode(),
    }


def _metadata(config: TrainConfig, about: Mapping[str, Any]) -> dict[str, Any]:
    """By MONAI's schema of metadata (docs.monai.io, "MONAI Bundle specification")."""
    classes = about["output"]["labels"]
    return {
        "version": about["code_version"],
        "changelog": {about["code_version"]: "exported by TomoRay"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"nibabel": version("nibabel")},
        "task": "segmentation of CT",
        "description": f"{config.network.name} that segments {', '.join(config.labels)}; for research only",
        "authors": "",
        "copyright": "",
        "model_sha256": about["model_sha256"],
        "network_data_format": {
            "inputs": {"image": _data(1, config, [0, 1], {"0": "CT"})},
            "outputs": {"pred": _data(len(classes), config, [], classes)},
        },
    }


def _data(channels: int, config: TrainConfig, values: list[int], names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "type": "image" if values else "probabilities",
        "format": "hounsfield" if values else "segmentation",
        "modality": "CT",
        "num_channels": channels,
        "spatial_shape": list(config.patch_zyx),
        "dtype": "float32",
        "value_range": values,
        "is_patch_data": True,
        "channel_def": dict(names),
    }


def _inference(config: TrainConfig) -> dict[str, Any]:
    """From `@dataset_dir/*.nii.gz` to label maps on the scans' own grids in `@output_dir`."""
    low, high = config.hu_window
    read: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": _AXES, "labels": None},
    ]
    if config.spacing_zyx_mm is not None:
        read.append({"_target_": "Spacingd", "keys": "image", "pixdim": list(config.spacing_zyx_mm)})
    scale = {"a_min": low, "a_max": high, "b_min": 0.0, "b_max": 1.0, "clip": True}
    read.append({"_target_": "ScaleIntensityRanged", "keys": "image", **scale})
    write = [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
            "to_tensor": True,
        },
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_dtype": "$np.uint8"},
    ]
    return {
        "imports": ["$import glob", "$import numpy as np", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/input'",
        "output_dir": "$@bundle_root + '/output'",
        "datalist": "$sorted(glob.glob(@dataset_dir + '/*.nii.gz'))",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": "$torch.export.load(@bundle_root + '/models/model.pt2').module()",
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": read},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @datalist]",
            "transform": "@preprocessing",
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(config.patch_zyx),
            "sw_batch_size": 4,
            "overlap": config.overlap,
            "mode": "gaussian",
        },
        "postprocessing": {"_target_": "Compose", "transforms": write},
        "segment": "$lambda scan: @inferer(scan['image'][None].as_tensor().to(@device), @network)[0].cpu()",
        "run": ["$[@postprocessing({**scan, 'pred': @segment(scan)}) for scan in @dataset]"],
    }


def _readme(config: TrainConfig) -> str:
    numbers = ", ".join(f"{number} = {name}" for number, name in enumerate(config.labels, start=1))
    return f"""# {config.network.name}: {", ".join(config.labels)}

CT to a label map ({numbers}). Not a medical device; for research.

    python -m monai.bundle run --bundle_root . --config_file configs/inference.json --dataset_dir DIR --output_dir OUT

DIR holds CT as `.nii.gz`, in HU.
"""


def _dump(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()
