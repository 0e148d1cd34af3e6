"""Compare enrichments and matching methods on several data sets, on the same test episodes.

    python experiments/methods/run.py runs/methods --roots.egogestar FOLDER --roots.moving_shapes moving-shapes

``methods.yaml`` contains the data sets, backbones, enrichments, methods and tables; a row of a table is
``enrichment+method``. Heads without weights are tested; the others are first trained on the training classes, with
several seeds. The maps of the frozen backbone are computed once for each data set, so a run takes seconds. The results
equal those of `strm fit` and `strm test` with the same options (a test compares them). All rows are tested on the same
episodes; as controls also with reversed and with static queries.

Each trained head and each test is a file in the output folder. A repeated call does only what is missing or has other
options, then prints the tables.
"""

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import numpy as np
import torch
import yaml
from jsonargparse import auto_cli
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from strm_lightning import EpisodeDataModule, STRMModule
from strm_lightning.data.splits.stages import STAGES, Stage
from strm_lightning.episode import Episode, PooledMaps
from strm_lightning.errors import InputError
from strm_lightning.evaluation.bank import FeatureBank
from strm_lightning.evaluation.controls import CONTROLS, reversed_maps, static_maps
from strm_lightning.evaluation.encoding import datamodule_of
from strm_lightning.evaluation.intervals import all_intervals, mean_intervals
from strm_lightning.evaluation.maps import read_maps, store_maps
from strm_lightning.evaluation.results import EpisodeResults
from strm_lightning.evaluation.tables import markdown_table
from strm_lightning.fileio import atomic_path, cache_folder
from strm_lightning.messages import check_choice
from strm_lightning.models.backbones.timm import Backbone
from strm_lightning.models.head import STRMHead
from strm_lightning.models.matching.base import Encoded

EXPERIMENTS = Path(__file__).parents[1]
METHODS = Path(__file__).with_name("methods.yaml")
Options = dict[str, dict[str, Any]]  # of ``data``, ``model`` and ``trainer``
_PARTS = ("data", "model", "trainer")
_OF_TEST = ("test_shots", "test_ways", "test_episodes", "eval_query_per_class", "eval_batch_size", "num_workers")


