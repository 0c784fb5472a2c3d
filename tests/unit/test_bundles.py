"""MONAI bundles made elsewhere: the masks of MONAI itself, and none of their code."""

from __future__ import annotations

import hashlib
import runpy
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from monai.networks import nets
from torch.nn.functional import cross_entropy, interpolate

from serving.model import served_model
from tomoray import nifti
from tomoray.archive import Archive
from tomoray.config import Layout
from tomoray.errors import Fatal, Usage
from tomoray.geometry import Geometry
from tomoray.inference import bundles
from tomoray.inference.models import compile_segmenter, open_model
from tomoray.metrics import dice
from tomoray.predictions import Predictions
from tomoray.serving_config import ModelConfig
from tomoray.storage import open_store

_zoo = runpy.run_path(str(Path(__file__).parents[1] / "zoo.py"))
make_bundle, run_by_monai, inference = (_zoo[name] for name in ("make_bundle", "run_by_monai", "inference"))
pytestmark = [
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),  # MONAI tries every reader it has
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),  # MONAI: any bundle may run any code
]


@pytest.fixture(autouse=True, scope="module")
def _one_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:  # for all, so that one bundle could get what was compiled for another
        patch.setenv("TOMORAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def blobs(shape, seed, nodes=(4, 4, 4)):
    """Values from 0 to 1 `(1, …)`, linear between random nodes, and nothing at the faces."""
    values = torch.rand(1, 1, *nodes, generator=torch.Generator().manual_seed(seed)) * 1.3
    for axis in (2, 3, 4):
        values.narrow(axis, 0, 1).zero_()
        values.narrow(axis, -1, 1).zero_()
    return interpolate(values, size=shape, mode="trilinear")[0].clamp(0, 1)


@pytest.fixture(scope="module")
def weights():
    """Of a network that knows the bright from the dark, and its two sides: where it rises along its axes, and falls."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny networks are faster so
    torch.manual_seed(0)
    arguments = {**inference()["network_def"], "out_channels": 3}
    del arguments["_target_"]
    network = nets.UNet(**arguments)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for step in range(50):
        image = blobs((24, 24, 24), step, nodes=((4, 4, 4), (5, 5, 5))[step % 2])[None]
        x, y, z = torch.gradient(image[:, 0], dim=(1, 2, 3))
        truth = torch.where(image[:, 0] > 0.4, torch.where(x + 0.5 * y + 0.25 * z > 0, 1, 2), 0)
        optimizer.zero_grad()
        cross_entropy(network(image), truth).backward()
        optimizer.step()
    torch.set_num_threads(threads)
    return network.eval().state_dict()


def write_scan(bundle, shape, spacing_mm):
    """An oblique scan whose axes grow to Inferior, Right and Posterior; HU of -57 to 164."""
    turn = np.deg2rad(12)
    oblique = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = oblique @ np.array([[0.0, 1, 0], [0, 0, -1], [-1, 0, 0]]) @ np.diag(spacing_mm)
    affine[:3, 3] = [30, -20, 11]
    image = (blobs(shape, 99)[0] * 221 - 57).numpy().astype(np.int16)
    (bundle / "scans").mkdir()
    nibabel.save(nibabel.Nifti1Image(image, affine), bundle / "scans" / "one.nii.gz")


def agreement(bundle, backend="torch"):
    """Dice of each label between TomoRay's masks and MONAI's."""
    segmenter, _ = compile_segmenter(open_model(str(bundle)), backend)
    masks = segmenter.segment(*nifti.read_image((bundle / "scans" / "one.nii.gz").read_bytes()))
    theirs = run_by_monai(bundle).T
    assert min((theirs == 1).mean(), (theirs == 2).mean()) > 0.01, "masks worth comparing"
    return {label: dice(mask, (theirs == n).astype(np.uint8)) for n, (label, mask) in enumerate(masks.items(), 1)}


@pytest.mark.parametrize(
    ("axcodes", "pixdim", "roi", "values", "backend"),
    [
        ("RAS", (1.5, 1.75, 2.0), (32, 40, 24), (0, 1), "openvino"),
        ("LPS", (1.5, 1.75, 2.0), (32, 40, 24), (0, 1), "openvino"),
        ("SRA", (2.0, 1.5, 1.75), (24, 32, 40), (-0.1, 0.9), "onnxruntime"),
        ("PLI", (1.75, 1.5, 2.0), (40, 32, 24), (0, 1), "torch"),
    ],
)
def test_masks_are_those_that_monai_finds_by_the_same_bundle(tmp_path, weights, axcodes, pixdim, roi, values, backend):
    steps = {
        "Orientationd": {"axcodes": axcodes},
        "Spacingd": {"pixdim": pixdim},
        "ScaleIntensityRanged": dict(zip(("b_min", "b_max"), values, strict=True)),
    }
    inferer = inference()["inferer"] | {"roi_size": roi}
    bundle = make_bundle(tmp_path / "bundle", weights=weights, steps=steps, inferer=inferer)
    write_scan(bundle, (36, 48, 60), (2.0, 1.5, 1.75))  # on the grid of the network, and MONAI cuts the same windows
    assert open_model(str(bundle)).config.patch_zyx == (24, 40, 32)
    found = agreement(bundle, backend)
    assert set(found) == {"spleen", "Left_kidney"}
    assert min(found.values()) > 0.99, found


def test_a_scan_on_another_grid_gets_about_the_masks_of_monai(tmp_path, weights):
    bundle = make_bundle(tmp_path / "bundle", weights=weights)
    write_scan(bundle, (60, 44, 70), (1.2, 1.6, 1.4))
    assert min(agreement(bundle).values()) > 0.95  # its grid begins at another point, and noise is averaged here


class Touches:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return Path.touch, (self._path,)


def test_no_code_of_a_bundle_is_run(tmp_path):
    ran = tmp_path / "ran"
    code = f"$__import__('pathlib').Path({str(ran)!r}).touch()"
    names = ("device", "bundle_root", "network", "datalist", "dataset", "infer", "state")
    config = inference() | dict.fromkeys(names, code) | {"imports": ["$import os", code], "run": [code]}
    config["preprocessing"]["transforms"][0] |= {"reader": code, "_requires_": code}
    bundle = make_bundle(tmp_path / "bundle", **config)
    compile_segmenter(open_model(str(bundle)), "torch")
    with pytest.raises(Usage, match=r"pixdim is .\$__import__.*, and no code of a bundle is run; wanted its value"):
        open_model(str(make_bundle(tmp_path / "pixdim", steps={"Spacingd": {"pixdim": code}})))
    torch.save({"model": Touches(ran)}, bundle / "models" / "model.pt")
    with pytest.raises(Fatal, match="no file of weights that can be read without running its code"):
        open_model(str(bundle))
    assert not ran.exists()
    torch.load(bundle / "models" / "model.pt", weights_only=False)
    assert ran.exists(), "what would have happened"


def test_yaml_is_read_as_json_is_and_builds_nothing(tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    wanted = open_model(str(bundle)).config
    (bundle / "configs" / "inference.json").unlink()
    path = bundle / "configs" / "inference.yaml"
    path.write_text(yaml.safe_dump(inference()))
    assert open_model(str(bundle)).config == wanted
    path.write_text(f"imports: !!python/object/apply:os.mkdir [{tmp_path}/ran]\n")
    with pytest.raises(Fatal, match=r"inference\.yaml is damaged: could not determine a constructor"):
        open_model(str(bundle))
    assert not (tmp_path / "ran").exists()


def test_weights_are_named_by_their_digest(tmp_path, caplog):
    bundle = make_bundle(tmp_path / "bundle")
    digest = hashlib.sha256((bundle / "models" / "model.pt").read_bytes()).hexdigest()
    model = open_model(str(bundle), sha256=digest)
    assert model.sha256 == digest
    for wanted, told in (
        (digest, []),
        (None, [f"{bundle} names no digest; to serve no other weights, give sha256: {digest}"]),
    ):
        caplog.clear()
        served, _ = served_model(ModelConfig(source=str(bundle), sha256=wanted))
        assert (served.sha256, served.labels, caplog.messages) == (digest, ["spleen", "Left_kidney"], told)
    with pytest.raises(Fatal, match=r"has sha256 .*: it is another model"):
        open_model(str(bundle), sha256="0" * 64)
    make_bundle(tmp_path / "other", weights={"a": torch.zeros(1)})
    (tmp_path / "other" / "models" / "model.pt").rename(bundle / "models" / "model.pt")
    with pytest.raises(Fatal, match=r"model\.pt of .* has sha256 .*, wanted"):
        compile_segmenter(model, "torch")
    with pytest.raises(Fatal, match=r"the weights .*model\.pt do not fit UNet"):
        open_model(str(bundle))
    (bundle / "models" / "model.pt").unlink()
    with pytest.raises(Fatal, match=r"has no models/model\.pt; a bundle's TorchScript is not run"):
        open_model(str(bundle))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network_def": {"_target_": "os.system", "command": "true"}}, "network_def is os.system; understood are Att"),
        ({"network_def": {"_target_": "scripts.net.UNet"}}, "network_def is scripts.net.UNet; understood are"),
        ({"network_def": {"_target_": "DiNTS"}}, "network_def is DiNTS; understood are"),
        ({"network_def": "$torch.jit.load('a')"}, r"network_def is .\$torch.jit.load.*; understood are"),
        ({"channels": {"0": "background", "1": "a"}}, r"UNet makes scores \[3, 24, 40, 32\]; wanted 2 scores \(chann"),
        ({"network_def": {"_target_": "UNet", "spatial_dims": 3}}, "UNet cannot be built: TypeError"),
        ({"network_def": {"_target_": "UNet", "norm": {"_target_": "A"}}}, "norm is A, which is not built; wanted"),
        ({"n_classes": "$1 + 2"}, r"network_def: out_channels is .\$1 \+ 2., and no code of a bundle is run"),
        ({"n_classes": "@n_classes"}, "@n_classes stands for itself"),
        ({"side": "@nowhere"}, "@nowhere stands for nothing there"),
        ({"side": 25}, r"SlidingWindowInferer: roi_size.2: Input should be a multiple of 2, found 25"),
        ({"inferer": {"_target_": "SimpleInferer"}}, "inferer has SimpleInferer; understood are SlidingWindowInferer"),
        ({"preprocessing": "$scripts.preprocessing()"}, "preprocessing is .*; wanted a Compose of transforms"),
        (
            {"steps": {"Orientationd": {"_target_": "Flipd"}}},
            "preprocessing has Flipd; understood are Orientationd, Sp",
        ),
        ({"steps": {"Spacingd": {"_target_": "NormalizeIntensityd"}}}, "preprocessing has NormalizeIntensityd; unders"),
        ({"steps": {"Orientationd": {"_target_": "EnsureTyped"}}}, "preprocessing has no Orientationd; wanted one"),
        ({"steps": {"Orientationd": {"_target_": "Spacingd"}}}, "unknown key 'axcodes'"),
        ({"steps": {"Orientationd": {"axcodes": "RAR"}}}, "axcodes: wanted one end of each axis, such as RAS, found"),
        ({"steps": {"Orientationd": {"labels": ["RL", "AP", "IS"]}}}, "labels: Input should be None"),
        ({"steps": {"Spacingd": {"mode": "nearest"}}}, "Spacingd: mode: Input should be 'bilinear', found 'nearest'"),
        ({"steps": {"Spacingd": {"diagonal": True}}}, "Spacingd: diagonal: Input should be False, found True"),
        ({"steps": {"ScaleIntensityRanged": {"clip": False}}}, "ScaleIntensityRanged: clip: Input should be True"),
        ({"steps": {"ScaleIntensityRanged": {"a_max": -60}}}, "a_max: wanted more than -57, found -60"),
        ({"steps": {"Activationsd": {"sigmoid": True}}}, "sigmoid: labels that overlap are not understood; wanted so"),
        ({"steps": {"AsDiscreted": {"threshold": 0.5}}}, "threshold: labels that overlap are not understood"),
        ({"steps": {"Activationsd": {"_target_": "KeepLargestConnectedComponentd"}}}, "postprocessing has KeepLargest"),
        (
            {"handlers": [{"_target_": "CheckpointLoader", "load_path": "$a + '/models/b.pt'"}]},
            "its weights are .*b.pt",
        ),
        ({"channels": {"0": "spleen", "1": "liver", "2": "a"}}, "channel_def begins with 'spleen'; wanted background"),
        ({"channels": {"a": "background"}}, r"metadata.json: wanted network_data_format.outputs.pred.channel_def"),
        ({"channels": {"0": "background", "1": "a b", "2": "a/b"}}, "labels: a label is named twice"),
    ],
)
def test_refuses_what_it_does_not_understand(tmp_path, changes, said):
    with pytest.raises(Usage, match=said) as caught:
        open_model(str(make_bundle(tmp_path / "bundle", **changes)))
    assert "\n" not in str(caught.value)


def test_spacing_before_orientation_belongs_to_no_axes(tmp_path):
    config = inference()
    steps = config["preprocessing"]["transforms"]
    steps[2:5] = steps[4], steps[3], steps[2]
    with pytest.raises(Usage, match="Spacingd comes before Orientationd; wanted after, or one pixdim for all axes"):
        open_model(str(make_bundle(tmp_path / "bundle", **config)))
    steps[3]["pixdim"] = 1.5
    assert open_model(str(make_bundle(tmp_path / "even", **config))).config.spacing_zyx_mm == (1.5, 1.5, 1.5)


def test_masks_of_a_bundle_whose_config_was_edited_are_drawn_again(tmp_path):
    bundle, place = make_bundle(tmp_path / "bundle"), open_store(str(tmp_path / "masks"))
    edited = make_bundle(tmp_path / "edited", steps={"Spacingd": {"pixdim": (2.0, 2.0, 2.0)}})
    geometry = Geometry.from_matrix((4, 4, 4), np.eye(4))

    def predictions():
        model = open_model(str(bundle))
        digests = {"model_sha256": model.sha256, "config_sha256": model.config_sha256}
        return Predictions(store=place, format="zarr", **digests)

    first = predictions()
    first.prepare(Layout())
    Archive.open(place.url).write_masks("s", {"spleen": np.zeros((4, 4, 4), np.uint8)}, geometry, first._attributes)
    assert predictions().has("s")
    shutil.copytree(edited / "configs", bundle / "configs", dirs_exist_ok=True)
    assert predictions().model_sha256 == first.model_sha256
    assert not predictions().has("s")


def test_a_bundle_is_looked_for_only_where_its_metadata_is(tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    (bundle / "configs" / "inference.json").write_text("{")
    with pytest.raises(Fatal, match=r"inference\.json is damaged"):
        open_model(str(bundle))
    (bundle / "configs" / "inference.json").unlink()
    with pytest.raises(Fatal, match=r"has configs/metadata\.json, but neither configs/inference\.json nor"):
        open_model(str(bundle))
    (bundle / "configs" / "metadata.json").unlink()
    with pytest.raises(Fatal, match="is not a run"):
        open_model(str(bundle))


ARGUMENTS = {
    "AttentionUnet": {"channels": [4, 8], "strides": [2]},
    "BasicUNet": {"features": [4, 4, 8, 8, 16, 4]},
    "DynUNet": {
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, [2, 2, 1]],
        "upsample_kernel_size": [2, [2, 2, 1]],
        "filters": [4, 8, 16],
    },
    "HighResNet": {},
    "MedNeXt": {"init_filters": 4},
    "SegResNet": {"init_filters": 8},
    "SegResNetDS": {"init_filters": 8, "blocks_down": [1, 1, 1], "dsdepth": 2},
    "SwinUNETR": {"feature_size": 12},
    "UNETR": {"img_size": 64, "feature_size": 4, "hidden_size": 24, "mlp_dim": 32, "num_heads": 4},
    "UNet": {"channels": [4, 8], "strides": [2]},
    "VNet": {},
}


@pytest.mark.parametrize("name", bundles._NETWORKS)
def test_every_network_is_built_and_tried(tmp_path, name):
    arguments = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, **ARGUMENTS[name]}
    old = {"img_size": 64} if name == "SwinUNETR" else {}  # gone since MONAI 1.5, and still in bundles
    bundle = make_bundle(
        tmp_path / "bundle",
        weights=getattr(nets, name)(**arguments).state_dict(),
        network_def={"_target_": f"monai.networks.nets.{name}", **arguments, **old},
        inferer={"_target_": "monai.inferers.SlidingWindowInferer", "roi_size": 64},
    )
    assert open_model(str(bundle)).config.patch_zyx == (64, 64, 64)
    path = bundle / "configs" / "inference.json"
    path.write_text(path.read_text().replace('"in_channels": 1', '"in_channels": 2'))
    with pytest.raises(Fatal, match=f"do not fit {name}|{name} cannot make 3 scores"):
        open_model(str(bundle))
