"""Ablation of the heads of a recipe over class splits and seeds, on the same test episodes.

    python experiments/ablation/run.py experiments/egogestar.yaml runs/ablation --root FOLDER

Each variant is a YAML file in this folder, added to the recipe. The results equal those of `strm fit` with the same
files, split and seed (a test compares both), but the maps of the frozen backbone are computed once for all splits,
seeds and variants, and several runs train in parallel. All variants are tested on the same episodes, so differences are
paired. As a control they are also tested with reversed queries.

Each run writes a file to the output folder. A repeated call trains only the runs that are missing, then prints the
tables.
"""

import json
import logging
import sys
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
import yaml
from jsonargparse import auto_cli
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors import safe_open
from tqdm import tqdm

from strm_lightning import EpisodeDataModule, STRMModule
from strm_lightning.data.splits.stages import Stage
from strm_lightning.episode import Episode, PooledMaps
from strm_lightning.evaluation.bank import FeatureBank
from strm_lightning.evaluation.encoding import datamodule_of
from strm_lightning.evaluation.fingerprint import bank_fingerprint
from strm_lightning.evaluation.results import half_interval
from strm_lightning.evaluation.tables import markdown_table
from strm_lightning.models.enrichment.pooling import pool_maps, scale
from strm_lightning.models.matching.base import Encoded

FOLDER = Path(__file__).parent
VARIANTS = {
    "trx": "TRX",
    "ple": "TRX + PLE",
    "fle": "TRX + FLE",
    "qc": "TRX + QC",
    "ple_fle": "TRX + PLE + FLE",
    "all": "STRM: all three",
    "trx_center": "TRX, center_clip",
    "trx_center_layout": "TRX, center_clip, layout",
    "center": "STRM, center_clip",
    "layout": "STRM, layout",
    "center_layout": "STRM, center_clip, layout",
    "center_layout_scale": "STRM, center_clip, layout, scale_clip",
}
# Rows of the table of differences: name, first and second variant.
STEPS = {
    "PLE alone": ("trx", "ple"),
    "FLE alone": ("trx", "fle"),
    "QC alone": ("trx", "qc"),
    "FLE after PLE": ("ple", "ple_fle"),
    "QC after PLE and FLE": ("ple_fle", "all"),
    "STRM against TRX": ("trx", "all"),
    "center_clip on TRX": ("trx", "trx_center"),
    "center_clip on STRM": ("all", "center"),
    "layout on STRM": ("all", "layout"),
    "layout after center_clip": ("center", "center_layout"),
    "scale_clip after both": ("center_layout", "center_layout_scale"),
    "STRM against TRX, center_clip": ("trx_center", "center"),
    "STRM against TRX, both options": ("trx_center_layout", "center_layout"),
}
Use = Literal["training", "testing"]  # random frames and crop, or the central ones


@dataclass(frozen=True)
class Plan:
    """Options that all runs share.

    Attributes:
        recipe: ``data``, ``model`` and ``trainer`` options of the recipe.
        out: folder of the runs and of the stored maps.
    """

    recipe: dict[str, dict[str, Any]]
    out: Path

    def data(self, split: int) -> EpisodeDataModule:
        """Set up the data module of a class split."""
        data = EpisodeDataModule(**self.recipe["data"] | {"split_seed": split})
        data.prepare_data()
        data.setup("fit")
        data.setup("test")
        return data

    def model(self, variant: str) -> dict[str, Any]:
        """Return the options of `STRMModule`: those of the recipe, overridden by those of the variant."""
        behind = yaml.safe_load((FOLDER / f"{variant}.yaml").read_text())["model"]
        return self.recipe["model"] | behind | {"num_frames": self.recipe["data"].get("num_frames", 8)}

    def maps(self, use: Use, center: bool) -> Path:
        """Return the file of the pooled maps of all videos."""
        return self.out / "maps" / f"{use}{'-centered' if center else ''}.safetensors"


class _Scaled(FeatureBank):
    """A bank that applies `scale_clip` to its maps."""

    def get(self, rows: Any, views: Any = None) -> Encoded:
        return vars(scale(PooledMaps(**super().get(rows, views))))


class Stored(STRMModule):
    """STRMModule that reads the maps of its frozen backbone from banks on disk."""

    banks: dict[Use, FeatureBank]

    def _encode_maps(self, stage: Stage, *, views: int = 0) -> FeatureBank:
        if stage == "train":
            return self.banks["training"]
        rows = _rows(datamodule_of(self.trainer, stage), stage)
        part = FeatureBank(rows.tolist())
        part.put(torch.stack([rows, torch.zeros_like(rows)], 1), self.banks["testing"].get(rows))
        return part


def _rows(data: EpisodeDataModule, stage: Stage) -> torch.Tensor:
    return torch.from_numpy(np.sort(np.concatenate(data.videos[stage].members)))


