"""What Lightning's Trainer offers, with our module, data module and loaders."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, TQDMProgressBar
from lightning.pytorch.plugins.precision import DoublePrecision, FSDPPrecision, HalfPrecision
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader

from strm_lightning.episode import Episode
from strm_lightning.evaluation.results_file import RESULTS
from tests.test_module import data, module, pytestmark, trainer, weights

pytestmark = [
    *pytestmark,
    pytest.mark.filterwarnings("ignore:You requested to overfit"),  # Lightning says that it replaces the sampler
]


class Seen(L.Callback):
    """The query rows of every training episode, and each batch's type of pixels and labels."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, ...]] = []
        self.types: set[tuple[Any, Any]] = set()
        self.validations = 0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Episode, batch_idx: int) -> None:
        self.rows += [tuple(rows) for rows in batch.query_ids.tolist()]
        self.types.add((getattr(batch.query, "dtype", None), batch.query_labels.dtype))

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        self.validations += 1


def fit(folder: Path, model: L.LightningModule, episodes: Any, ckpt_path: Any = None, **options: Any) -> Seen:
    seen = Seen()
    callbacks = [seen, *options.pop("callbacks", [])]
    run = trainer(folder, callbacks=callbacks, **{"enable_checkpointing": False, "max_epochs": 1} | options)
    run.fit(model, datamodule=episodes, ckpt_path=ckpt_path)
    return seen


# Episodes in batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true", "bf16-mixed"])
@pytest.mark.parametrize("freeze", [False, True])
def test_every_precision_trains_and_tests(actions: Path, tmp_path: Path, precision: Any, freeze: bool) -> None:
    model = module(freeze_backbone=freeze)
    before = weights(model)
    seen = fit(tmp_path, model, data(actions), precision=precision)
    assert seen.types == {(None if freeze else torch.uint8, torch.int64)}
    changed = [name for name, tensor in weights(model).items() if not torch.equal(tensor.float(), before[name])]
    assert any(name.startswith("model.head") for name in changed)
    for evaluation in ("bank", "episodes"):
        run = trainer(tmp_path, precision=precision)
        run.test(model, datamodule=data(actions, evaluation=evaluation), verbose=False)
        assert len(model.results.index) == 9
        assert run.callback_metrics["test/loss"].isfinite()


@pytest.mark.parametrize("plugin", [HalfPrecision("bf16-true"), DoublePrecision(), FSDPPrecision("bf16-true")])
def test_precision_plugins_convert_floats_alone(actions: Path, plugin: Any) -> None:
    episodes = data(actions)
    episodes.setup("fit")
    episode = next(iter(episodes.train_dataloader()))
    converted = plugin.convert_input(episode)
    assert isinstance(converted, Episode)
    for name, value in vars(episode).items():
        assert torch.equal(getattr(converted, name), value), name
        assert getattr(converted, name).dtype == value.dtype
    episode.support = episode.support / 255.0
    assert plugin.convert_input(episode).support.dtype in {torch.bfloat16, torch.float64}
    assert episode.support.dtype == torch.float32  # the plugin works on a copy


# Resuming -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "step", "after"), [(2, 2, 4), (2, 3, 4), (4, 1, 2), (2, 5, 4), (2, 6, 4), (4, 3, 2)]
)
def test_a_resumed_run_may_have_another_batch_size(
    actions: Path, tmp_path: Path, before: int, step: int, after: int
) -> None:
    def episodes(batch_size: int) -> Any:
        return data(actions, train_episodes=12, batch_size=batch_size)

    options: dict[str, Any] = {"max_epochs": 3}
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    whole = fit(tmp_path, module(), episodes(before), callbacks=[saver], enable_checkpointing=True, **options)
    resumed = fit(tmp_path, module(), episodes(after), ckpt_path=tmp_path / f"step={step}.ckpt", **options)
    done = step * before
    left = (12 - done) // after * after  # what does not fill a step is left out, as at the end of any epoch
    assert resumed.rows == whole.rows[done : done + left] + whole.rows[12:]
    assert resumed.validations == (3 if left else 2)


