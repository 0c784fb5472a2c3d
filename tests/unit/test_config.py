from __future__ import annotations

from pathlib import Path

import pytest

from tomoray.config import Layout, NiftiPattern, PreprocessConfig, load_config, make_config, read_recipe, recipe_names
from tomoray.errors import Usage
from tomoray.training.config import TrainConfig
from tomoray.training.sample_config import SplitConfig


def write(folder: Path, text: str) -> str:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_reads_yaml_and_lets_the_command_line_win(tmp_path: Path) -> None:
    source = write(tmp_path, "labels: [lungs]\nsteps: 10\nseed: 3\n")
    config = load_config(source, TrainConfig, {"steps": 20})
    assert (config.labels, config.steps, config.seed) == (["lungs"], 20, 3)


def test_names_the_nearest_key_for_a_misspelt_one(tmp_path: Path) -> None:
    source = write(tmp_path, "labels: [lungs]\nlearning_rat: 0.1\n")
    with pytest.raises(Usage, match=r"unknown key 'learning_rat'; did you mean 'learning_rate'\?"):
        load_config(source, TrainConfig)


def test_names_the_nearest_key_inside_a_section(tmp_path: Path) -> None:
    source = write(tmp_path, "labels: [lungs]\nnetwork: {chanels: [8, 16]}\n")
    with pytest.raises(Usage, match=r"unknown key 'network\.chanels'; did you mean 'channels'\?"):
        load_config(source, TrainConfig)


def test_lists_the_known_keys_where_none_is_near(tmp_path: Path) -> None:
    source = write(tmp_path, "labels: [lungs]\nsplit: {xyzzy: 1}\n")
    with pytest.raises(Usage, match="known: validation, test, folds, fold, seed"):
        load_config(source, TrainConfig)


def test_names_every_wrong_field_in_one_line(tmp_path: Path) -> None:
    source = write(tmp_path, "labels: [lungs]\nsteps: 0\nbatch_size: many\n")
    with pytest.raises(Usage) as caught:
        load_config(source, TrainConfig)
    message = str(caught.value)
    assert "steps" in message
    assert "batch_size" in message
    assert "many" in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["labels: [lungs", "- lungs\n", ""])
def test_refuses_yaml_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    with pytest.raises(Usage, match=r"config\.yaml"):
        load_config(write(tmp_path, text), TrainConfig)


def test_names_the_file_that_is_missing() -> None:
    with pytest.raises(Usage, match=r"no config file nowhere\.yaml; recipes that need none: .*phantom"):
        load_config("nowhere.yaml", TrainConfig)


def test_names_the_nearest_recipe() -> None:
    with pytest.raises(Usage, match="no config file or recipe 'fantom'; did you mean 'phantom'"):
        load_config("fantom", TrainConfig)


def test_recipe_wins_over_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "phantom").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "nodules" in load_config("phantom", TrainConfig).labels


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_a_config_and_says_what_it_is_for(name: str) -> None:
    assert load_config(name, TrainConfig).steps > 1
    assert read_recipe(name).startswith("# ")


@pytest.mark.parametrize(
    ("model", "values", "complaint"),
    [
        (Layout, {"chunk_zyx": (64, 64, 64), "shard_zyx": (256, 256, 200)}, "not a multiple"),
        (NiftiPattern, {"image": "scan.nii.gz"}, "image needs {case}"),
        (SplitConfig, {"validation": 0.5, "test": 0.5}, "leave no patient to train on"),
        (TrainConfig, {"labels": ["lungs", "lungs"]}, "named twice"),
        (PreprocessConfig, {"sources": [], "archive": "a"}, "sources"),
    ],
)
def test_refuses_what_could_not_work(model: type, values: dict[str, object], complaint: str) -> None:
    with pytest.raises(Usage) as caught:
        make_config(model, values)
    assert complaint in str(caught.value)


def test_config_cannot_be_changed_once_made() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Layout().levels = 2