def encode(plan: Plan) -> None:
    """Store the pooled maps of all videos, with and without `center_clip`, unless they exist."""
    data, options = plan.data(0), plan.model("trx")
    rows = sorted({int(row) for videos in data.videos.values() for members in videos.members for row in members})
    backbone = Stored(**options).model.backbone.eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    grid = options.get("patch_grid", 4)
    for use, views in (("training", options.get("frozen_views", 1)), ("testing", 0)):
        about = {"patch_grid": grid, "videos": data.videos["test"].store.videos}
        mark = bank_fingerprint(data, "test", rows, backbone, about, views=views, precision="32-true")
        paths = {center: plan.maps(use, center) for center in (False, True)}
        if all(FeatureBank.load(path, mark) for path in paths.values()):
            continue
        banks = {c: FeatureBank(rows, views=max(views, 1)) for c in paths}
        backbone.to(device)
        with torch.no_grad():
            for keys, clips in tqdm(data.video_loader("test", rows, views=views), f"Encoding for {use}", unit="batch"):
                maps = backbone(clips.to(device))
                for center, bank in banks.items():
                    bank.put(keys, vars(pool_maps(maps, grid, center_clip=center)))
        backbone.to("cpu")
        for center, bank in banks.items():
            bank.save(paths[center], mark)


def run(plan: Plan, variant: str, split: int, seed: int) -> dict[str, list[float]]:
    """Train a variant; return the accuracy of every test episode by number of shots and direction of the query."""
    data, options = plan.data(split), plan.model(variant)
    L.seed_everything(seed, verbose=False)
    module = Stored(**options)
    kind = _Scaled if options.get("scale_clip") else FeatureBank
    module.banks = {use: _load(plan, kind, use, options["center_clip"]) for use in ("training", "testing")}
    own = {name: value for name, value in plan.recipe["trainer"].items() if name not in ("logger", "callbacks")}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    with TemporaryDirectory() as folder:
        best = ModelCheckpoint(folder, monitor="val/accuracy" if "val" in data.videos else None, mode="max")
        trainer = L.Trainer(**own, **quiet, callbacks=[best], default_root_dir=folder)
        trainer.fit(module, datamodule=data)
        module.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    return test(module.eval(), data)


def _load(plan: Plan, kind: Any, use: Use, center: bool) -> FeatureBank:
    path = plan.maps(use, center)
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["bank"])
    bank = kind.load(path, about["fingerprint"])
    assert bank is not None
    return bank


@torch.inference_mode()
def test(module: Stored, data: EpisodeDataModule) -> dict[str, list[float]]:
    """Match all test episodes from clips that are encoded once, the queries forwards and reversed."""
    head, rows = module.model.head, _rows(data, "test")
    banks = {way: FeatureBank(rows.tolist()) for way in ("", " reversed")}
    for part in rows.split(64):
        maps = PooledMaps(**module.banks["testing"].get(part))
        keys = torch.stack([part, torch.zeros_like(part)], 1)
        banks[""].put(keys, head.encode(head.enrich_pooled(maps)))
        backwards = PooledMaps(grid=maps.grid.flip(-3), mean=maps.mean.flip(-2))
        banks[" reversed"].put(keys, head.encode(head.enrich_pooled(backwards)))
    found: dict[str, list[float]] = {}
    for setting, (_, shot) in enumerate(data.test_settings):
        generator = data.generator("test", setting)
        for numbers in torch.arange(data.episodes["test"]).split(data.eval_batch_size):
            episodes = Episode.stack([generator.draw(0, int(number))[0] for number in numbers])
            support = banks[""].get(episodes.support_ids)
            for way, bank in banks.items():
                logits = head.match_encoded(support, bank.get(episodes.query_ids)).combined(module.qc_weight)
                right = (logits.argmax(-1) == episodes.query_labels).double().mean(-1)
                found.setdefault(f"{shot}-shot{way}", []).extend(right.tolist())
    return found


def _work(plan: Plan, variant: str, split: int, seed: int, path: Path) -> str:
    """Do one run and write its file atomically."""
    found = run(plan, variant, split, seed)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"model": plan.model(variant), "accuracy": found}))
    part.rename(path)
    rates = ", ".join(f"{kind} {np.mean(values):.1%}" for kind, values in found.items())
    return f"{VARIANTS[variant]:<38}split {split} seed {seed}: {rates}"


