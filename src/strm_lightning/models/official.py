"""Load official checkpoints: those of the authors' STRM code (2022) and of TRX."""

import logging
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from strm_lightning.errors import InputError
from strm_lightning.messages import check_choice
from strm_lightning.models.strm import STRM
from strm_lightning.models.weights.loading import load_tensors

_log = logging.getLogger(__name__)

# Index of a child module of torchvision's ResNet -> timm's name
_RESNET = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}

# (blocks of each stage, whether blocks have a third convolution) -> backbone
_BACKBONES: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18.tv_in1k",
    ((3, 4, 6, 3), False): "resnet34.tv_in1k",
    ((3, 4, 6, 3), True): "resnet50.tv_in1k",
}

_RENAMES = (
    (r"attn_pat\.(query|key)_proj\.", r"head.ple.\1."),
    (r"attn_pat\.value_conv\.", r"head.ple.value."),
    (r"attn_pat\.gamma$", r"head.ple.gate"),
    (r"attn_pat\.Bot_MLP\.inp_fc\.", r"head.ple.psi.0."),
    (r"attn_pat\.Bot_MLP\.hid_fc\.", r"head.ple.psi.2."),
    (r"attn_pat\.Bot_MLP\.out_fc\.", r"head.ple.psi.4."),
    (r"fr_enrich\.Tok_MLP\.inp_fc\.", r"head.fle.mix_frames.0."),
    (r"fr_enrich\.Tok_MLP\.out_fc\.", r"head.fle.mix_frames.2."),
    (r"fr_enrich\.Bot_MLP\.inp_fc\.", r"head.fle.mix_channels.0."),
    (r"fr_enrich\.Bot_MLP\.out_fc\.", r"head.fle.mix_channels.2."),
    (r"transformers\.(\d+)\.k_linear\.", r"head.trm.\1.key."),
    (r"transformers\.(\d+)\.v_linear\.", r"head.trm.\1.value."),
    (r"transformers\.(\d+)\.norm_k\.", r"head.trm.\1.norm_key."),
    (r"new_dist_loss_post_pat\.(\d+)\.clsW\.", r"head.qc.\1.linear."),
)

# Tensors of official checkpoints that STRM does not need
_IGNORED = {
    "norm_v, which the official code does not use": re.compile(r".*\.norm_v\.(weight|bias)$"),
    "position codes, which are computed": re.compile(r"(.*\.)?pe\.pe$"),
    "tables of tuples, which are computed": re.compile(r".*tuples.*"),
    "counters of batches": re.compile(r".*num_batches_tracked$"),
}


@dataclass(frozen=True, kw_only=True)
class OfficialCheckpoint:
    """Content of an official checkpoint, with the tensor names of `STRM`.

    Attributes:
        path: the file.
        options: options of `STRM`, inferred from the tensors.
        state: weights for `STRM.load_state_dict`.
        absent: descriptions of parts of the model that the file does not contain.
        ignored: descriptions of parts of the file that the model does not need.
    """

    path: str
    options: dict[str, Any]
    state: dict[str, Tensor]
    absent: tuple[str, ...]
    ignored: tuple[str, ...]

    @property
    def is_trx(self) -> bool:
        """Whether the checkpoint is of TRX, which has no enrichment."""
        return not (self.options["patch_enrichment"] or self.options["frame_enrichment"])

    def build(self, *, seed: int = 0) -> STRM:
        """Build the model, in eval mode.

        Args:
            seed: seed of QC's projection if the file does not contain it.

        Raises:
            InputError: the tensors do not fit the model.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = STRM(pretrained=False, **self.options)
        own = model.state_dict()
        state = {**{name: own[name] for name in own if name.startswith("head.qc.")}, **self.state}
        wrong = sorted(n for n in own.keys() | state.keys() if _shape(own, n) != _shape(state, n))
        if wrong:
            raise InputError(
                f"checkpoint {self.path}: {len(wrong)} tensors do not fit {self.options['backbone']} and its head, "
                f"such as {wrong[0]!r}: {_shape(state, wrong[0])} in the file, {_shape(own, wrong[0])} in the model"
            )
        model.load_state_dict(state)
        return model.eval()


def load_official(path: str | Path, *, query_class: Literal["off", "fresh"] = "off", seed: int = 0) -> STRM:
    """Load an official checkpoint of STRM or TRX as a model in eval mode.

    The backbone (ResNet-18, -34 or -50), Omega, d, L and the patch grid are inferred from the shapes of the tensors.
    As in the official code, pixels are in 0 .. 1 without normalisation; use ``frame_policy="release"`` for frames.

    Args:
        path: a checkpoint file of the official code.
        query_class: the official code initialises QC's projection at random in each run and does not save it. ``off``
            disables QC; ``fresh`` initialises the projection at random.
        seed: seed of the random projection.

    Raises:
        MissingFileError: the file does not exist.
        InputError: the file is damaged, unsafe, or no official checkpoint.
    """
    checkpoint = read_official(path, query_class=query_class)
    for description in checkpoint.absent:
        _log.warning("%s: absent: %s", path, description)
    _log.info("%s: ignored: %s", path, "; ".join(checkpoint.ignored) or "nothing")
    return checkpoint.build(seed=seed)


def read_official(path: str | Path, *, query_class: Literal["off", "fresh"] = "off") -> OfficialCheckpoint:
    """Read an official checkpoint without executing code in it; see `load_official` for arguments and errors."""
    check_choice("query_class", query_class, ("off", "fresh"))
    content = load_tensors(path)
    content = content if isinstance(content, dict) else {}
    if any(name.startswith("model.backbone.") for name in content.get("state_dict", ())):
        raise InputError(f"checkpoint {path} is a checkpoint of this package already: use it with --ckpt_path")
    saved = content.get("model_state_dict", content)
    names = [name for name, value in saved.items() if isinstance(value, Tensor)]
    if not any(re.search(r"transformers\.0\.(module\.)?k_linear\.weight$", name) for name in names):
        first = ", ".join(names[:3]) or "none"
        raise InputError(
            f"checkpoint {path}: no tensor 'transformers.0.k_linear.weight', so neither an official STRM nor a TRX "
            f"checkpoint; its tensors: {first}"
        )
    saved = {name: saved[name] for name in names}
    state = convert_official(saved)
    options = _infer(path, state, {_plain(name): tensor for name, tensor in saved.items()})
    has_qc = any(name.startswith("head.qc.") for name in state)
    options["query_class"] = has_qc or (query_class == "fresh" and options["patch_enrichment"])
    trx = not (options["patch_enrichment"] or options["frame_enrichment"])
    absent = () if has_qc or trx else (_NO_QC[query_class],)
    other = sorted(content.keys() - {"model_state_dict"}) if "model_state_dict" in content else []
    ignored = (*_ignored(saved.keys()), *map(str, other))
    return OfficialCheckpoint(path=str(path), options=options, state=state, absent=absent, ignored=ignored)


_NO_QC = {
    "off": "QC's projection (the official code neither trains nor saves it): QC is off",
    "fresh": "QC's projection (the official code neither trains nor saves it): initialised at random",
}


def convert_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of an official state dict to the names of `STRM`.

    Args:
        state_dict: tensors of the official code, with or without those of the backbone (``resnet.``) and QC, and with
            or without the ``module.`` of runs on several GPUs.

    Returns:
        A dict for `STRM.load_state_dict`; its keys start with ``backbone.`` and ``head.``.

    Raises:
        InputError: the name of a tensor is unknown.
    """
    converted = {}
    for name, tensor in state_dict.items():
        new = _rename(_plain(name))
        if new is not None:
            converted[new] = tensor
        elif not any(pattern.match(_plain(name)) for pattern in _IGNORED.values()):
            raise InputError(f"tensor {name!r} is not of an official STRM checkpoint")
    return converted


