"""Every shipped configuration runs for one step, by the very command that its header gives, on tiny videos."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from strm_lightning.cli.main import main

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
CONFIGS = sorted(p for p in EXPERIMENTS.rglob("*.yaml") if not {"sweeps", "methods"} & set(p.parts))
SPLIT = {"train": ["left", "right", "up"], "val": ["still", "rise"], "test": ["fall", "sink", "leap"]}
OTHER_BACKBONES = {"vit.yaml": "test_vit", "convnext.yaml": "test_convnext"}
TINY = """
    --data.lists=null --data.way=2 --data.train_way=null --data.shot=1 --data.query_per_class=1 --data.image_size=48
    --data.short_side=48 --data.num_workers=0 --data.eval_batch_size=2 --model.pretrained=false --model.weights=null
    --model.match_dim=8 --trainer.fast_dev_run=1 --trainer.precision=32-true --trainer.accelerator=cpu
    --trainer.devices=1 --trainer.num_nodes=1 --trainer.strategy=auto --trainer.enable_progress_bar=false
    --trainer.enable_model_summary=false --test_after_fit=false
"""


def commands(config: Path) -> list[list[str]]:
    """The training commands in a configuration's header, without the user's folders."""
    lines = re.findall(r"^#   (?:strm|lightning) (fit .+)$", config.read_text(), re.MULTILINE)
    return [re.sub(r"--data\.(root|lists) [A-Z]+", "", line).split() for line in lines]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: str(p.relative_to(EXPERIMENTS)))
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore:.*does not have many workers.*", "ignore:.*bfloat16.*")
def test_the_command_in_the_header_runs(
    config: Path, actions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = commands(config)
    assert found, f"{config.name}: its header names no command"
    assert all(str(config.relative_to(EXPERIMENTS.parent)) in command for command in found)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    data = ["--data.root", str(actions), "--data.split", json.dumps(SPLIT)]
    backbone = f"--model.backbone={OTHER_BACKBONES.get(config.name, 'test_resnet')}"
    for number, command in enumerate(found):
        (tmp_path / str(number)).mkdir()
        monkeypatch.chdir(tmp_path / str(number))
        absolute = [str(EXPERIMENTS.parent / word) if word.endswith(".yaml") else word for word in command]
        monkeypatch.setattr("sys.argv", ["strm", *absolute, *TINY.split(), *data, backbone])
        main()
    said = capsys.readouterr().out
    assert ("A training step will take about" in said) == ("MemoryEstimate" in config.read_text())


def merged(files: list[Path]) -> dict[str, dict[str, Any]]:
    """What LightningCLI makes of several configurations: later values win."""
    found: dict[str, dict[str, Any]] = {}
    for path in files:
        for part, values in yaml.safe_load(path.read_text()).items():
            found[part] = {**found.get(part, {}), **values} if isinstance(values, dict) else values
    return found


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: str(p.relative_to(EXPERIMENTS)))
def test_shared_values_stand_once(config: Path) -> None:
    """A configuration repeats no value of those that its command puts before it."""
    for command in commands(config):
        files = [EXPERIMENTS.parent / word for word in command if word.endswith(".yaml")]
        before = merged(files[: files.index(config)])
        for part, values in yaml.safe_load(config.read_text()).items():
            if part in before and isinstance(values, dict):
                same = [key for key, value in values.items() if before[part].get(key, ...) == value]
                assert not same, f"{config.name} repeats {part}.{', '.join(same)}"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: str(p.relative_to(EXPERIMENTS)))
def test_a_published_step_is_sixteen_episodes_on_any_hardware(config: Path) -> None:
    """Devices share a step out; an epoch ends with a whole one, since Lightning would take half a step for one."""
    for command in commands(config):
        files = [EXPERIMENTS.parent / word for word in command if word.endswith(".yaml")]
        if files[0].name != "kinetics.yaml":
            continue
        found = merged(files)
        trainer, data = found["trainer"], found["data"]
        devices = trainer["devices"] * trainer.get("num_nodes", 1)
        assert devices * trainer["accumulate_grad_batches"] * data["batch_size"] == 16
        assert data["train_episodes"] % 16 == 0
