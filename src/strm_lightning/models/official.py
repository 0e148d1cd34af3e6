"""Checkpoints of the released STRM code (2022): their names, what they hold and what they lack."""

import re

from torch import Tensor

# Children of torchvision's ResNet in order, as the release numbers them -> timm's names.
_RESNET = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}

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

# Held by the release and used by nothing: position codes are computed, norm_v is never called, the tuple tables and
# the rest of QC's modules hold no weights.
_IGNORED = re.compile(r"(.*\.)?pe\.pe$|.*\.norm_v\.(weight|bias)$|.*num_batches_tracked$|.*tuples.*")


def convert_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of a released state dict the names of `STRM`; their values are not touched.

    Works with or without the ``resnet.`` part, with QC's weights where they are there (the release never saved them),
    and with the ``module.`` that runs on several GPUs put into names.

    Returns:
        A dict for `STRM.load_state_dict`: its keys start with ``backbone.`` and ``head.``.

    Raises:
        ValueError: a tensor's name is not one of the release's.
    """
    converted = {}
    for name, tensor in state_dict.items():
        plain = re.sub(r"(^|\.)module\.", r"\1", name)
        new = _rename(plain)
        if new is not None:
            converted[new] = tensor
        elif not _IGNORED.match(plain):
            raise ValueError(f"tensor {name!r} is not of a released STRM checkpoint")
    return converted


def _rename(name: str) -> str | None:
    resnet = re.match(r"resnet\.(\d)\.(.+)", name)
    if resnet and resnet[1] in _RESNET:
        return f"backbone.net.{_RESNET[resnet[1]]}.{resnet[2]}"
    if _IGNORED.match(name):
        return None
    for old, new in _RENAMES:
        if re.match(old, name):
            return re.sub(rf"^{old}", new, name)
    return None
