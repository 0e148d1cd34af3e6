"""STRMModule: the LightningModule of STRM and the other matching methods."""

import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import IO, Any, Literal, TypeVar, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from strm_lightning.data.checks.pretraining import seen_in_pretraining
from strm_lightning.data.datamodule import EpisodeDataModule
from strm_lightning.data.loaders import EpisodeDataset, align_progress
from strm_lightning.data.splits.stages import Stage
from strm_lightning.episode import Episode, MatchLogits, PooledMaps
from strm_lightning.errors import InputError
from strm_lightning.evaluation.accuracy import EpisodeAccuracy
from strm_lightning.evaluation.bank import FeatureBank
from strm_lightning.evaluation.card import SOURCE_KEYS, describe_checkpoint
from strm_lightning.evaluation.controls import (
    CONTROLS,
    control_features,
    control_features_of_maps,
    encode_controls,
    frame_wise,
    split_bank,
)
from strm_lightning.evaluation.encoding import (
    Keep,
    coming_rows,
    encode_videos,
    loaders_of,
    share_buffers,
    source_of,
    without_clips,
)
from strm_lightning.evaluation.fingerprint import feature_options
from strm_lightning.evaluation.handover import Handover
from strm_lightning.evaluation.matching import match_from_bank
from strm_lightning.evaluation.pictures import log_pictures
from strm_lightning.evaluation.report import report_test, run_folder
from strm_lightning.evaluation.results import EpisodeResults
from strm_lightning.messages import check_choice, check_not_negative
from strm_lightning.models.matching.base import Encoded
from strm_lightning.models.strm import STRM, own_classes
from strm_lightning.models.weights.state import plain_name
from strm_lightning.training.checkpoints import read_checkpoint, use_atomic_checkpoints
from strm_lightning.training.sync_batchnorm import use_timm_sync_batchnorm

_Module = TypeVar("_Module", bound="STRMModule")