def _alone() -> None:
    """Set up a worker process: one thread, because the heads are small, and errors only."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # of Lightning, about workers and logging
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def ablate(
    recipe: Path,
    out: Path,
    *,
    root: str | None = None,
    splits: int = 3,
    seeds: int = 3,
    shots: Sequence[int] = (1, 5),
    episodes: int = 1000,
    variants: Sequence[str] = (),
    jobs: int = 2,
    override: dict[str, dict[str, Any]] | None = None,
) -> str:
    """Do the missing runs and return the tables.

    Args:
        recipe: a configuration with a frozen backbone, such as experiments/quickstart.yaml.
        out: folder of the files of the runs and of the stored maps.
        root: folder of the videos; null for that of the recipe.
        splits: number of class splits (``data.split_seed`` from 0).
        seeds: number of seeds of each split and variant (``seed_everything`` from 0).
        shots: numbers of support clips per class in the tests.
        episodes: test episodes of each split and number of shots, the same for all variants and seeds.
        variants: files of this folder without suffix; empty for all.
        jobs: number of parallel runs.
        override: options that override those of the recipe, such as {"trainer": {"max_epochs": 1}}.

    Raises:
        ValueError: the backbone is trained or has no weights, a variant is unknown, splits are equal, or ``out``
            contains runs with other options.
    """
    names = list(variants) or list(VARIANTS)
    if unknown := set(names) - set(VARIANTS):
        raise ValueError(f"unknown variants {', '.join(sorted(unknown))}; choose from {', '.join(VARIANTS)}")
    options = yaml.safe_load(recipe.read_text())
    options = {part: options.get(part, {}) | (override or {}).get(part, {}) for part in ("data", "model", "trainer")}
    options["data"] |= {"test_shots": list(shots), "test_episodes": episodes} | ({"root": root} if root else {})
    options["data"]["shot"] = options["data"].get("shot", shots[0])
    if not options["model"].get("freeze_backbone"):
        raise ValueError(f"{recipe}: an ablation from stored maps needs model.freeze_backbone: true")
    if not options["model"].get("pretrained", True) and not options["model"].get("weights"):
        raise ValueError(f"{recipe}: a frozen backbone without weights differs in each run; set model.weights")
    plan = Plan(options, out)
    classes = [plan.data(split).videos["test"].class_names for split in range(splits)]
    if len(set(classes)) < splits:
        raise ValueError(f"{recipe}: data.split has the same test classes for several split seeds; set --splits 1")
    _remember(plan)
    encode(plan)
    runs = product(range(seeds), range(splits), names)  # all variants of a seed first
    missing = [(v, s, n, path) for n, s, v in runs if not _done(path := _file(out, v, s, n), plan.model(v))]
    with ProcessPoolExecutor(jobs, get_context("spawn"), _alone) as pool:
        work = [pool.submit(_work, plan, *which) for which in missing] if jobs > 1 else []
        for done in (run.result() for run in as_completed(work)) if work else (_work(plan, *w) for w in missing):
            tqdm.write(done)
    return tables({v: [_read(_file(out, v, s, n)) for s in range(splits) for n in range(seeds)] for v in names})


def _remember(plan: Plan) -> None:
    """Write the options beside the runs; raise an error if existing runs have other options."""
    path = plan.out / "options.json"
    plan.out.mkdir(parents=True, exist_ok=True)
    if any(plan.out.glob("*-split*.json")) and (other := json.loads(path.read_text())) != plan.recipe:
        differ = [f"{p}.{k}" for p, o in plan.recipe.items() for k in {*o, *other[p]} if o.get(k) != other[p].get(k)]
        raise ValueError(
            f"{plan.out} contains runs with other options ({', '.join(sorted(differ))}): choose another folder"
        )
    path.write_text(json.dumps(plan.recipe, indent=1))


def _file(out: Path, variant: str, split: int, seed: int) -> Path:
    return out / f"{variant}-split{split}-seed{seed}.json"


def _done(path: Path, model: dict[str, Any]) -> bool:
    return path.exists() and json.loads(path.read_text())["model"] == model


def _read(path: Path) -> dict[str, np.ndarray]:
    return {kind: np.array(values) for kind, values in json.loads(path.read_text())["accuracy"].items()}


Runs = dict[str, list[dict[str, np.ndarray]]]


def tables(found: Runs) -> str:
    """Format accuracies of the variants and paired differences of the steps as Markdown tables."""
    kinds = list(next(iter(found.values()))[0])
    played = [kind for kind in kinds if "reversed" not in kind]
    rates = [[VARIANTS[v], *(_cell(_of(runs, kind)) for kind in kinds)] for v, runs in found.items()]
    steps = [
        [step, *(_cell(_differences(found[a], found[b], kind), signed=True) for kind in played)]
        for step, (a, b) in STEPS.items()
        if a in found and b in found
    ]
    return "\n\n".join([markdown_table(["variant", *kinds], rates), markdown_table(["step", *played], steps)])


def _of(runs: Iterable[dict[str, np.ndarray]], kind: str) -> list[np.ndarray]:
    return [rates[kind] for rates in runs]


def _differences(first: Iterable[Any], second: Iterable[Any], kind: str) -> list[np.ndarray]:
    return [b - a for a, b in zip(_of(first, kind), _of(second, kind), strict=True)]


def _cell(runs: list[np.ndarray], *, signed: bool = False) -> str:
    """Format the mean and its 95 % interval over all episodes; for several runs also the lowest and highest mean."""
    every, means = np.concatenate(runs), [float(values.mean()) for values in runs]
    form = "{:+.1f}" if signed else "{:.1f}"
    mean, low, high = (form.format(100 * value) for value in (every.mean(), min(means), max(means)))
    spread = "" if len(runs) == 1 else f" ({low} … {high})"
    return f"{mean} ± {100 * half_interval(every):.1f}{spread}"


if __name__ == "__main__":
    try:
        print(auto_cli(ablate, as_positional=True))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
