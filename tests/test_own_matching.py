"""A matching method of a user: trained, tested from a bank, saved and loaded by name; in Python and by commands."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

import strm_lightning
from strm_lightning import STRMModule
from strm_lightning.classifier import FewShotClassifier
from strm_lightning.episode import VideoFeatures
from strm_lightning.errors import InputError
from strm_lightning.evaluation.results_file import load_results
from strm_lightning.models import FeatureSpec, Matching, register_matching
from strm_lightning.models.matching import base
from strm_lightning.models.matching.shots import mean_over_shots
from tests.evaluation.test_protocol import run_test
from tests.test_module import SPLIT, data, module, trainer
from tests.test_module import pytestmark as pytestmark


class Projected(Matching):
    """Inner product of projected mean features."""

    def __init__(self, spec: FeatureSpec, *, width: int = 4, scale: float = 1.0) -> None:
        super().__init__(spec)
        self.project = nn.Linear(spec.dim, width)
        self.scale = scale

    def encode(self, clip: VideoFeatures) -> dict[str, Tensor]:
        assert clip.frame_level is not None
        return {"clip": self.project(clip.frame_level.mean(-2))}

    def match(
        self, support: dict[str, Tensor], query: dict[str, Tensor], shot_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        scores = query["clip"] @ support["clip"].flatten(-3, -2).mT
        return {"own": self.scale * mean_over_shots(scores, support["clip"].shape[-3], shot_mask)}


class Plain(Projected):
    """The same with nothing to train."""

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__(spec)
        self.project = nn.Identity()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Matching]]:
    """A copy of the registry with the methods of this file."""
    monkeypatch.setattr(base, "_registry", dict(base._registry))
    register_matching("projected")(Projected)
    register_matching("plain")(Plain)
    return base._registry


OWN: dict[str, Any] = {"matching": "projected", "matching_options": {"width": 3, "scale": 0.5}}


def test_it_is_trained_tested_from_a_bank_and_loaded(
    actions: Path, tmp_path: Path, registry: dict[str, type[Matching]]
) -> None:
    model = module(**OWN, freeze_backbone=True, query_class=True, bank_dir=str(tmp_path / "banks"), lr=0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    saver = ModelCheckpoint(tmp_path, filename="own")
    run = trainer(tmp_path, max_epochs=2, callbacks=[saver])
    run.fit(model, datamodule=data(actions))
    assert {"train/loss_projected", "train/loss_qc", "val/loss_projected"} <= run.callback_metrics.keys()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {
        f"model.head.{name}.{kind}" for name in ("projected.project", "qc.0.linear") for kind in ("weight", "bias")
    }

    found = run_test(tmp_path / "bank", model, data(actions, test_episodes=20))
    direct = run_test(tmp_path / "episodes", model, data(actions, test_episodes=20, evaluation="episodes"))
    assert found["per_episode"] == direct["per_episode"]
    loaded = STRMModule.load_from_checkpoint(tmp_path / "own.ckpt", bank_dir=str(tmp_path / "banks"))
    assert isinstance(loaded.model.head.projected, Projected)
    assert (loaded.hparams["matching"], loaded.hparams["matching_options"]) == tuple(OWN.values())
    assert loaded.model.head.matching.options == OWN["matching_options"]
    kept = set((tmp_path / "banks").iterdir())
    again = run_test(tmp_path / "again", loaded, data(actions, test_episodes=20))
    assert again["per_episode"] == found["per_episode"]
    assert set((tmp_path / "banks").iterdir()) == kept
    assert "own_classes" not in torch.load(tmp_path / "own.ckpt", weights_only=True)


def test_a_checkpoint_of_a_method_that_nobody_registered_is_refused(
    tmp_path: Path, registry: dict[str, type[Matching]]
) -> None:
    path, run = tmp_path / "own.ckpt", trainer(tmp_path)
    run.strategy.connect(module(**OWN))
    run.save_checkpoint(path)
    assert torch.load(path, weights_only=True)["hyper_parameters"]["matching"] == "projected"
    del registry["projected"]
    for load in (STRMModule.load_from_checkpoint, FewShotClassifier.from_checkpoint):
        with pytest.raises(InputError, match=r"'projected' is not registered: .*--import FILE_OR_MODULE") as error:
            load(path)
        assert "\n" not in str(error.value)
    register_matching("projected")(Projected)
    STRMModule.load_from_checkpoint(path)


def test_a_method_without_weights_is_tested_and_not_trained(
    actions: Path, tmp_path: Path, registry: dict[str, type[Matching]]
) -> None:
    frozen = module(matching="plain", freeze_backbone=True)
    assert run_test(tmp_path, frozen, data(actions))["episodes"] == 9
    with pytest.raises(InputError, match=r"nothing to train: matching 'plain' has no weights and the backbone is fr"):
        trainer(tmp_path).fit(frozen, datamodule=data(actions))
    learns = module(matching="plain")
    run = trainer(tmp_path, max_steps=1, enable_checkpointing=False, limit_val_batches=0)
    run.fit(learns, datamodule=data(actions))
    assert run.global_step == 1


@pytest.mark.parametrize(
    "options",
    [
        {"matching": "kernel_ridge", "matching_options": {"kernels": ["lag", "energy"], "ridge": 0.2}},
        {"matching": "otam", "matching_options": {"smoothing": 0.2, "debias": True, "tuple_size": 2, "tuple_dim": 5}},
        {"matching": "chamfer", "matching_options": {"shots": "joint", "learn_scale": True}, "frame_enrichment": True},
        {"matching": "lag", "matching_options": {"proj_dim": 4, "dropout": 0.1}, "query_class": True},
    ],
    ids=lambda options: options["matching"],
)
def test_options_survive_a_checkpoint(tmp_path: Path, options: dict[str, Any]) -> None:
    path, run, model = tmp_path / "one.ckpt", trainer(tmp_path), module(**options)
    run.strategy.connect(model)
    run.save_checkpoint(path)
    loaded = STRMModule.load_from_checkpoint(path)
    assert {name: loaded.hparams[name] for name in options} == options
    assert loaded.model.head.matching.options == options["matching_options"]
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


FILE = '''
import torch
from torch import nn

from strm_lightning.models import Matching, register_matching
from strm_lightning.models.matching import Evidence
from strm_lightning.models.matching.shots import mean_over_shots


class SameStep(Matching):
    """Inner product of features at the same time step."""

    def encode(self, clip):
        return {"steps": self.project(clip.frame_level)}

    def match(self, support, query, shot_mask=None):
        steps = support["steps"]
        scores = torch.einsum("...qld,...sld->...qs", query["steps"], steps.flatten(-4, -3))
        return {"same_step": self.scale * mean_over_shots(scores, steps.shape[-4], shot_mask)}

    def explain(self, support, query, label, shot_mask=None):
        products = (query["steps"] * support["steps"][label]).sum(-1).diag_embed()
        parts = self.scale * products / len(products)
        return {"same_step": Evidence(contributions=parts, weights=products.clamp_min(0), kind="product")}


@register_matching("trained_step")
class TrainedStep(SameStep):
    def __init__(self, spec, *, width: int = 4, scale: float = 1.0):
        super().__init__(spec)
        self.project, self.scale = nn.Linear(spec.dim, width), scale


@register_matching("plain_step")
class PlainStep(SameStep):
    def __init__(self, spec, *, scale: float = 1.0):
        super().__init__(spec)
        self.project, self.scale = nn.Identity(), scale
'''
TINY = f"""
--data.split={shlex.quote(json.dumps(SPLIT))} --data.way=2 --data.shot=1 --data.query_per_class=1 --data.num_frames=4
--data.image_size=32 --data.num_workers=0 --data.train_episodes=6 --data.val_episodes=4 --data.test_episodes=12
--trainer.accelerator=cpu --trainer.enable_progress_bar=false --trainer.enable_model_summary=false
--trainer.log_every_n_steps=1"""
MODEL = "--model.backbone=test_resnet --model.pretrained=false --model.freeze_backbone=true --model.bank_dir=banks"


@pytest.fixture
def folder(actions: Path, tmp_path: Path) -> Path:
    """A folder outside the package: the file of methods, the same as a package, and the videos."""
    (tmp_path / "my_method.py").write_text(FILE)
    (tmp_path / "installed" / "their_package").mkdir(parents=True)
    (tmp_path / "installed" / "their_package" / "methods.py").write_text(FILE)
    (tmp_path / "actions").symlink_to(actions)
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[[str], "subprocess.Popen[str]"]]:
    """Start ``python -m strm_lightning`` in the folder; the process does not import the modules of the tests."""
    paths = [str(Path(strm_lightning.__file__).parents[1]), str(folder / "installed")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    with ExitStack() as processes:

        def start(line: str) -> "subprocess.Popen[str]":
            process = subprocess.Popen(
                [sys.executable, "-m", "strm_lightning", *shlex.split(line)],
                cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            processes.enter_context(process)
            processes.callback(process.kill)  # after a failed test
            return process

        yield start


def end(process: "subprocess.Popen[str]") -> tuple[str, str, int]:
    """Standard output, standard error and exit status."""
    return *process.communicate(), process.returncode


def last_line(text: str) -> str:
    return text.splitlines()[-1]


@pytest.mark.slow
def test_the_command_line_trains_tests_and_classifies_with_a_file(
    folder: Path, start: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    options = "--model.matching=trained_step --model.matching_options.width=3 --model.lr=0.1 --trainer.max_epochs=2"
    fit = f"fit --import my_method.py --data.root=actions {TINY} {MODEL} {options}"
    plain = "--model.matching=plain_step --trainer.logger.init_args.save_dir=plain"
    untrained = start(f"test --import=their_package.methods --data.root=actions {TINY} {MODEL} {plain}")
    out, error, status = end(start(fit))
    assert status == 0, error
    assert "LightningCLI's args" not in error
    (best,) = folder.glob("runs/*/checkpoints/best.ckpt")
    run = best.parents[1]
    checkpoint = torch.load(best, weights_only=True)
    assert checkpoint["hyper_parameters"]["matching_options"] == {"width": 3}
    assert checkpoint["state_dict"]["model.head.trained_step.project.weight"].shape == (3, 96)
    assert "own_classes" not in checkpoint
    fitted = load_results(run)
    metrics = (run / "metrics.csv").read_text().splitlines()[0]
    assert {"train/loss_trained_step", "val/loss_trained_step"} <= set(metrics.split(","))

    ckpt = best.relative_to(folder)
    once_more = f"--data.root=actions {TINY} --model.bank_dir=banks --trainer.logger.init_args.save_dir=again"
    tested = start(f"test --import my_method.py --ckpt_path {ckpt} {once_more}")
    refused = start(f"test --ckpt_path {ckpt} {once_more}")
    out, error, status = end(tested)
    assert status == 0, error
    (again,) = folder.glob("again/*/results.json")
    assert load_results(again)["per_episode"] == fitted["per_episode"]
    assert "Bank of test features" in error
    assert "from an earlier run" in error
    out, error, status = end(refused)
    assert status == 2
    assert "Traceback" not in error
    assert re.match("error: matching 'trained_step' is not registered: .*--import FILE_OR_MODULE", last_line(error))

    support = {name: folder / "support" / name for name in ("left", "right")}
    for name, target in support.items():
        target.mkdir(parents=True)
        for number in range(2):
            (target / f"{number}.mp4").symlink_to(folder / "actions" / name / f"{number}.mp4")
    line = f"--ckpt {ckpt} --support support actions/left/4.mp4 --device cpu"
    classified = start(f"classify --import their_package.methods {line} --json --explain why.png")
    refused = start(f"classify {line}")
    out, error, status = end(classified)
    assert status == 0, error
    assert json.loads(out)["probabilities"].keys() == {"left", "right"}
    assert (folder / "why.png").read_bytes().startswith(b"\x89PNG")
    out, error, status = end(refused)
    assert (status, out) == (2, "")
    assert "Traceback" not in error
    assert re.match("error: matching 'trained_step' is not registered: .*--import FILE_OR_MODULE", last_line(error))

    out, error, status = end(untrained)
    assert status == 0, error
    (results,) = folder.glob("plain/*/results.json")
    assert load_results(results)["card"]["model"]["matching"] == "plain_step"
