"""Which configs a tuning tries."""

import pytest

from tomoray.config import load_config, make_config
from tomoray.errors import Usage
from tomoray.training.search import ParameterConfig, TuneConfig

TRAIN = {"labels": ["lungs"], "archive": "a", "out": "t", "validate_every": 10, "steps": 100}
SPACE = {
    "learning_rate": {"log_uniform": [1e-4, 1e-1]},
    "optimizer.weight_decay": {"uniform": [0.0, 0.5]},
    "batch_size": {"integers": [2, 5]},
    "loss.name": {"choice": ["dice_ce", "tversky"]},
}


def tuning(space=SPACE, **changes):
    return make_config(TuneConfig, {"train": TRAIN, "space": space, **changes}, "tuning.yaml")


def test_values_cover_their_ranges_and_have_four_digits():
    values = [trial.values for trial in tuning(trials=64).all_trials()]
    rates = [each["learning_rate"] for each in values]
    for low in (1e-4, 1e-3, 1e-2):  # each decade as often, but for the edges
        assert 19 <= sum(low <= rate < 10 * low for rate in rates) <= 24
    assert all(rate == float(f"{rate:.4g}") for rate in rates)
    assert {each["batch_size"] for each in values} == {2, 3, 4, 5}
    assert sum(each["loss.name"] == "tversky" for each in values) in range(30, 35)
    assert 0.2 < sum(each["optimizer.weight_decay"] for each in values) / 64 < 0.3


def test_the_first_trials_stay_when_more_are_asked_for():
    few, many = tuning(trials=5).all_trials(), tuning(trials=50).all_trials()
    assert many[:5] == few
    assert tuning(trials=5, seed=1).all_trials() != few


def test_a_trial_is_an_ordinary_config_with_a_folder_of_its_own():
    wanted = tuning(out="s3://bucket/tuning/", trials=2)
    trial = wanted.all_trials()[1]
    config = wanted.config_of(trial)
    assert config.out == "s3://bucket/tuning/trial-001"
    assert config.learning_rate == trial.values["learning_rate"]
    assert config.optimizer.weight_decay == trial.values["optimizer.weight_decay"]
    assert (config.labels, config.optimizer.name) == (["lungs"], "adamw")


def test_what_suits_a_network_and_a_preset_is_filled_in_for_each_trial():
    space = {
        "network": {"choice": [{"name": "unet"}, {"name": "segresnet", "channels": [8, 16, 32]}]},
        "augment.preset": {"choice": ["none", "standard"]},
    }
    wanted = tuning(space, trials=4)
    configs = [wanted.config_of(trial) for trial in wanted.all_trials()]
    assert {(c.network.name, c.network.norm) for c in configs} == {("unet", "instance"), ("segresnet", "group")}
    assert {(c.augment.preset, c.augment.rotate) for c in configs} == {("none", 0.0), ("standard", 0.2)}


def test_train_may_be_a_recipe_or_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("labels: [nodules]\nvalidate_every: 5\n")
    for source, labels in (("phantom", ["lungs", "nodules"]), (str(path), ["nodules"])):
        (tmp_path / "tuning.yaml").write_text(f"train: {source}\nspace: {{learning_rate: {{uniform: [0.1, 0.2]}}}}\n")
        assert load_config(str(tmp_path / "tuning.yaml"), TuneConfig).base.labels == labels


def test_there_are_ten_validations_unless_train_says_otherwise():
    wanted = tuning(train={**TRAIN, "validate_every": None})
    assert wanted.config_of(wanted.all_trials()[0]).validate_every == wanted.grace_steps == 10
    assert tuning(train={**TRAIN, "validate_every": 25}).grace_steps == 25


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"space": {}}, r"space: Dictionary should have at least 1 item"),
        (
            {"space": {"optimizer.wieght_decay": {"uniform": [0, 1]}}},
            "no field 'optimizer.wieght_decay'; did you mean 'w",
        ),
        ({"space": {"steps.more": {"uniform": [0, 1]}}}, "steps.more cannot vary: trials are compared after the same"),
        ({"space": {"learning_rate.x": {"uniform": [0.1, 1]}}}, "train has no field 'learning_rate.x'"),
        (
            {"space": {"split.seed": {"integers": [0, 9]}}},
            "split.seed cannot vary: trials are compared on the same pati",
        ),
        ({"space": {"learning_rate": {"uniform": [0, 1]}}}, "learning_rate of 0.0: learning_rate: Input should be gre"),
        ({"space": {"loss.name": {"choice": ["dice_ce", "dyce"]}}}, "loss.name of 'dyce': loss.name: Input should be"),
        ({"space": {"learning_rate": {"uniform": [1, 0.1]}}}, "1.0 is not below 0.1; the lower bound comes first"),
        ({"space": {"learning_rate": {"log_uniform": [0, 0.1]}}}, "learning_rate.log_uniform.0: Input should be great"),
        ({"space": {"learning_rate": {"loguniform": [1, 2]}}}, "learning_rate.loguniform'; did you mean 'log_uniform'"),
        ({"space": {"learning_rate": {}}}, "wanted one of choice, uniform, log_uniform, integers"),
        (
            {"space": {"seed": {"choice": [1, 2], "integers": [1, 2]}}},
            "wanted one of choice, uniform, log_uniform, int",
        ),
        ({"space": {"seed": {"choice": [1, 2]}}}, "space has 2 different points, and trials is 16; lower trials"),
        (
            {"space": {"network": {"choice": [{}]}, "network.dropout": {"uniform": [0, 0.5]}}},
            "network.dropout lies within network",
        ),
        (
            {"space": {"patch_zyx": {"choice": [[64, 64, 64], [64, 64, 60]]}}, "trials": 2},
            r"trial-00\d with patch_zyx ",
        ),
        ({"train": {**TRAIN, "split": {"validation": 0}}}, "set train.split.validation above 0"),
        ({"train": {**TRAIN, "learning_rat": 1}}, "unknown key 'learning_rat'; did you mean 'learning_rate'"),
        ({"train": "nothing.yaml"}, "no config file nothing.yaml"),
        ({"asha": {"grace_steps": 101}}, "asha.grace_steps 101 are more than train.steps 100"),
    ],
)
def test_a_space_that_cannot_be_tried_is_one_line(changes, told):
    with pytest.raises(Usage, match=told) as caught:
        tuning(**{"space": SPACE, **changes})
    assert "\n" not in str(caught.value)


def test_a_range_reaches_both_ends_and_not_beyond():
    whole = ParameterConfig(integers=(3, 4))
    assert [whole.at(share) for share in (0.0, 0.49, 0.5, 0.999999)] == [3, 3, 4, 4]
    assert ParameterConfig(uniform=(0.123446, 0.2)).at(0.0) == 0.123446
    assert ParameterConfig(log_uniform=(1e-6, 1.0)).at(0.5) == 1e-3
