"""A sweep's command, built by wandb's own code for sampled parameters, trains; the offline run holds what it should."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import wandb
import yaml
from wandb.proto import wandb_internal_pb2 as pb
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from strm_lightning.cli.main import main
from tests.test_experiments import EXPERIMENTS, SPLIT

SWEEPS = sorted((EXPERIMENTS / "sweeps").glob("*.yaml"))
TINY = """
    --data.way=2 --data.train_way=null --data.shot=1 --data.query_per_class=1 --data.image_size=48
    --data.short_side=48 --data.lists=null --data.num_workers=0 --data.eval_batch_size=2 --data.val_episodes=4
    --data.test_episodes=4 --model.pretrained=false --model.weights=null --model.backbone=test_resnet
    --trainer.accelerator=cpu --trainer.max_epochs=1 --data.train_episodes=1 --trainer.accumulate_grad_batches=1
    --trainer.log_every_n_steps=1 --trainer.enable_progress_bar=false --trainer.enable_model_summary=false
    --data.batch_size=1 --trainer.precision=32-true
"""


def sample(parameters: dict[str, dict[str, Any]], rng: Random) -> dict[str, dict[str, Any]]:
    """What a sweep's server would hand to an agent."""

    def value(options: dict[str, Any]) -> Any:
        if "values" in options:
            return rng.choice(options["values"])
        low, high = options["min"], options["max"]
        if options["distribution"] == "log_uniform_values":
            return math.exp(rng.uniform(math.log(low), math.log(high)))
        return rng.uniform(low, high)

    return {name: {"value": value(options)} for name, options in parameters.items()}


def agent_command(sweep: dict[str, Any], rng: Random) -> list[str]:
    """The command line of an agent, as `wandb agent` puts it together."""
    macros = create_sweep_command_args({"args": sample(sweep["parameters"], rng)})
    macros |= {"interpreter": ["python"], "env": ["/usr/bin/env"]}
    words: list[str] = []
    for word in create_sweep_command(list(sweep["command"])):
        words += macros[word[2:-1]] if word.startswith("${") else [word]
    return words


def records(path: Path) -> Iterator[pb.Record]:
    """Content of an offline run file: protocol buffers in a LevelDB log of 32 KiB blocks after a header of 7 bytes."""
    data, at, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or last part
            yield pb.Record.FromString(parts)
            parts = b""


def read_run(path: Path) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Metrics by name, and the configuration, of an offline run."""
    metrics: dict[str, list[Any]] = {}
    config: dict[str, Any] = {}
    for record in records(path):
        for item in record.history.item:
            metrics.setdefault(item.key or "/".join(item.nested_key), []).append(json.loads(item.value_json))
        for item in [*record.config.update, *record.run.config.update]:
            config[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return metrics, config


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore:.*does not have many workers.*", "ignore:.*eval mode.*")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb.*", "ignore::ResourceWarning")
def test_an_agent_trains_and_its_run_holds_the_metrics(
    path: Path, actions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA", str(actions))
    monkeypatch.setenv("LISTS", "lists")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(EXPERIMENTS)
    sweep = yaml.safe_load(path.read_text())
    words = agent_command(sweep, Random(path.stem))
    assert words[:4] == ["/usr/bin/env", "python", "-m", "strm_lightning"]
    data = ["--data.root", str(actions), "--data.split", json.dumps(SPLIT)]
    monkeypatch.setattr("sys.argv", ["strm", *words[4:], *TINY.split(), *data])
    main()
    wandb.finish()
    wandb.teardown()  # or the next run would remember this one's folder

    metrics, config = read_run(next(tmp_path.rglob("run-*.wandb")))
    assert sweep["metric"]["name"] in metrics
    assert {"train/loss", "train/accuracy", "val/accuracy", "val/ci95"} <= metrics.keys()
    assert any(name.startswith("train/loss_") for name in metrics)
    assert any(name.startswith("lr-") for name in metrics)
    assert all(math.isfinite(value) for value in metrics["train/loss"])
    for flag in words:
        if flag.startswith("--model."):
            name, value = flag.removeprefix("--model.").split("=")
            assert str(config[name]) == value
    if "--test_after_fit=false" not in words:
        assert config["card"]["protocol"]["way"] == 2
        for name in ("test/accuracy", "test/confusion", "test/per-class"):
            assert any(metric.startswith(name) for metric in metrics)
    assert config["way"] == 2
    assert config["trainer"]["max_epochs"] == 1
