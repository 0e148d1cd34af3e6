"""The runner of the methods table gives the results of `strm fit` and `strm test`, resumes, and mixes no runs."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml

from experiments.methods import run as runner
from experiments.methods.run import METHODS, Plan, Run, compare, options_of, rate_table, read_test, step_table
from strm_lightning.cli.main import main
from strm_lightning.errors import InputError
from strm_lightning.evaluation.results import EpisodeResults

RECIPE = {
    "data": {
        "split": {"train": 0.45, "val": 0.22, "test": 0.33}, "way": 2, "shot": 1, "query_per_class": 2, "num_frames": 4,
        "image_size": 64, "num_workers": 0, "train_episodes": 5, "val_episodes": 7, "test_episodes": 1, "flip": True,
        "frame_policy": "segments",
    },
    "model": {"proj_dim": 8, "match_dim": 8, "qc_dim": 8, "optimizer": "adamw", "lr": 0.01, "center_clip": True},
    "trainer": {"max_epochs": 3, "accelerator": "cpu", "num_sanity_val_steps": 0, "log_every_n_steps": 1},
}  # fmt: skip
TABLE = yaml.safe_load(METHODS.read_text())
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
]


@pytest.fixture
def table(actions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table with tiny data sets in place of the real ones."""
    monkeypatch.setenv("STRM_CACHE", str(tmp_path / "cache"))
    recipe, weights, path = tmp_path / "recipe.yaml", tmp_path / "backbone.pth", tmp_path / "methods.yaml"
    torch.save(timm.create_model("test_resnet").state_dict(), weights)
    recipe.write_text(yaml.safe_dump({**RECIPE, "data": RECIPE["data"] | {"root": str(actions)}}))
    data = {
        "one": {"title": "one", "recipes": [str(recipe)], "swap": True},
        "other": {"title": "other", "recipes": [str(recipe)], "data": {"split": {"test": 1.0}}, "trained_on": "one"},
    }
    backbones = {"tiny": {"backbone": "test_resnet", "pretrained": False, "weights": str(weights)}}
    path.write_text(yaml.safe_dump(TABLE | {"data": data, "backbones": backbones}))
    return path


def call(table: Path, out: Path, variants: list[str], **options: Any) -> str:
    common = {"roots": {"one": None}, "tables": [], "variants": variants, "backbones": ["tiny"], "shots": [1, 2]}
    return compare(out, **{**common, "table": table, **options})


@pytest.mark.parametrize(
    ("variant", "swapped", "seed"),
    [
        ("none+trm", False, 1),
        ("full_scale+trm_qc", True, 0),
        ("project+lag_trained", False, 0),
        ("center+otam", True, 0),
        ("patches+ridge", False, 0),
    ],
)
def test_it_gives_the_results_of_the_commands(
    variant: str, swapped: bool, seed: int, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, run = tmp_path / "runs", Run("one", "tiny", variant, 0, swapped, seed)
    few = {"trainer": {"max_epochs": 2}, "data": {"train_episodes": 4}}
    call(table, out, [variant], seeds=seed + 1, episodes=40, override=few)
    content = yaml.safe_load(table.read_text())
    root = yaml.safe_load((tmp_path / "recipe.yaml").read_text())["data"]["root"]
    test = {"test_shots": [1, 2], "test_episodes": 40, "eval_query_per_class": 1}
    plan = Plan(content, {"one": root}, out, tmp_path, few, test)
    options = options_of(plan, run)
    if swapped:
        stages = runner.data_of(options["data"], swapped=True).videos
        options["data"]["split"] = {stage: list(videos.class_names) for stage, videos in stages.items()}
    options["trainer"] |= {"logger": {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path)}}}
    options["trainer"] |= {"enable_progress_bar": False, "enable_model_summary": False}
    options["model"].pop("num_frames")  # linked to that of the data
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"seed_everything": seed, **options}))
    command = "fit" if runner.learns(plan, run) else "test"
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["strm", command, "--config", str(config)])
    main()
    fitted = json.loads(next(tmp_path.rglob("results.json")).read_text())
    found = read_test(out / "tests" / f"{run.name}.safetensors")
    for row in fitted["sweep"]:
        np.testing.assert_allclose(found[f"{row['shot']}-shot"].per_episode, row["per_episode"])
    assert (found["1-shot"].predicted != found["1-shot reversed"].predicted).any()
    # A still clip has no motion: a method that subtracts the mean over time cannot distinguish the classes.
    if variant in ("project+lag_trained", "patches+ridge"):
        assert found["1-shot static"].accuracy == pytest.approx(0.5, abs=0.01 if command == "test" else 0.2)


