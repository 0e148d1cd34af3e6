"""The ablation finds what `strm fit` finds, goes on where it was cut off, and mixes no runs."""

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml

from experiments.ablation.run import FOLDER, STEPS, VARIANTS, ablate, tables
from strm_lightning.cli.main import main

SPLIT = {"train": 0.45, "val": 0.22, "test": 0.33}
RECIPE = {
    "data": {
        "split": SPLIT, "way": 2, "shot": 1, "query_per_class": 2, "num_frames": 4, "image_size": 64, "num_workers": 0,
        "train_episodes": 5, "val_episodes": 7, "test_episodes": 1, "flip": True, "frame_policy": "segments",
    },
    "model": {
        "backbone": "test_resnet", "pretrained": False, "freeze_backbone": True, "proj_dim": 8, "match_dim": 8,
        "qc_dim": 8, "optimizer": "adamw", "lr": 0.01,
    },
    "trainer": {"max_epochs": 3, "accelerator": "cpu", "num_sanity_val_steps": 0, "log_every_n_steps": 1},
}  # fmt: skip
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
]


@pytest.fixture
def recipe(actions: Path, tmp_path: Path) -> Path:
    path, weights = tmp_path / "recipe.yaml", tmp_path / "backbone.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), weights)
    own = {"data": {"root": str(actions)}, "model": {"weights": str(weights)}, "trainer": {}}
    path.write_text(yaml.safe_dump({part: options | own[part] for part, options in RECIPE.items()}))
    return path


def accuracies(path: Path) -> dict[str, list[float]]:
    return json.loads(path.read_text())["accuracy"]


def test_it_finds_what_fit_finds(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "runs"
    options = {"splits": 2, "seeds": 2, "shots": [1, 2], "episodes": 40, "jobs": 1}
    assert "TRX" in ablate(recipe, out, variants=["trx", "center_layout_scale"], **options)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    for variant, split, seed in (("trx", 0, 1), ("center_layout_scale", 1, 0)):
        folder = tmp_path / f"{variant}-fit"
        configs = f"--config {recipe} --config {FOLDER / variant}.yaml --seed_everything={seed}"
        test = f"--data.split_seed={split} --data.test_episodes=40 --data.test_shots=[1,2]"
        quiet = f"--trainer.default_root_dir={folder} --trainer.logger.init_args.save_dir={folder}"
        still = "--trainer.enable_progress_bar=false --trainer.enable_model_summary=false"
        monkeypatch.setattr("sys.argv", ["strm", "fit", *f"{configs} {test} {quiet} {still}".split()])
        main()
        fitted = json.loads(next(folder.rglob("results.json")).read_text())
        found = accuracies(out / f"{variant}-split{split}-seed{seed}.json")
        for row in fitted["sweep"]:
            assert np.mean(found[f"{row['shot']}-shot"]) == pytest.approx(row["accuracy"])
        assert found["1-shot"] != found["1-shot reversed"]


def test_it_goes_on_and_mixes_nothing(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, options = tmp_path / "runs", {"splits": 1, "shots": [1], "episodes": 6, "variants": ["trx", "fle"], "jobs": 1}
    ablate(recipe, out, seeds=1, **options)
    first = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != "options.json"}
    (out / "trx-split0-seed0.part").write_text("cut off")
    capsys.readouterr()
    report = ablate(recipe, out, seeds=2, **options | {"jobs": 2})
    said = capsys.readouterr().out
    assert said.count("seed 1:") == 2
    assert "seed 0:" not in said
    assert all(path.stat().st_mtime_ns == when for path, when in first.items())
    assert "TRX + FLE" in report
    with pytest.raises(ValueError, match=r"runs with other options \(data.test_episodes\): choose another folder"):
        ablate(recipe, out, seeds=1, **options | {"episodes": 7})
    with pytest.raises(ValueError, match="unknown variants flee; choose from trx, ple"):
        ablate(recipe, out, variants=["flee"])
    root = yaml.safe_load(recipe.read_text())["data"]["root"]
    with pytest.raises(FileNotFoundError, match="no data at"):
        ablate(recipe, tmp_path / "other", root="/nowhere")
    assert not (tmp_path / "other").exists()
    learning = tmp_path / "learning.yaml"
    learning.write_text(recipe.read_text().replace("freeze_backbone: true", "freeze_backbone: false"))
    with pytest.raises(ValueError, match=r"needs model\.freeze_backbone: true"):
        ablate(learning, tmp_path / "other")
    named = tmp_path / "named.yaml"
    split = {"train": ["left", "right"], "test": ["up", "down"]}
    few = RECIPE["data"] | {"root": root, "split": split}
    named.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"data": few}))
    with pytest.raises(ValueError, match="the same test classes for several split seeds"):
        ablate(named, tmp_path / "other", shots=[1])
    bare = tmp_path / "bare.yaml"
    bare.write_text(re.sub("  weights: .+\n", "", recipe.read_text()))
    with pytest.raises(ValueError, match="without weights differs in each run"):
        ablate(bare, tmp_path / "other")


def test_every_variant_is_a_file_and_says_all_that_differs() -> None:
    files = {path.stem: yaml.safe_load(path.read_text()) for path in FOLDER.glob("*.yaml")}
    assert files.keys() == VARIANTS.keys()
    assert {tuple(file) for file in files.values()} == {("model",)}
    switches = {tuple(file["model"]) for file in files.values()}
    assert len(switches) == 1
    assert len({tuple(file["model"].values()) for file in files.values()}) == len(files)
    assert {name for pair in STEPS.values() for name in pair} == set(VARIANTS)
    ladder = ["trx", "ple", "ple_fle", "all", "center", "center_layout", "center_layout_scale"]
    for one, two in pairwise(ladder):
        changed = [s for s, value in files[one]["model"].items() if files[two]["model"][s] != value]
        assert len(changed) == 1


def test_tables_pair_episodes_and_show_the_spread_of_runs() -> None:
    base = [np.array([0.2, 0.4, 0.6]), np.array([0.4, 0.6, 0.8])]
    found = {
        "trx": [{"1-shot": values} for values in base],
        "all": [{"1-shot": values + gain} for values, gain in zip(base, (0.1, 0.2), strict=True)],
    }
    report = tables(found)
    assert "50.0 ± 15.3 (40.0 … 60.0)" in report
    assert "STRM against TRX | +15.0 ± 4.0 (+10.0 … +20.0)" in report