def test_a_second_fit_starts_anew(actions: Path, tmp_path: Path) -> None:
    """What an earlier run has done, or was resumed from, is not the next one's."""
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    first = fit(tmp_path, module(), data(actions), callbacks=[saver], enable_checkpointing=True)
    episodes = data(actions)
    assert fit(tmp_path, module(), episodes, ckpt_path=tmp_path / "step=3.ckpt").rows == first.rows[3:]
    assert fit(tmp_path, module(), episodes).rows == first.rows


# Loaders --------------------------------------------------------------------------------------------------------------


def test_overfit_batches_repeats_the_same_episodes(actions: Path, tmp_path: Path) -> None:
    episodes = data(actions, train_episodes=12, batch_size=2)
    seen = fit(tmp_path, module(), episodes, overfit_batches=2, max_epochs=3)
    assert len(seen.rows) == 12
    assert seen.rows[:4] == seen.rows[4:8] == seen.rows[8:]
    assert len(set(seen.rows)) == 4
    assert seen.validations == 3


@pytest.mark.parametrize("evaluation", ["bank", "episodes"])
@pytest.mark.parametrize("passed", ["datamodule", "loader"])
def test_predictions_are_those_of_the_test(actions: Path, tmp_path: Path, evaluation: Any, passed: str) -> None:
    model, episodes = module(), data(actions, evaluation=evaluation, eval_batch_size=4, batch_size=4)
    trainer(tmp_path).test(model, datamodule=episodes, verbose=False)
    other = data(actions, evaluation=evaluation, eval_batch_size=4, batch_size=4)
    if passed == "datamodule":
        parts = trainer(tmp_path).predict(model, datamodule=other)
    else:
        other.setup("predict")
        parts = trainer(tmp_path).predict(model, dataloaders=other.test_dataloader())
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    assert found["index"].tolist() == list(range(9))  # without padding
    assert found["logits"].shape == (9, 4, 2)
    assert torch.equal(found["logits"].argmax(-1), found["predicted"])
    classes = found["class_ids"].gather(1, found["predicted"])
    assert classes.tolist() == model.results.predicted.tolist()


@pytest.mark.parametrize("freeze", [False, True])
def test_the_tuner_works(actions: Path, tmp_path: Path, freeze: bool) -> None:
    model, episodes = module(freeze_backbone=freeze), data(actions, train_episodes=40)
    model.lr = 0.01
    run = trainer(tmp_path)
    finder = Tuner(run).lr_find(model, datamodule=episodes, num_training=6)
    assert len(finder.results["loss"]) == 6
    size = Tuner(run).scale_batch_size(model, datamodule=episodes, steps_per_trial=1, max_trials=2, init_val=2)
    assert size == episodes.batch_size == 4
    assert len(fit(tmp_path, model, episodes).rows) == 40


def test_a_data_module_serves_a_frozen_and_an_unfrozen_module(actions: Path, tmp_path: Path) -> None:
    episodes = data(actions)
    for freeze in (True, False, True):
        seen = fit(tmp_path, module(freeze_backbone=freeze), episodes)
        assert seen.types == {(None if freeze else torch.uint8, torch.int64)}
        assert next(iter(episodes.train_dataloader())).support is not None  # a plain loop gets clips


def own_loaders(episodes: Any, batch_size: int = 2) -> dict[str, DataLoader]:
    """Loaders that know nothing of an `EpisodeDataModule`: lists of single episodes."""
    episodes.setup("fit")
    stages = {"train": 4, "val": 7, "test": 9}
    datasets = {
        s: [episodes._episode_loader(s, episodes.reader(s), 1).dataset[0, i] for i in range(n)]
        for s, n in stages.items()
    }
    return {s: DataLoader(d, batch_size=batch_size, collate_fn=Episode.stack) for s, d in datasets.items()}


