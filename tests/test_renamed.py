"""Former names of options and settings are refused, with the name in use in the hint."""

import pytest
import typer

from calmrl_lab import renamed
from calmrl_lab.cli import app
from calmrl_lab.config import TrainConfig, build
from calmrl_lab.errors import CalmrlError

COMMANDS = typer.main.get_command(app).commands
CASES = [(command, old, new) for command, names in renamed.OPTIONS.items() if command for old, new in names.items()]


@pytest.mark.parametrize(("command", "old", "new"), CASES, ids=[f"{command} {old}" for command, old, _ in CASES])
def test_a_former_option_is_refused_with_the_one_in_use(cli, command, old, new):
    options = {option for parameter in COMMANDS[command].params for option in parameter.opts}
    in_use = [word for word in new.replace(",", "").split() if word.startswith("--")]
    assert old not in options
    assert set(in_use) <= options
    for word in (old, f"{old}=3"):
        code, out, err = cli(command, word)
        assert (code, out) == (2, "")
        assert f"there is no option '{old}'" in err
        assert f"it is now called {in_use[0]}" in err


def test_options_of_other_commands_stay(cli):
    # 'train-heads --impute' and '--set' are in use, though those of 'impute' and 'index' are not.
    assert renamed.option_hint(["train-heads", "--impute", "ppca", "--set", "epochs=3"]) is None
    code, _, err = cli("train-heads", "--impute", "ppca", "--set", "epochs=3")
    assert (code, "no feature store was named" in err) == (2, True)


@pytest.mark.parametrize(("old", "new"), renamed.SETTINGS.items())
def test_a_former_setting_is_refused_with_the_one_in_use(old, new):
    assert new in TrainConfig.model_fields
    with pytest.raises(CalmrlError, match=f"{old}: unknown key") as caught:
        build(TrainConfig, {"store": "s.zarr", "objective": "clip", old: 1}, "x.yaml")
    assert caught.value.hint == f"it is now called {new}"


def test_the_effort_of_a_search_is_that_of_its_index(cli, tmp_path, trained):
    features = tmp_path / "q.npy"
    cli("index", "--run", trained.path, "--out", tmp_path / "index", "--index-type", "hnsw", "--m", 8, "--ef-construction", 40)
    code, _, err = cli("search", "--index", tmp_path / "index", "--features", features, "--nprobe", 3)
    assert code == 2
    assert "--nprobe is for ivf indexes" in err
    assert "use --ef-search" in err