def _plain(name: str) -> str:
    return re.sub(r"(^|\.)module\.", r"\1", name)


def _rename(name: str) -> str | None:
    resnet = re.match(r"resnet\.(\d)\.(.+)", name)
    if resnet and resnet[1] in _RESNET:
        return f"backbone.net.{_RESNET[resnet[1]]}.{resnet[2]}"
    for old, new in _RENAMES:
        if re.match(old, name):
            return re.sub(rf"^{old}", new, name)
    return None


def _infer(path: str | Path, state: dict[str, Tensor], saved: dict[str, Tensor]) -> dict[str, Any]:
    """Infer options of `STRM` from the shapes of tensors, with new names (state) and with official names (saved)."""
    key, dim = state["head.trm.0.key.weight"], _channels(state)
    widths = [state[name].shape[-1] for name in sorted(state) if re.match(r"head\.trm\.\d+\.key\.weight", name)]
    blocks = tuple(_count(state, rf"backbone\.net\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
    backbone = _BACKBONES.get((blocks, "backbone.net.layer1.0.conv3.weight" in state))
    if backbone is None or dim is None or any(width % dim for width in widths):
        raise InputError(
            f"checkpoint {path}: the backbone is no ResNet-18, -34 or -50 (blocks {list(blocks)}, {dim} channels, "
            f"keys of {widths} channels)"
        )
    qc = state.get("head.qc.0.linear.weight")
    return {
        "backbone": backbone,
        "normalize": False,
        "variant": "official",
        "num_frames": _num_frames(state, saved),
        "patch_grid": round(_positions(saved, "attn_pat", default=16) ** 0.5),
        "tuple_sizes": [width // dim for width in widths],
        "match_dim": key.shape[0],
        "qc_dim": dim // 2 if qc is None else qc.shape[0],
        "patch_enrichment": any(name.startswith("head.ple.") for name in state),
        "frame_enrichment": any(name.startswith("head.fle.") for name in state),
    }


def _channels(state: dict[str, Tensor]) -> int | None:
    last = [name for name in state if re.match(r"backbone\.net\.layer4\.0\.bn\d\.weight", name)]
    return state[max(last)].shape[0] if last else None


def _count(state: dict[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in state if (match := re.match(pattern, name))})


def _num_frames(state: dict[str, Tensor], saved: dict[str, Tensor]) -> int:
    mixer = state.get("head.fle.mix_frames.0.weight")
    return _positions(saved, "transformers.0", default=8) if mixer is None else mixer.shape[0]


def _positions(saved: dict[str, Tensor], module: str, *, default: int) -> int:
    """Return the number of frames or patches of a position code, whose length in the official code is int(1.5 x)."""
    code = saved.get(f"{module}.pe.pe")
    return default if code is None else -(-code.shape[1] * 2 // 3)


def _ignored(names: Collection[str]) -> list[str]:
    unused = [_plain(name) for name in names if _rename(_plain(name)) is None]
    counts = {text: sum(bool(pattern.match(name)) for name in unused) for text, pattern in _IGNORED.items()}
    return [f"{text} ({count} tensors)" for text, count in counts.items() if count]


def _shape(state: dict[str, Tensor], name: str) -> str:
    return str(list(state[name].shape)) if name in state else "absent"