class STRMModule(L.LightningModule):
    """Train and test STRM, TRX or another matching method on episodes.

    The loss is ``L_TM + qc_weight L_QC``, both cross-entropies over the classes of the episode; the prediction is the
    arg max of the logits combined with the same weight (STRM). Validation and test encode each video once and match
    episodes from the stored features (`EpisodeDataModule.evaluation`).

    Args:
        backbone: a timm model name, ``torchvision/`` and a video model, or a name given to `register_backbone`.
        optimizer: ``sgd``, ``adam`` or ``adamw``.
        lr: maximum learning rate.
        momentum: momentum of SGD; the official recipe has none.
        weight_decay: weight decay.
        schedule: ``constant``; ``milestones`` multiplies by ``gamma`` at each; ``one_cycle`` and ``cosine`` end at 0.
        milestones: optimiser steps of the schedule ``milestones``.
        gamma: factor of the schedule ``milestones``.
        qc_weight: lambda, the weight of QC in the loss and in the prediction.
        loss_reduction: cross-entropy as ``mean`` or ``sum`` over queries. The official code uses the sum, divides by 16
            and accumulates over 16 episodes; ``trainer.accumulate_grad_batches: 16`` does both.
        freeze_backbone: do not train the backbone. Its maps are then computed once for each video and only the head is
            trained, which is hundreds of times faster; pixels are augmented only by ``frozen_views``.
        frozen_views: random views (frames, crop, flip) of each training video to store the maps of; 0 for the one view
            of test, without augmentation.
        bank_dir: folder of stored feature banks. A later test of the same weights on the same clips, or with a frozen
            backbone a later training, does not encode again.
        bank_limit_gb: maximum size of a feature bank in main memory, in GB; larger banks are memory-mapped files.
        controls: also test with reversed queries and with static clips, see `evaluation.controls`; the time of matching
            is three times as long.
        **model_options: options of `STRM` and `STRMHead`.

    Raises:
        InputError: an option is wrong, or the model cannot be built.
        MissingFileError: ``weights`` does not exist.
    """

    def __init__(
        self,
        backbone: str = "resnet50.tv_in1k",
        *,
        optimizer: Literal["sgd", "adam", "adamw"] = "sgd",
        lr: float = 1e-4,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        schedule: Literal["constant", "milestones", "one_cycle", "cosine"] = "constant",
        milestones: Sequence[int] = (),
        gamma: float = 0.1,
        qc_weight: float = 0.1,
        loss_reduction: Literal["mean", "sum"] = "mean",
        freeze_backbone: bool = False,
        frozen_views: int = 1,
        bank_dir: str | None = None,
        bank_limit_gb: float = 8.0,
        controls: bool = False,
        **model_options: Any,
    ) -> None:
        super().__init__()
        # Set per run, not saved: options of a checkpoint override those of the command line.
        self.save_hyperparameters(ignore=["bank_dir", "bank_limit_gb", "controls"])
        self.hparams["milestones"] = list(milestones)
        check_choice("optimizer", optimizer, _OPTIMIZERS)
        check_choice("schedule", schedule, ("constant", "milestones", *_ANNEALED))
        check_choice("loss_reduction", loss_reduction, ("mean", "sum"))
        check_not_negative(frozen_views=frozen_views)
        self.model = STRM(backbone, **model_options)
        self.model.backbone.requires_grad_(not freeze_backbone)
        self.qc_weight, self.loss_reduction = qc_weight, loss_reduction
        self.freeze_backbone, self.frozen_views = freeze_backbone, frozen_views
        self.bank_dir, self.bank_limit_gb, self.controls = bank_dir, bank_limit_gb, controls
        self._maps: dict[Stage, FeatureBank] = {}
        self._encoded: FeatureBank | None = None
        self._loaders: list[Any] = []  # of the current validation or test
        self._records: list[EpisodeAccuracy] = []
        self._control_records: dict[str, list[EpisodeAccuracy]] = {}
        self._control_banks: dict[str, FeatureBank] = {}
        self._shapes: dict[int, tuple[int, int]] = {}  # way and shot of each loader
        self._losses: dict[str, MeanMetric] = {}
        self._source: dict[str, Any] | None = None  # metadata of the loaded checkpoint
        self._encoding_s = self._matching_since = 0.0
        self._results: EpisodeResults | None = None
        self._report: dict[str, Any] | None = None
        self._handover = Handover()
        self._dropout_seed = 0
        self._accumulated = 0  # batches since the last optimiser step
        self._resumed: dict[str, Any] = {}  # state of a resumed fit

    @property
    def results(self) -> EpisodeResults | None:
        """Predictions of the last validation or test; None before the first."""
        self._receive_results()
        return self._results

    @property
    def report(self) -> dict[str, Any] | None:
        """Content of ``results.json`` of the last test; None before the first."""
        self._receive_results()
        return self._report

    @property
    def tested_step(self) -> int:
        """Optimiser step of the loaded checkpoint; without one, of the current weights."""
        step = (self._source or {}).get("global_step")
        return self.trainer.global_step if step is None else int(step)

    # Training -----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        use_timm_sync_batchnorm(self.trainer)
        use_atomic_checkpoints(self.trainer)
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, EpisodeDataModule):
            self._check_clips(data)
        if stage == "fit":
            if self.freeze_backbone and not self.model.head.learns:
                raise InputError(
                    f"nothing to train: matching {self.model.head.matching_name!r} has no weights and the backbone is "
                    "frozen; test it (strm test), choose another matching, or set model.freeze_backbone: false"
                )
            self._maps = {}  # after an error, a fit leaves its maps
        if self.freeze_backbone or self.model.backbone.batch_norm == "frozen":
            warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")  # intended

    def _check_clips(self, data: EpisodeDataModule) -> None:
        model, backbone = self.model, self.model.backbone
        if data.num_frames != model.num_frames:
            raise InputError(
                f"clips have {data.num_frames} frames (data.num_frames), the model takes {model.num_frames}"
            )
        segments = (data.num_segments, backbone.num_segments)
        if data.frame_policy == "dense" and not backbone.frame_wise and len(set(segments)) > 1:
            raise InputError(
                f"clips have {segments[0]} segments (data.num_segments), the model takes {segments[1]} "
                "(model.num_segments)"
            )
        if data.frame_policy != "dense" and backbone.frame_wise and data.num_segments > 1:
            raise InputError(
                f"num_segments {data.num_segments} has no effect with backbone {backbone.name!r}, which looks at "
                f"single frames, and frame_policy {data.frame_policy!r}; set it to 1, or use 'dense'"
            )
        backbone.check_size(data.transform.image_size)
        if backbone.pretrained_on and (warning := seen_in_pretraining(data.split, backbone.pretrained_on)):
            rank_zero_warn(f"backbone {backbone.name!r} was pretrained on {backbone.pretrained_on}: {warning}")

    def on_fit_start(self) -> None:
        self._source, self._accumulated = None, 0
        if not self.trainer.ckpt_path:
            self._resumed = {}
        # A resumed run uses the dropout seed of the first run, not its own seed.
        seed = int(os.environ.get("PL_GLOBAL_SEED", torch.initial_seed()))
        self._dropout_seed = self.trainer.strategy.broadcast(self._resumed.pop("dropout_seed", seed))

    def on_train_start(self) -> None:
        loaders = loaders_of(self.trainer, "train")
        for loader in loaders:
            align_progress(self.trainer, loader)
        # Not in on_fit_start, because learning-rate and batch-size finders train before that hook.
        if any(map(without_clips, loaders)) and "train" not in self._maps:
            self._maps["train"] = self._encode_maps("train", views=self.frozen_views)

    def on_fit_end(self) -> None:
        self._maps = {}  # they are large

    @property
    def train_views(self) -> int:
        """Number of stored views of each training video; 0 if the module is trained on pixels.

        `EpisodeDataModule.train_dataloader` reads it.
        """
        return max(self.frozen_views, 1) if self.freeze_backbone else 0

    def train(self, mode: bool = True) -> "STRMModule":
        super().train(mode)
        if mode and self.freeze_backbone:
            self.model.backbone.eval()  # do not update batch norm statistics
        return self

    def forward(self, support: Tensor, query: Tensor) -> MatchLogits:
        """Compute logits of ``query [..., Q, L, 3, H, W]`` for classes of ``support [..., N, K, L, 3, H, W]``."""
        return self.model(support, query)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if pending := self._resumed.pop("pending_gradients", None):
            self._restore_gradients(**pending)

    def on_after_backward(self) -> None:
        self._accumulated += 1

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._accumulated = 0

    def training_step(self, episode: Episode, batch_idx: int) -> Tensor:
        episode = episode.batched()
        with self._seeded_dropout():
            logits = self._logits(episode)
        losses = self.losses(logits, episode.query_labels)
        combined = logits.combined(self.qc_weight)
        accuracy = (combined.argmax(-1) == episode.query_labels).float().mean()
        self.log_dict({f"train/{name}": loss for name, loss in losses.items()}, batch_size=len(episode.index))
        self.log("train/accuracy", accuracy, prog_bar=True, batch_size=len(episode.index))
        return losses["loss"]

    def losses(self, logits: MatchLogits, labels: Tensor) -> dict[str, Tensor]:
        """Compute the losses of a batch of episodes.

        Args:
            logits: logits ``[B, Q, N]``.
            labels: label of each query, ``[B, Q]``.

        Returns:
            The total ``loss`` and its parts, such as ``loss_trm`` and ``loss_qc``.
        """

        def cross_entropy(logits: Tensor) -> Tensor:
            loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction=self.loss_reduction)
            return loss / len(labels) if self.loss_reduction == "sum" else loss  # the sum is per episode

        matching_loss = cross_entropy(logits.trm)
        losses = {f"loss_{self.model.head.matching_name}": matching_loss}
        if logits.qc is None:
            return {"loss": matching_loss, **losses}
        losses["loss_qc"] = cross_entropy(logits.qc)
        return {"loss": matching_loss + self.qc_weight * losses["loss_qc"], **losses}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        options = cast("dict[str, Any]", self.hparams)
        name, lr = options["optimizer"], options["lr"]
        extra = {"momentum": options["momentum"]} if name == "sgd" else {}
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = _OPTIMIZERS[name](parameters, lr=lr, weight_decay=options["weight_decay"], **extra)
        if options["schedule"] == "constant":
            return optimizer
        if options["schedule"] == "milestones":
            scheduler: Any = torch.optim.lr_scheduler.MultiStepLR(optimizer, options["milestones"], options["gamma"])
        else:
            steps = self.trainer.estimated_stepping_batches
            if steps == float("inf"):
                raise InputError(
                    f"schedule {options['schedule']!r} needs the number of optimiser steps: set trainer.max_epochs or "
                    "trainer.max_steps (trainer.max_time may end the run earlier), or model.schedule: constant"
                )
            scheduler = _ANNEALED[options["schedule"]](optimizer, int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Validation and test ------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._start_evaluation("val")

    def on_test_epoch_start(self) -> None:
        self._start_evaluation("test")

    def on_predict_epoch_start(self) -> None:
        loaders = [loader for loader in loaders_of(self.trainer, "test") if without_clips(loader)]
        if not loaders:
            return
        stages = {loader.dataset.generator.stage for loader in loaders}
        if len(stages) > 1:
            raise InputError(f"predict needs episodes of one stage, not of {' and '.join(sorted(stages))}")
        self._encoded = self._encode_clips(stages.pop())
        self._encoded.move(self.device)

    def on_predict_epoch_end(self) -> None:
        self._encoded = None

    def validation_step(self, episode: Episode, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(episode, dataloader_idx)

    def test_step(self, episode: Episode, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(episode, dataloader_idx)

    def predict_step(self, episode: Episode, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Predict the queries of a batch of ``B`` episodes.

        Returns:
            ``index [B]``: index of each episode; ``logits [B, Q, N]``: combined logits; ``predicted [B, Q]``: label of
            each query, 0 .. N-1; ``class_ids [B, N]``: class of the video set for each label. Padding episodes, which
            give all processes the same number of steps, are left out.
        """
        episode = episode.batched()
        logits = self._logits(episode).combined(self.qc_weight)
        counted = _counted(loaders_of(self.trainer, "test")[dataloader_idx], episode)
        predictions = {
            "index": episode.index,
            "logits": logits,
            "predicted": logits.argmax(-1),
            "class_ids": episode.class_ids,
        }
        return {name: tensor[counted] for name, tensor in predictions.items()}

    def on_validation_epoch_end(self) -> None:
        self._end_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._end_evaluation("test")

    def on_test_end(self) -> None:
        if self.trainer.is_global_zero and self.report and "card" in self.report:
            log_pictures(self.trainer.loggers, run_folder(self.trainer), self.tested_step)

    def _start_evaluation(self, stage: Stage) -> None:
        loaders, start = loaders_of(self.trainer, stage), perf_counter()
        self._loaders, self._shapes, self._losses = loaders, {}, {}
        controls = CONTROLS if self.controls and stage == "test" else ()
        self._records, *others = [
            [EpisodeAccuracy(_num_episodes(loader)).to(self.device) for loader in loaders] for _ in ("own", *controls)
        ]
        self._control_records = dict(zip(controls, others, strict=True))
        share_buffers(self.model)
        if any(map(without_clips, loaders)):
            self._encoded = self._encode_clips(stage)
            self._encoded.move(self.device)
            if self._control_records:
                self._control_banks = split_bank(self._encoded)
                self._encoded = self._control_banks.pop("own")
        self._encoding_s, self._matching_since = perf_counter() - start, perf_counter()

    def _evaluate(self, episode: Episode, setting: int) -> None:
        episode = episode.batched()
        logits = self._logits(episode)
        self._records[setting].update(logits.combined(self.qc_weight), episode)
        if self._control_records:
            for name, of_control in self._control_logits(episode).items():
                self._control_records[name][setting].update(of_control.combined(self.qc_weight), episode)
        self._shapes[setting] = (episode.support_ids.shape[-2], episode.support_ids.shape[-1])
        if setting == 0:
            counted = _counted(self._loaders[0], episode)
            weight = int(counted.sum())
            rows = counted if weight else slice(None)  # a process with only padding needs the same metrics
            for name, loss in self.losses(logits[rows], episode.query_labels[rows]).items():
                metric = self._losses.setdefault(name, MeanMetric().to(self.device))
                metric.update(loss.float(), weight)

    def _end_evaluation(self, stage: Stage) -> None:
        data = source_of(self.trainer, stage)
        every = [record.results() for record in self._records]
        shapes = data.settings(stage) if data else [self._shapes[number] for number in range(len(every))]
        found = list(zip(shapes, every, strict=True))
        results = self._results = every[0]
        losses = {f"{stage}/{name}": metric.compute() for name, metric in self._losses.items()}
        controls = {name: [record.results() for record in records] for name, records in self._control_records.items()}
        self._records, self._encoded, self._losses, self._loaders = [], None, {}, []
        self._control_records, self._control_banks = {}, {}
        self.log_dict(losses, sync_dist=True)
        self.log(f"{stage}/accuracy", results.accuracy, prog_bar=True, sync_dist=True)
        self.log(f"{stage}/ci95", results.ci95, sync_dist=True)
        self.log_dict({f"{stage}/accuracy_{name}": of[0].accuracy for name, of in controls.items()}, sync_dist=True)
        if len(found) > 1 and data:
            rates = {f"{stage}/accuracy_{way}way_{shot}shot": r.accuracy for (way, shot), r in found}
            self.log_dict(rates, sync_dist=True)
        elif len(found) > 1:
            rates = {f"{stage}/accuracy_loader_{n}": r.accuracy for n, r in enumerate(every)}
            self.log_dict(rates, sync_dist=True)
        if stage == "test":
            seconds = {"encoding_s": self._encoding_s, "matching_s": perf_counter() - self._matching_since}
            source = describe_checkpoint(self._source, self.trainer.ckpt_path)
            self._report = report_test(self.trainer, data, self.model, self.hparams, found, source, seconds, controls)
        if self.trainer.is_global_zero:
            self._handover.give(results, self._report)

    def _receive_results(self) -> None:
        if received := self._handover.take():
            self._results, self._report = received

    # Features, from pixels or from a bank ---------------------------------------------------------------------------

    def _logits(self, episode: Episode) -> MatchLogits:
        if episode.support is not None and episode.query is not None:
            return self.model(episode.support, episode.query)
        if self._encoded is not None:
            return match_from_bank(self.model.head, self._encoded, episode, self.device)
        if "train" not in self._maps or not self.trainer.training:
            raise InputError("the episodes have no clips, and there is no feature bank for them")
        head, maps, ids = self.model.head, self._maps["train"], episode.to("cpu")
        support = PooledMaps(**maps.get(ids.support_ids, ids.support_views)).to(self.device)
        query = PooledMaps(**maps.get(ids.query_ids, ids.query_views)).to(self.device)
        return head.match(head.enrich_pooled(support), head.enrich_pooled(query))

    def _control_logits(self, episode: Episode) -> dict[str, MatchLogits]:
        """Compute the logits of each control: reversed queries with the supports as they are, and static clips."""
        head = self.model.head
        if episode.support is not None and episode.query is not None:
            support, query = (control_features(self.model, clips) for clips in (episode.support, episode.query))
            pairs = {"reversed": (support["own"], query["reversed"]), "static": (support["static"], query["static"])}
            return {name: head.match(*pair) for name, pair in pairs.items()}
        own, banks = self._encoded, self._control_banks
        assert own is not None
        return {
            "reversed": match_from_bank(head, own, episode, self.device, of_queries=banks["reversed"]),
            "static": match_from_bank(head, banks["static"], episode, self.device),
        }

    def _encode_clips(self, stage: Stage) -> FeatureBank:
        head, controls = self.model.head, bool(self._control_records)
        fitting = self.trainer.state.fn == "fit"
        from_maps = not controls or frame_wise(self.model)
        if not (self.freeze_backbone and (fitting or self.bank_dir) and from_maps):
            keep = None if fitting else self._keep(self.model, controls=controls)  # weights change in training
            if controls:
                return self._fill(stage, lambda c: encode_controls(head, control_features(self.model, c)), keep=keep)
            return self._fill(stage, lambda clips: head.encode(self.model.encode(clips)), keep=keep)
        maps = self._maps.get(stage)
        if maps is None or not set(coming_rows(self.trainer, stage)) <= set(maps.rows.tolist()):
            maps = self._encode_maps(stage)
        if fitting:
            self._maps[stage] = maps
        bank: FeatureBank = FeatureBank(maps.rows.tolist(), limit_gb=self.bank_limit_gb)
        batches = (
            (torch.stack([rows, torch.zeros_like(rows)], 1), PooledMaps(**maps.get(rows)))
            for rows in maps.rows.split(64)
        )

        def encode(maps: PooledMaps) -> Encoded:
            if controls:
                return encode_controls(head, control_features_of_maps(head, maps))
            return head.encode(head.enrich_pooled(maps))

        with self.trainer.precision_plugin.forward_context():
            bank.fill(batches, encode, device=self.device)
        return bank

    def _encode_maps(self, stage: Stage, *, views: int = 0) -> FeatureBank:
        self.model.backbone.eval()
        return self._fill(
            stage, lambda clips: vars(self.model.pool(clips)), views=views, keep=self._keep(self.model.backbone)
        )

    def _fill(self, stage: Stage, encode: Any, *, views: int = 0, keep: Keep | None = None) -> FeatureBank:
        return encode_videos(self.trainer, stage, encode, views=views, limit_gb=self.bank_limit_gb, keep=keep)

    def _keep(self, network: nn.Module, *, controls: bool = False) -> Keep | None:
        if self.bank_dir is None:
            return None
        options = feature_options(self.hparams, pooled=network is self.model.backbone)
        options |= {"controls": CONTROLS} if controls else {}
        return Keep(Path(self.bank_dir).expanduser(), network, options)

    @contextmanager
    def _seeded_dropout(self) -> Iterator[None]:
        """Seed dropout with (seed, step, rank), so that a resumed run is the same as an uninterrupted one."""
        devices = [self.device] if self.device.type == "cuda" else []
        key = (self._dropout_seed, self.trainer.fit_loop.epoch_loop.total_batch_idx, self.global_rank)
        with torch.random.fork_rng(devices):
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
            yield

    # Checkpoints --------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # The checkpoint contains all weights, so loading it needs no pretrained weights.
        if "hyper_parameters" in checkpoint:
            checkpoint["hyper_parameters"] = {**checkpoint["hyper_parameters"], "pretrained": False, "weights": None}
        checkpoint["state_dict"] = {plain_name(name): value for name, value in checkpoint["state_dict"].items()}
        checkpoint["pretrained_on"] = self.model.backbone.pretrained_on
        if classes := own_classes(self.model):
            checkpoint["own_classes"] = classes
        if "optimizer_states" in checkpoint:  # not with save_weights_only
            checkpoint["dropout_seed"] = self._dropout_seed
            if self._accumulated:
                checkpoint["pending_gradients"] = self._pending_gradients()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._source = {name: value for name, value in checkpoint.items() if name in SOURCE_KEYS}
        self.model.backbone.pretrained_on = checkpoint.get("pretrained_on")
        names = ("dropout_seed", "pending_gradients")
        self._resumed = {name: checkpoint[name] for name in names if checkpoint.get(name) is not None}
        classes, saved = own_classes(self.model), checkpoint.get("own_classes", {})
        if missing := {name: kind for name, kind in saved.items() if classes.get(name) != kind}:
            name, kind = next(iter(missing.items()))
            raise InputError(
                f"the checkpoint's {name} is a {kind}, a class of your own that the checkpoint does not contain: build "
                "STRMModule, set this part, and load with trainer.test(module, ckpt_path=...) or load_state_dict"
            )

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state dict, with or without the prefixes of `torch.compile`.

        Raises:
            InputError: shapes differ, or names differ and ``strict`` is set.
        """
        own = self.state_dict()
        names = {plain_name(name): name for name in own}
        state = {names.get(plain_name(name), name): value for name, value in state_dict.items()}
        wrong = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
        if strict:
            wrong += own.keys() ^ state.keys()
        if wrong:
            name = min(wrong)
            shapes = [list(tensors[name].shape) if name in tensors else "absent" for tensors in (state, own)]
            raise InputError(
                f"the checkpoint is of another model: {len(wrong)} tensors differ, such as {name!r}: {shapes[0]} in "
                f"the checkpoint, {shapes[1]} in the model; use the options of the checkpoint (model.tuple_sizes, "
                "model.backbone, ...)"
            )
        return super().load_state_dict(state, strict=strict, assign=assign)

    @_restricted_classmethod
    def load_from_checkpoint(
        cls: type[_Module],  # noqa: N805
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> _Module:
        """Load a module from a checkpoint like Lightning's method, but without executing code in the file.

        Args:
            checkpoint_path: a local file, a URL of remote storage such as ``s3://``, or an open file.
            map_location: device of the tensors; see `torch.load`.
            hparams_file: a YAML file of options that override those of the checkpoint.
            strict: whether different names of tensors are an error; different shapes always are.
            weights_only: True or None; False is an error.
            **kwargs: options that override those of the checkpoint.

        Raises:
            MissingFileError: the file does not exist.
            InputError: the file is damaged, unsafe, on a web server, or of another model.
        """
        if weights_only is False:
            raise InputError("weights_only=False is not supported: checkpoints contain only tensors and plain values")
        source: Any = checkpoint_path
        if isinstance(source, (str, Path)):
            content = read_checkpoint(source)
            if not isinstance(content, dict) or "state_dict" not in content:
                raise InputError(f"checkpoint {source}: not a checkpoint of STRMModule")
        else:
            content = torch.load(source, "cpu", weights_only=True)
        # Pass the safely read content to Lightning, since some versions of its method load any pickle.
        buffer = io.BytesIO()
        torch.save(content, buffer)
        buffer.seek(0)
        return super().load_from_checkpoint(buffer, map_location, hparams_file, strict, **kwargs)

    def _pending_gradients(self) -> dict[str, Any] | None:
        """Return the gradients since the last optimiser step, by rank, for a resumed run."""
        strategy = self.trainer.strategy
        kinds = (SingleDeviceStrategy, DDPStrategy)
        if not isinstance(strategy, kinds) or strategy.handles_gradient_accumulation:
            rank_zero_warn(
                f"this checkpoint is within a gradient accumulation, and {type(strategy).__name__} shards gradients: a "
                f"run resumed from it loses the gradients of {self._accumulated} batches"
            )
            return None
        own = {plain_name(n): p.grad.to("cpu", copy=True) for n, p in self.named_parameters() if p.grad is not None}
        ranks: list[Any] = [own] * self.trainer.world_size
        if self.trainer.world_size > 1:
            torch.distributed.all_gather_object(ranks, own)
        return {"batches": self._accumulated, "of": self.trainer.accumulate_grad_batches, "ranks": ranks}

    def _restore_gradients(self, batches: int, of: int, ranks: Sequence[Mapping[str, Tensor]]) -> None:
        every, processes = self.trainer.accumulate_grad_batches, self.trainer.world_size
        if (every, processes) != (of, len(ranks)):
            raise InputError(
                f"the checkpoint was saved within a gradient accumulation with accumulate_grad_batches {of} and "
                f"processes {len(ranks)}, but here they are {every} and {processes}; resume with the same values, or "
                "from a checkpoint of the end of an epoch"
            )
        gradients = ranks[self.global_rank]
        for name, parameter in self.named_parameters():
            if (gradient := gradients.get(plain_name(name))) is not None:
                parameter.grad = gradient.to(parameter.device)
        self._accumulated = batches


_OPTIMIZERS: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
_ANNEALED: dict[str, Any] = {
    "one_cycle": lambda optimizer, steps: torch.optim.lr_scheduler.OneCycleLR(
        optimizer, optimizer.defaults["lr"], total_steps=steps
    ),
    "cosine": torch.optim.lr_scheduler.CosineAnnealingLR,
}


def _num_episodes(loader: Any) -> int | None:
    """Return the number of episodes of a loader without padding; None if its dataset is no `EpisodeDataset`."""
    dataset = getattr(loader, "dataset", None)
    return len(dataset) if isinstance(dataset, EpisodeDataset) else None


def _counted(loader: Any, episode: Episode) -> Tensor:
    """Return a mask ``[B]`` of the episodes of a batch that are not padding."""
    number = _num_episodes(loader)
    return torch.ones_like(episode.index, dtype=torch.bool) if number is None else episode.index < number