@pytest.mark.parametrize("freeze", [False, True])
def test_own_loaders_serve_training_validation_and_test(actions: Path, tmp_path: Path, freeze: bool) -> None:
    loaders, model, seen = own_loaders(data(actions)), module(freeze_backbone=freeze, lr=0.0), Seen()
    run = trainer(tmp_path, max_epochs=1, callbacks=[seen], enable_checkpointing=False)
    run.fit(model, loaders["train"], loaders["val"])
    assert len(seen.rows) == 4
    own = run.validate(model, loaders["val"], verbose=False)[0]
    run.test(model, loaders["test"], verbose=False)
    results, written = model.results, json.loads((tmp_path / RESULTS).read_text())
    assert model.report == written
    assert (written["way"], written["shot"], written["episodes"]) == (2, 1, 9)
    assert "card" not in written
    predicted = run.predict(model, loaders["test"])
    assert torch.cat([part["index"] for part in predicted]).tolist() == list(range(9))

    theirs = run.validate(model, datamodule=data(actions), verbose=False)[0]
    assert own == pytest.approx(theirs, rel=1e-4)
    run.test(model, datamodule=data(actions), verbose=False)
    assert model.results.predicted.tolist() == results.predicted.tolist()
    # The data module of the last run is still the trainer's, but these episodes are not of it.
    run.test(model, [loaders["test"], loaders["val"]], verbose=False)
    assert "card" not in model.report
    assert [row["episodes"] for row in model.report["sweep"]] == [9, 7]
    assert "test/accuracy_loader_1" in run.callback_metrics


def test_episodes_without_clips_and_without_a_bank_are_refused(actions: Path, tmp_path: Path) -> None:
    episodes = data(actions)
    episodes.setup("test")
    bare = DataLoader([episodes.test_dataloader().dataset[0, 0]], collate_fn=lambda batch: batch[0])
    with pytest.raises(ValueError, match="have no clips"):
        trainer(tmp_path).test(module(), bare, verbose=False)


# Numbers --------------------------------------------------------------------------------------------------------------


def test_padding_is_not_in_the_loss(actions: Path, tmp_path: Path) -> None:
    losses = {}
    for batch in (1, 2, 3, 16):
        for evaluation in ("bank", "episodes"):
            run = trainer(tmp_path)
            episodes = data(actions, eval_batch_size=batch, batch_size=batch, evaluation=evaluation)
            run.validate(module(), datamodule=episodes, verbose=False)
            losses[batch, evaluation] = [
                run.callback_metrics[f"val/{n}"].item() for n in ("loss", "loss_trm", "loss_qc")
            ]
    first = losses.pop((1, "episodes"))
    assert all(found == pytest.approx(first, rel=1e-5) for found in losses.values()), losses


@pytest.mark.parametrize("options", [{"test_episodes": 1}, {"test_episodes": 1, "way": 1, "query_per_class": 1}])
def test_one_episode_is_a_test(actions: Path, tmp_path: Path, options: dict[str, int]) -> None:
    model = module()
    trainer(tmp_path).test(model, datamodule=data(actions, **options), verbose=False)
    assert model.results.index.tolist() == [0]
    assert model.report["ci95"] == 0


def test_a_fast_run_of_single_episodes(actions: Path, tmp_path: Path) -> None:
    model, episodes = module(), data(actions, eval_batch_size=1)
    run = trainer(tmp_path, fast_dev_run=True)
    run.fit(model, datamodule=episodes)
    run.test(model, datamodule=episodes, verbose=False)
    assert model.report["episodes"] == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eval_query_per_class", 0), ("test_episodes", 0), ("val_episodes", -1), ("train_episodes", 0),
        ("train_way", 0),
        ("num_workers", -1), ("short_side", 0), ("way", -5), ("test_shots", [0]), ("eval_query_per_class", -1),
    ],
)  # fmt: skip
def test_counts_that_are_none_are_refused(actions: Path, name: str, value: Any) -> None:
    number = value[0] if isinstance(value, list) else value
    with pytest.raises(ValueError, match=rf"^{name} is {number}: give "):
        data(actions, **{name: value})
    with pytest.raises(ValueError, match="frozen_views is -1: give 0 or a positive number"):
        module(frozen_views=-1)