def test_it_resumes_and_mixes_nothing(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, options = tmp_path / "runs", {"shots": [1], "episodes": 6, "override": {"trainer": {"max_epochs": 1}}}
    call(table, out, ["none+trm", "grid+patches"], seeds=1, **options)
    first = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert len(first) == 2 + 4  # heads of both directions, tests of both rows
    assert len(list((tmp_path / "cache" / "maps").glob("tiny*.safetensors"))) == 1
    capsys.readouterr()
    report = call(table, out, ["none+trm", "grid+patches"], seeds=2, jobs=2, **options)
    said = capsys.readouterr().out
    assert said.count("none+trm/split0-seed1:") == said.count("none+trm/split0-swapped-seed1:") == 1
    assert "seed0" not in said
    assert "grid+patches" not in said  # nothing to learn, so there is one seed
    assert all(path.stat().st_mtime_ns == when for path, when in first.items())
    assert "| frame means | TRM |" in report
    # More episodes need new tests, but no new training; other data sets use the same heads.
    call(table, out, ["none+trm"], seeds=1, **options | {"episodes": 7})
    after = {path: path.stat().st_mtime_ns for path in first}
    assert {path.parents[3].name for path, when in first.items() if after[path] != when} == {"tests"}
    both = {"roots": {"one": None, "other": None}}
    found = call(table, out, ["none+trm", "grid+patches"], seeds=1, **options | {"episodes": 7} | both)
    assert "### other, tiny" in found
    assert all(path.stat().st_mtime_ns == when for path, when in after.items() if "heads" in path.parts)
    assert not (out / "heads" / "other").exists()
    assert len(list((out / "tests" / "other").rglob("*.safetensors"))) == 2 + 1
    # Other training options need new heads.
    call(table, out, ["none+trm"], seeds=1, **options | {"override": {"trainer": {"max_epochs": 2}}})
    assert all(path.stat().st_mtime_ns != when for path, when in after.items() if "heads" in path.parts)


def test_wrong_names_are_refused_before_any_run(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    for options, message in (
        ({"variants": ["none+trmm"]}, "none.trmm: method 'trmm': did you mean 'trm'"),
        ({"variants": ["nine+trm"]}, "nine.trm: enrichment 'nine': did you mean 'none'"),
        ({"tables": ["trained", "ablatoin"]}, "table 'ablatoin': did you mean 'ablation'"),
        ({"backbones": ["large"]}, "backbone 'large': choose 'tiny'"),
        ({"roots": {"two": None}}, "data 'two': choose 'one' or 'other'"),
        ({"roots": {"one": "/nowhere"}}, "no data at /nowhere"),
    ):
        with pytest.raises(InputError, match=message):
            call(table, out, **{"variants": ["grid+patches"]} | options)
    content = yaml.safe_load(table.read_text())
    del content["backbones"]["tiny"]["weights"]
    table.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="without weights it differs in each run"):
        call(table, out, ["grid+patches"])
    assert not out.exists()


def test_every_row_of_the_tables_is_built_and_every_step_has_its_rows(tmp_path: Path) -> None:
    roots = {name: str(tmp_path) for name in TABLE["data"]}
    plan = Plan(TABLE, roots, tmp_path, tmp_path, {}, {})
    for name, rows in TABLE["tables"].items():
        trained = {runner.learns(plan, Run("egogestar", "lite0", row)) for row in rows}
        assert trained == {not name.startswith("untrained")}
        assert len({tuple(runner.titles(plan, row)) for row in rows}) == len(rows)
    for name, steps in TABLE["steps"].items():
        assert {row for pair in steps.values() for row in pair} <= set(TABLE["tables"][name])
    ladder = ["none+trm", "ple+trm", "ple_fle+trm", "ple_fle+trm_qc", "ple_fle_center+trm_qc", "full+trm_qc"]
    models = [options_of(plan, Run("egogestar", "lite0", row))["model"] for row in [*ladder, "full_scale+trm_qc"]]
    for one, two in pairwise(models):
        assert len([option for option in two if one.get(option) != two[option]]) == 1


def results(right: list[list[int]]) -> EpisodeResults:
    """Results of 2-way 1-shot episodes with these right (1) and wrong (0) predictions."""
    predicted = np.array([[0, 1]]) ^ (1 - np.array(right))
    classes = np.tile([0, 1], (len(right), 1))
    return EpisodeResults(np.arange(len(right)), predicted, classes, classes, classes[..., None] + 2, classes)


def test_tables_pair_episodes_and_show_the_spread_of_runs() -> None:
    first, second = results([[1, 0], [0, 0]]), results([[1, 1], [1, 0]])
    kinds = ("1-shot", "1-shot reversed", "1-shot static")
    run = Run("one", "tiny", "none+trm")
    found = {
        "none+trm": [(replace(run, seed=seed), dict.fromkeys(kinds, first)) for seed in (0, 1)],
        "ple_fle+trm_qc": [(replace(run, seed=s), dict.fromkeys(kinds, r)) for s, r in enumerate((second, first))],
    }
    plan = Plan(TABLE, {}, Path(), Path(), {}, {})
    lines = rate_table(plan, found, "1-shot").splitlines()
    assert lines[2].startswith("| frame means | TRM | 25.0 |")
    assert lines[3].startswith("| PLE + FLE | TRM + QC | 50.0 |")
    assert "| 25.0 … 75.0 | 50.0 | 50.0 |" in lines[3]
    step = step_table(found, {"STRM against TRX": ("none+trm", "ple_fle+trm_qc")}, ["1-shot"])
    assert "| STRM against TRX | +25.0 |" in step
    assert "| +0.0 … +50.0 |" in step