@dataclass(frozen=True)
class Plan:
    """What all runs share.

    Attributes:
        table: content of ``methods.yaml``.
        roots: root of each data set to test on.
        out: folder of heads and tests.
        maps: folder of the stored maps.
        override: options that override those of the recipes.
        test: options of the tests, of ``data``.
    """

    table: dict[str, Any]
    roots: dict[str, str]
    out: Path
    maps: Path
    override: Options
    test: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One test of one head.

    Attributes:
        data: data set to test on.
        backbone: name of the backbone.
        variant: ``enrichment+method``.
        split: seed of the class split.
        swapped: exchange training and test classes.
        seed: seed of the initial weights.
    """

    data: str
    backbone: str
    variant: str
    split: int = 0
    swapped: bool = False
    seed: int = 0

    @property
    def name(self) -> str:
        """Path of the files of the run, without folder and suffix."""
        swapped = "-swapped" if self.swapped else ""
        return f"{self.data}/{self.backbone}/{self.variant}/split{self.split}{swapped}-seed{self.seed}"


def options_of(plan: Plan, run: Run) -> Options:
    """Merge the options of recipes, backbone, enrichment and method; later ones win, as on the command line."""
    table, (enrichment, method) = plan.table, run.variant.split("+")
    of_data, of_method = table["data"][run.data], table["methods"][method]
    parts = [
        *map(_read_yaml, of_data["recipes"]),
        {"data": of_data.get("data", {}) | {"root": plan.roots[run.data], "split_seed": run.split}},
        {"model": {"freeze_backbone": True, **table["backbones"][run.backbone]}},
        {"model": table["plain"]},
        {"model": table["enrichments"][enrichment]["model"]},
        *(_method_of(_read_yaml(recipe)) for recipe in of_method.get("recipes", [])),
        {"model": of_method.get("model", {})},
        plan.override,
    ]
    merged: Options = {part: {} for part in _PARTS}
    for part, options in ((part, more.get(part, {})) for more in parts for part in _PARTS):
        matching_options = merged[part].get("matching_options", {}) | options.get("matching_options", {})
        merged[part] |= deepcopy(options) | ({"matching_options": matching_options} if matching_options else {})
    merged["data"].setdefault("shot", 1)
    merged["data"] |= plan.test
    merged["model"]["num_frames"] = merged["data"].get("num_frames", 8)
    merged["trainer"] = {k: v for k, v in merged["trainer"].items() if k not in ("logger", "callbacks")}
    return merged


@cache
def _read_yaml(recipe: str) -> Options:
    path = EXPERIMENTS / recipe
    found: Options = yaml.safe_load(path.read_text())
    return {part: found.get(part, {}) for part in _PARTS}


def _method_of(recipe: Options) -> Options:
    """Leave the switches of the enrichment to the enrichment."""
    switches = ("patch_enrichment", "frame_enrichment", "center_clip", "scale_clip", "patch_pooling", "proj_dim")
    return {**recipe, "model": {k: v for k, v in recipe["model"].items() if k not in switches}}


def data_of(options: Mapping[str, Any], *, swapped: bool = False) -> EpisodeDataModule:
    """Return the data module after its setup, with training and test classes exchanged if ``swapped``."""
    return _data_of(json.dumps(options), swapped)


@cache
def _data_of(options: str, swapped: bool) -> EpisodeDataModule:
    found: dict[str, Any] = json.loads(options)
    data = EpisodeDataModule(**found)
    data.prepare_data()
    data.setup()
    if not swapped or "train" not in data.videos:
        return data
    names = {stage: list(videos.class_names) for stage, videos in data.videos.items()}
    names["train"], names["test"] = names["test"], names["train"]
    return data_of({**found, "split": names})


def learns(plan: Plan, run: Run) -> bool:
    """Return whether the head has weights."""
    options = options_of(plan, run)["model"]
    with torch.device("meta"):
        return STRMHead(8, **{k: v for k, v in options.items() if k in _HEAD_OPTIONS}).learns


_HEAD_OPTIONS = frozenset(STRMHead.__init__.__annotations__) - {"dim", "return"}


# Maps ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MapFiles:
    """Files of stored maps: of the view of test, and of the views of the training videos (None if not needed)."""

    testing: Path
    training: Path | None


def encode(plan: Plan, runs: Sequence[Run]) -> dict[tuple[str, str], MapFiles]:
    """Store the maps that the runs need, unless they exist.

    Returns:
        Files by data set and backbone.
    """
    found = {}
    for key in dict.fromkeys((run.data, run.backbone) for run in runs):
        mine = [run for run in runs if (run.data, run.backbone) == key]
        options = options_of(plan, mine[0])["model"]
        views, grid = options["frozen_views"], options.get("patch_grid", 4)
        data = [
            data_of(options_of(plan, split)["data"], swapped=split.swapped)
            for split in dict.fromkeys(replace(run, variant=mine[0].variant, seed=0) for run in mine)
        ]
        of_backbone = {k: options[k] for k in ("pretrained", "weights", "normalize") if k in options}
        backbone = Backbone(options["backbone"], **of_backbone)
        trained = any(learns(plan, run) for run in mine)
        rows = _all_rows(data, STAGES if trained else ["test"])
        testing = store_maps(plan.maps, data[0], backbone, rows, name=key[1], patch_grid=grid)
        training = testing if trained else None
        if training and views:
            rows = _all_rows(data, ["train"])
            training = store_maps(plan.maps, data[0], backbone, rows, name=key[1], patch_grid=grid, views=views)
        found[key] = MapFiles(testing, training)
    return found


def _all_rows(data: Sequence[EpisodeDataModule], stages: Sequence[Stage]) -> set[int]:
    members = [rows for one in data for stage in stages if stage in one.videos for rows in one.videos[stage].members]
    return set(map(int, np.concatenate(members)))


@cache
def _maps(path: Path, center_clip: bool, scale_clip: bool) -> FeatureBank:
    return read_maps(path, center_clip=center_clip, scale_clip=scale_clip)


def _read_maps(path: Path, model: Mapping[str, Any]) -> FeatureBank:
    return _maps(path, model.get("center_clip", False), model.get("scale_clip", False))


class Stored(STRMModule):
    """STRMModule that reads the maps of its frozen backbone from stored files."""

    files: MapFiles

    def _encode_maps(self, stage: Stage, *, views: int = 0) -> FeatureBank:
        if stage == "train":
            assert self.files.training is not None
            return _read_maps(self.files.training, self.hparams)
        rows = _rows(datamodule_of(self.trainer, stage), stage)
        part = FeatureBank(rows.tolist())
        part.put(_keys(rows), _read_maps(self.files.testing, self.hparams).get(rows))
        return part


def _rows(data: EpisodeDataModule, stage: Stage) -> torch.Tensor:
    return torch.from_numpy(np.sort(np.concatenate(data.videos[stage].members)))


def _keys(rows: torch.Tensor) -> torch.Tensor:
    return torch.stack([rows, torch.zeros_like(rows)], 1)


# Training -----------------------------------------------------------------------------------------------------------


def train(plan: Plan, run: Run, files: MapFiles) -> Path:
    """Train the head of a run, unless its file exists; return the file."""
    options, path = options_of(plan, run), plan.out / "heads" / f"{run.name}.safetensors"
    mark = _mark(run, {**options, "data": {k: v for k, v in options["data"].items() if k not in _OF_TEST}})
    if _is(path, mark):
        return path
    data = data_of(options["data"], swapped=run.swapped)
    L.seed_everything(run.seed, verbose=False)
    module = Stored(**options["model"])
    module.files = files
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    with TemporaryDirectory() as folder:
        best = ModelCheckpoint(folder, monitor="val/accuracy" if "val" in data.videos else None, mode="max")
        trainer = L.Trainer(**options["trainer"], **quiet, callbacks=[best], default_root_dir=folder)
        trainer.fit(module, datamodule=data)
        module.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    _save(module.model.head.state_dict(), path, mark)
    return path


def _mark(run: Run, options: Options) -> str:
    """Describe a run and its options; a file with another mark is written again."""
    return json.dumps([run.swapped, run.seed, options], sort_keys=True)


def _is(path: Path, mark: str) -> bool:
    if not path.is_file():
        return False
    with safe_open(path, "pt") as file:
        return bool(file.metadata().get("mark") == mark)


def _save(tensors: dict[str, torch.Tensor], path: Path, mark: str) -> None:
    with atomic_path(path) as part:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, {"mark": mark})


# Tests --------------------------------------------------------------------------------------------------------------

KINDS = ("", *CONTROLS)  # the test itself, and its controls
_CHUNK = 200  # episodes matched at once from scores


@torch.inference_mode()
def test(plan: Plan, run: Run, files: MapFiles, head_file: Path | None) -> dict[str, torch.Tensor]:
    """Match all test episodes from clips that are encoded once.

    Returns:
        For each number of shots the classes ``[E, N]``, support clips ``[E, N, K]`` and queries ``[E, Q]`` of the
        episodes, and for each control the predicted labels ``[E, Q]``.
    """
    options = options_of(plan, run)
    data = data_of(options["data"], swapped=run.swapped)
    # The features of a head without weights are the same for all class splits.
    rows = _rows(data, "test") if head_file else _read_maps(files.testing, options["model"]).rows
    clips = _encoded(files.testing, json.dumps(options["model"]), head_file, tuple(rows.tolist()))
    every = sorted(name for videos in data.videos.values() for name in videos.class_names)  # the same for all splits
    numbers = torch.tensor([every.index(name) for name in data.videos["test"].class_names])
    found: dict[str, torch.Tensor] = {}
    for setting, (_, shot) in enumerate(data.test_settings):
        episodes = _episodes(data, setting)
        about = {"classes": numbers[episodes.class_ids], "support": episodes.support_ids, "query": episodes.query_ids}
        found |= {f"{shot}-shot.{name}": tensor.int() for name, tensor in about.items()}
        for kind in KINDS:
            predicted = clips.match(kind, episodes).argmax(-1)
            found[f"{shot}-shot.predicted.{kind}"] = predicted.to(torch.uint8)
    return found


@cache
def _episodes(data: EpisodeDataModule, setting: int) -> Episode:
    generator = data.generator("test", setting)
    return Episode.stack([generator.draw(0, number)[0] for number in range(data.episodes["test"])])


@dataclass(frozen=True)
class EncodedClips:
    """Encoded clips of a head, and the scores of all pairs if the method needs nothing else.

    Attributes:
        head: the head.
        qc_weight: weight of QC.
        banks: the clips for the test and its controls.
        scores: scores of queries and support clips for the same, empty if the method needs the clips.
    """

    head: STRMHead
    qc_weight: float
    banks: dict[str, FeatureBank]
    scores: dict[str, Encoded]

    def match(self, kind: str, episodes: Episode) -> torch.Tensor:
        """Compute the logits ``[E, Q, N]`` of all episodes."""
        of_support = "static" if kind == "static" else ""
        if not self.scores:
            support, queries, logits = self.banks[of_support], self.banks[kind], []
            for clips, asked in zip(episodes.support_ids, episodes.query_ids, strict=True):
                matched = self.head.match_encoded(support.get(clips), queries.get(asked))
                logits.append(matched.combined(self.qc_weight))
            return torch.stack(logits)
        rows = self.banks[""].rows
        place = torch.full((int(rows.max()) + 1,), -1)
        place[rows] = torch.arange(len(rows))
        parts = []
        for clips, asked in zip(episodes.support_ids.split(_CHUNK), episodes.query_ids.split(_CHUNK), strict=True):
            columns = place[clips].flatten(1).unsqueeze(1)  # [E, 1, N K]
            own = {name: scores[columns.mT, columns] for name, scores in self.scores[of_support].items()}
            cross = {name: scores[place[asked].unsqueeze(-1), columns] for name, scores in self.scores[kind].items()}
            parts.append(self.head.matching.match_scores(own, cross, clips.shape[1]))
        return torch.cat(parts)


@lru_cache(maxsize=1)
def _encoded(path: Path, options: str, head_file: Path | None, rows: tuple[int, ...]) -> EncodedClips:
    model: dict[str, Any] = json.loads(options)
    maps = _read_maps(path, model)
    dim = maps.get(maps.rows[:1])["grid"].shape[-1]
    head = STRMHead(dim, **{k: v for k, v in model.items() if k in _HEAD_OPTIONS}).eval()
    if head_file is not None:
        with safe_open(head_file, "pt") as file:
            head.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (no mapping)
    changes = {"": lambda maps: maps, "reversed": reversed_maps, "static": static_maps}
    banks = {kind: FeatureBank(rows) for kind in KINDS}
    for part in banks[""].rows.split(32):
        pooled = PooledMaps(**maps.get(part))
        for kind, bank in banks.items():
            bank.put(_keys(part), head.encode(head.enrich_pooled(changes[kind](pooled))))
    scores = {}
    for kind, bank in banks.items():
        support = banks["static" if kind == "static" else ""]
        of_kind = None if head.qc else head.matching.pair_scores(support.get(support.rows), bank.get(bank.rows))
        if of_kind is not None:
            scores[kind] = of_kind
    return EncodedClips(head, model.get("qc_weight", 0.1), banks, scores)


# Runs ---------------------------------------------------------------------------------------------------------------


def planned(
    plan: Plan, variants: Sequence[str], backbones: Sequence[str], seeds: int
) -> Iterator[tuple[Run, Run | None]]:
    """List the runs, each with the run that trains its head; all rows of a seed first."""
    for seed in range(seeds):
        for data, backbone, variant in ((d, b, v) for d in plan.roots for b in backbones for v in variants):
            about = plan.table["data"][data]
            trainable = learns(plan, Run(data, backbone, variant))
            source = about.get("trained_on", data)
            if not trainable and seed:
                continue
            if trainable and (source not in plan.roots or "train" not in _stages(plan, Run(source, backbone, variant))):
                continue
            for split, swapped in _splits(plan.table["data"][source if trainable else data]):
                run = Run(data, backbone, variant, split, swapped, seed)
                yield run, replace(run, data=source) if trainable else None


def _splits(about: Mapping[str, Any]) -> list[tuple[int, bool]]:
    ways = (False, True) if about.get("swap") else (False,)
    return [(split, swapped) for split in range(about.get("splits", 1)) for swapped in ways]


def _stages(plan: Plan, run: Run) -> set[str]:
    return set(data_of(options_of(plan, run)["data"]).videos)


def _test_file(plan: Plan, run: Run) -> Path:
    return plan.out / "tests" / f"{run.name}.safetensors"


def _test_mark(plan: Plan, run: Run, trained: Run | None) -> str:
    return json.dumps([_mark(run, options_of(plan, run)), trained and _mark(trained, options_of(plan, trained))])


def _work(plan: Plan, runs: Sequence[Run], trained: Run | None, files: Mapping[tuple[str, str], MapFiles]) -> str:
    """Do the runs of one head and write their files; return a line about each."""
    head = None if trained is None else train(plan, trained, files[trained.data, trained.backbone])
    lines = []
    for run in runs:
        found, path = test(plan, run, files[run.data, run.backbone], head), _test_file(plan, run)
        _save(found, path, _test_mark(plan, run, trained))
        rates = ", ".join(f"{kind} {results.accuracy:.1%}" for kind, results in read_test(path).items())
        lines.append(f"{run.name}: {rates}")
    return "\n".join(lines)


def _alone() -> None:
    """Set up a worker process: one thread, because the heads are small, and errors only."""
    torch.set_num_threads(1)
    _quiet()


def _quiet() -> None:
    warnings.filterwarnings("ignore")  # of Lightning, about workers and logging
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def compare(
    out: Path,
    *,
    roots: dict[str, str | None],
    tables: Sequence[str] = ("untrained",),
    variants: Sequence[str] = (),
    backbones: Sequence[str] = ("lite0",),
    seeds: int = 3,
    shots: Sequence[int] = (1, 5),
    episodes: int = 1000,
    jobs: int = 1,
    maps: Path | None = None,
    table: Path = METHODS,
    override: dict[str, dict[str, Any]] | None = None,
) -> str:
    """Do the missing runs and return the tables.

    Args:
        out: folder of the files of heads and tests.
        roots: data sets of ``methods.yaml`` to test on, and their folders; null for the root of the recipe.
        tables: tables of ``methods.yaml`` whose rows to run.
        variants: more rows, as ``enrichment+method``.
        backbones: backbones of ``methods.yaml``.
        seeds: number of seeds of each class split for heads with weights.
        shots: numbers of support clips per class in the tests.
        episodes: test episodes of each class split and number of shots, the same for all rows and seeds.
        jobs: number of parallel runs.
        maps: folder of the stored maps of all calls; null for ``maps`` in the cache folder.
        table: file in place of ``methods.yaml``.
        override: options that override those of all recipes, such as {"trainer": {"max_epochs": 1}}.

    Raises:
        InputError: a name is not in the file, or the backbone has no weights of its own.
    """
    content = yaml.safe_load(table.read_text())
    for what, names in (("data", roots), ("tables", tables), ("backbones", backbones)):
        for name in names:
            check_choice(what.rstrip("s"), name, content[what])
    rows = list(dict.fromkeys([*(row for name in tables for row in content["tables"][name]), *variants]))
    for row in rows:
        enrichment, _, method = row.partition("+")
        check_choice(f"{row}: enrichment", enrichment, content["enrichments"])
        check_choice(f"{row}: method", method, content["methods"])
    for backbone in backbones:
        of_backbone = content["backbones"][backbone]
        if not of_backbone.get("pretrained", True) and not of_backbone.get("weights"):
            raise InputError(f"backbone {backbone}: without weights it differs in each run; set weights")
    test = {"test_shots": list(shots), "test_episodes": episodes, "eval_query_per_class": 1}
    own = {name: root if root is not None else _recipe_root(content, name) for name, root in roots.items()}
    plan = Plan(content, own, out, maps or cache_folder() / "maps", override or {}, test)
    runs = list(planned(plan, rows, backbones, seeds))
    missing = [(run, t) for run, t in runs if not _is(_test_file(plan, run), _test_mark(plan, run, t))]
    files = encode(plan, [one for pair in missing for one in pair if one is not None])
    work: dict[Run, tuple[list[Run], Run | None]] = {}
    for run, trained in missing:
        work.setdefault(trained or run, ([], trained))[0].append(run)
    with ProcessPoolExecutor(jobs, get_context("spawn"), _alone) as pool:
        started = [pool.submit(_work, plan, *one, files) for one in work.values()] if jobs > 1 else []
        for done in as_completed(started):
            tqdm.write(done.result())
        for one in [] if started else work.values():
            tqdm.write(_work(plan, *one, files))
    return report(plan, [run for run, _ in runs], tables)


def _recipe_root(content: Mapping[str, Any], name: str) -> str:
    roots = [_read_yaml(recipe)["data"].get("root") for recipe in content["data"][name]["recipes"]]
    return str(roots[-1])


# Tables -------------------------------------------------------------------------------------------------------------

Tests = dict[str, EpisodeResults]  # by shots and control


def read_test(path: Path) -> Tests:
    """Read the results of a test by shots and control, such as ``1-shot`` and ``1-shot reversed``."""
    with safe_open(path, "pt") as file:
        found = {name: file.get_tensor(name).long() for name in file.keys()}  # noqa: SIM118 (no mapping)
    tests = {}
    for name, predicted in found.items():
        shots, _, kind = name.partition(".predicted.")
        if shots == name:
            continue
        classes, support, query = (found[f"{shots}.{part}"].numpy() for part in ("classes", "support", "query"))
        # The queries are in the order of the classes.
        actual = np.repeat(classes, query.shape[1] // classes.shape[1], 1)
        predictions = np.take_along_axis(classes, predicted.numpy(), 1)
        index = np.arange(len(classes))
        tests[f"{shots} {kind}".strip()] = EpisodeResults(index, predictions, actual, classes, support, query)
    return dict(sorted(tests.items()))


Runs = list[tuple[Run, Tests]]


def report(plan: Plan, runs: Sequence[Run], tables: Sequence[str] = ()) -> str:
    """Format accuracies, and paired differences of the steps of the tables, as Markdown tables."""
    parts = []
    for data, backbone in dict.fromkeys((run.data, run.backbone) for run in runs):
        found: dict[str, Runs] = {}
        for run in runs:
            if (run.data, run.backbone) == (data, backbone):
                found.setdefault(run.variant, []).append((run, read_test(_test_file(plan, run))))
        title = f"### {plan.table['data'][data]['title']}, {backbone}"
        shots = [kind for kind in next(iter(found.values()))[0][1] if " " not in kind]
        parts += [f"{title}, {kind}\n\n{rate_table(plan, found, kind)}" for kind in shots]
        steps = {k: v for name in tables for k, v in plan.table["steps"].get(name, {}).items()}
        parts += [f"{title}, differences\n\n{step_table(found, steps, shots)}"] if steps else []
    return "\n\n".join(parts)


def rate_table(plan: Plan, found: Mapping[str, Runs], shots: str) -> str:
    """Format the accuracy of each row with its three intervals, the range of its runs, and its controls."""
    header = ["what is compared", "method", shots, "± episodes", "± clips", "± classes", "runs", *CONTROLS]
    rows = []
    for row, runs in found.items():
        values, results = pooled(runs, shots)
        intervals = all_intervals(results, values)
        if len({(run.split, run.swapped) for run, _ in runs}) > 1:
            intervals["classes"]["ci95"] = None  # some sets of classes only: the range of the runs shows the spread
        halves = [_half(intervals[over]) for over in ("episodes", "clips", "classes")]
        cells = [f"{100 * values.mean():.1f}", *halves, _range(runs, shots)]
        controls = [f"{100 * pooled(runs, f'{shots} {control}')[0].mean():.1f}" for control in CONTROLS]
        rows.append([*titles(plan, row), *cells, *controls])
    return markdown_table(header, rows)


def step_table(found: Mapping[str, Runs], steps: Mapping[str, tuple[str, str]], shots: Sequence[str]) -> str:
    """Format paired differences of rows on the same episodes, splits and seeds, with the interval over clips."""
    rows = []
    for step, pair in steps.items():
        if not set(pair) <= found.keys():
            continue
        cells = []
        for kind in shots:
            (first, results), (second, _) = (pooled(found[row], kind) for row in pair)
            half = _half(mean_intervals(second - first, results)["clips"])
            cells += [f"{100 * (second - first).mean():+.1f}", half, _range(found[pair[1]], kind, found[pair[0]])]
        rows.append([step, *cells])
    return markdown_table(["step", *(name for kind in shots for name in (kind, "± clips", "runs"))], rows)


def pooled(runs: Runs, kind: str) -> tuple[np.ndarray, EpisodeResults]:
    """Join the episodes of all class splits.

    Returns:
        For each query the share of the seeds that are right, ``[E, Q]``, and which clips and classes it is about.
    """
    of_split: dict[tuple[int, bool], list[EpisodeResults]] = {}
    for run, tests in runs:
        of_split.setdefault((run.split, run.swapped), []).append(tests[kind])
    values = [np.mean([results.right for results in seeds], 0) for seeds in of_split.values()]
    first = [seeds[0] for seeds in of_split.values()]
    joined = {
        name: np.concatenate([getattr(results, name) for results in first])
        for name in ("predicted", "actual", "classes", "support", "query")
    }
    return np.concatenate(values), EpisodeResults(np.arange(sum(map(len, values))), **joined)


def titles(plan: Plan, row: str) -> list[str]:
    """Return the titles of enrichment and method of a row."""
    enrichment, method = row.split("+")
    return [plan.table["enrichments"][enrichment]["title"], plan.table["methods"][method]["title"]]


def _half(interval: Mapping[str, Any]) -> str:
    return "–" if interval["ci95"] is None else f"{100 * interval['ci95']:.1f}"


def _range(runs: Runs, kind: str, minus: Runs | None = None) -> str:
    """Format the lowest and highest mean of the runs, or of their differences to others."""
    rates = [100 * tests[kind].accuracy for _, tests in runs]
    if minus is not None:
        rates = [rate - 100 * tests[kind].accuracy for rate, (_, tests) in zip(rates, minus, strict=True)]
    form = "{:.1f}" if minus is None else "{:+.1f}"
    return "" if len(rates) == 1 else " … ".join(form.format(rate) for rate in (min(rates), max(rates)))


if __name__ == "__main__":
    _quiet()
    try:
        print(auto_cli(compare, as_positional=True))
    except InputError as error:
        sys.exit(f"error: {error}")