# Several processes ----------------------------------------------------------------------------------------------------

DDP = """
import json, sys
from pathlib import Path
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.test_module import data, module, trainer
from tests.test_trainer_features import Seen
from strm_lightning.data import datamodule
from strm_lightning.data.sources import counts as index

listed, counted = [], []
list_videos, count = datamodule.list_videos, index._count
datamodule.list_videos = lambda *a, **k: listed.append(1) or list_videos(*a, **k)
index._count = lambda *a: counted.append(1) or count(*a)

if __name__ == "__main__":
    root, out, task = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    seen = Seen()
    several = {"devices": 2, "strategy": "ddp"}
    options = dict(train_episodes=12, batch_size=2)
    if task == "resume":
        run = trainer(out, max_epochs=1, callbacks=[seen], enable_checkpointing=False, **several)
        run.fit(module(), datamodule=data(root, **options), ckpt_path=out / "step=2.ckpt")
    else:
        run = trainer(out, max_epochs=1, callbacks=[seen], enable_checkpointing=False, overfit_batches=1, **several)
        run.fit(module(), datamodule=data(root, **options))
        run = trainer(out, **several)
        episodes = data(root)
        episodes.setup("test")
        model = module()
        indices = [part["index"].tolist() for part in run.predict(model, dataloaders=episodes.test_dataloader())]
    found = {"rows": seen.rows, "validations": seen.validations, "listed": len(listed), "counted": len(counted)}
    found |= {} if task == "resume" else {"indices": indices}
    (out / f"{task}-{run.global_rank}.json").write_text(json.dumps(found))
"""


def in_two_processes(root: Path, out: Path, task: str) -> list[dict[str, Any]]:
    script = out / "run.py"
    script.write_text(DDP)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["src", "."]), "OMP_NUM_THREADS": "1"}
    environment["STRM_CACHE"] = str(out / "cache")
    command = [sys.executable, "-W", "ignore", str(script), str(root), str(out), task]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads((out / f"{task}-{rank}.json").read_text()) for rank in range(2)]


def test_one_process_lists_the_videos_and_two_continue_what_one_began(actions: Path, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    episodes = data(actions, train_episodes=12, batch_size=2)
    whole = fit(tmp_path, module(), episodes, callbacks=[saver], enable_checkpointing=True)
    first, second = in_two_processes(actions, tmp_path, "resume")
    assert sorted(map(tuple, first["rows"] + second["rows"])) == sorted(whole.rows[4:])
    assert len(first["rows"]) == len(second["rows"]) == 4
    assert first["validations"] == second["validations"] == 1
    assert (first["listed"], second["listed"], first["counted"], second["counted"]) == (1, 0, 54, 0)


def test_rebuilt_loaders_share_the_episodes_of_two_processes(actions: Path, tmp_path: Path) -> None:
    first, second = in_two_processes(actions, tmp_path, "rebuilt")
    assert not {tuple(rows) for rows in first["rows"]} & {tuple(rows) for rows in second["rows"]}
    assert sorted(index for part in first["indices"] + second["indices"] for index in part) == list(range(9))


@pytest.mark.parametrize("rich", [True, False])
def test_the_bar_is_rich_where_rich_is_installed(
    rich: bool, actions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if rich and find_spec("rich") is None:
        pytest.skip("rich is not installed")
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.callback_connector._RICH_AVAILABLE", rich)
    run = trainer(tmp_path, enable_progress_bar=True, max_epochs=1, limit_train_batches=1, limit_val_batches=1)
    run.fit(module(), datamodule=data(actions))
    assert type(run.progress_bar_callback) is (RichProgressBar if rich else TQDMProgressBar)
    out, err = capsys.readouterr()
    assert "Epoch 0" in out + err
