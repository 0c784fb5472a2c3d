"""A bundle as the MONAI Model Zoo has them, which MONAI itself runs: `runpy.run_path("tests/zoo.py")`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import torch
from monai.bundle import ConfigParser

CHANNELS = {"0": "background", "1": "spleen", "2": "Left kidney"}


def make_bundle(
    folder: Path,
    *,
    weights: Mapping[str, torch.Tensor] | None = None,
    steps: Mapping[str, Mapping[str, Any]] | None = None,
    channels: Mapping[str, str] = CHANNELS,
    **changes: Any,
) -> Path:
    """Write one.

    Args:
        folder: where.
        weights: of its network; None: random ones.
        steps: other arguments of its transforms, by the name of the transform.
        channels: of its metadata.
        changes: other values at the top of its inference config.
    """
    config = inference()
    for section in ("preprocessing", "postprocessing"):
        for step in config[section]["transforms"]:
            step.update((steps or {}).get(step["_target_"], {}))
    data = {"inputs": {"image": {"modality": "CT"}}, "outputs": {"pred": {"channel_def": dict(channels)}}}
    if weights is None:
        torch.manual_seed(0)
        weights = ConfigParser(inference()).get_parsed_content("network_def").state_dict()
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True)
    (folder / "configs" / "inference.json").write_text(json.dumps(config | changes, indent=4))
    (folder / "configs" / "metadata.json").write_text(json.dumps({"version": "0.1.0", "network_data_format": data}))
    torch.save({"model": weights}, folder / "models" / "model.pt")
    return folder


def run_by_monai(folder: Path) -> npt.NDArray[np.uint8]:
    """The classes `(x, y, z)` that MONAI finds in the one scan of `folder/scans`, by running the bundle."""
    parser = ConfigParser()
    parser.read_config(folder / "configs" / "inference.json")
    parser["bundle_root"] = str(folder)
    parser.get_parsed_content("run")
    (written,) = (folder / "eval").rglob("*.nii.gz")
    found: npt.NDArray[np.uint8] = np.asarray(nibabel.load(written).dataobj)
    return found


def inference() -> dict[str, Any]:
    """`configs/inference.json`, with as much Python in it as such configs have."""
    keys = {"keys": "@image_key"}
    return {
        "imports": ["$import glob", "$import numpy"],
        "bundle_root": ".",
        "image_key": "image",
        "n_classes": 3,
        "side": 24,
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/*.nii.gz')))",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": "UNet",
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": "@n_classes",
            "channels": [8, 16],
            "strides": [2],
            "num_res_units": 1,
            "norm": "batch",
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", **keys, "reader": "NibabelReader"},
                {"_target_": "EnsureChannelFirstd", **keys},
                {"_target_": "Orientationd", **keys, "axcodes": "RAS", "labels": None},
                {"_target_": "Spacingd", **keys, "pixdim": [1.5, 1.75, 2.0], "mode": "bilinear"},
                {
                    "_target_": "ScaleIntensityRanged",
                    **keys,
                    **{"a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1, "clip": True},
                },
                {"_target_": "EnsureTyped", **keys},
                {"_target_": "CastToTyped", **keys, "dtype": "$torch.float32"},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{@image_key: path} for path in @datalist]",
            "transform": "@preprocessing",
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": ["$32", 40, "@side"],
            "sw_batch_size": 4,
            "overlap": 0.5,
            "mode": "gaussian",
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "@image_key",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_dtype": "$numpy.uint8",
                },
            ],
        },
        "checkpointloader": {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        },
        "initialize": ["$monai.utils.set_determinism(seed=123)"],
        "state": "$torch.load(@bundle_root + '/models/model.pt', weights_only=True)['model']",
        "infer": "$lambda scan: @inferer(scan['image'][None].as_tensor().to(@device), @network.eval())[0].detach()",
        "run": [
            "$@network.load_state_dict(@state)",
            "$[@postprocessing({**scan, 'pred': @infer(scan).cpu()}) for scan in @dataset]",
        ],
    }
