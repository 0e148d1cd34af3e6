"""Convert encoding and matching to ONNX, with the numbers of clips, classes and shots as dynamic axes."""

import math
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from strm_lightning.classifier.storage import blank_clip
from strm_lightning.classifier.support import SupportSet
from strm_lightning.errors import InputError, MissingPackageError
from strm_lightning.models.matching.base import Encoded, Matching
from strm_lightning.models.strm import STRM

QUERY, SUPPORT, PRESENT = "query.", "support.", "present"  # names of the inputs of matching
_MODULES = ("onnx", "onnxruntime", "onnxscript")
_AXES = {3: "classes", 2: "shots", 6: "clips", 5: "queries"}  # of the first support of `export_matching`
LARGEST_FILE = 1_500_000_000  # bytes of weights in one file; a file of ONNX has at most 2 GiB


def check_packages() -> None:
    """Check that the packages of the extra ``export`` are installed.

    Raises:
        MissingPackageError: one of them is not.
    """
    missing = [name for name in _MODULES if find_spec(name) is None]
    if missing:
        raise MissingPackageError(f'export needs {", ".join(missing)}: in a checkout, run pip install ".[export]"')


class Encoding(nn.Module):
    """Encode clips: ``[B, L, 3, S, S]`` of uint8 to the tensors of `STRMHead.encode`, in the order of `names`."""

    def __init__(self, model: STRM) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(blank_clip(model))

    def forward(self, frames: UInt8[Tensor, "B L 3 S S"]) -> tuple[Tensor, ...]:
        encoded = self.model.head.encode(self.model.encode(frames))
        return tuple(encoded[name] for name in self.names)


class MatchingOfPrepared(nn.Module):
    """Match queries with a prepared support: combined logits ``[Q, N]`` of `STRMHead.match_prepared`.

    Args:
        model: the model.
        qc_weight: lambda, the weight of QC.
        support: names of the prepared tensors.
        query: names of the tensors of a query.
        masked: whether the mask of present clips is the last input.
    """

    def __init__(
        self, model: STRM, qc_weight: float, support: Sequence[str], query: Sequence[str], *, masked: bool
    ) -> None:
        super().__init__()
        self.head, self.qc_weight, self.masked = model.head, qc_weight, masked
        self.support, self.query = tuple(support), tuple(query)

    @property
    def names(self) -> list[str]:
        """Names of the inputs."""
        mask = [PRESENT] if self.masked else []
        return [SUPPORT + name for name in self.support] + [QUERY + name for name in self.query] + mask

    def forward(self, *tensors: Tensor) -> Float[Tensor, "Q N"]:
        support = dict(zip(self.support, tensors, strict=False))
        query = dict(zip(self.query, tensors[len(support) :], strict=False))
        mask = tensors[-1] if self.masked else None
        return self.head.match_prepared(support, query, mask).combined(self.qc_weight)


def export_encoding(model: STRM, image_size: int, path: Path) -> None:
    """Write the encoding as ONNX: input ``frames``, outputs by the names of `STRMHead.encode`.

    Raises:
        InputError: an operation of the model cannot be converted.
    """
    encoding = Encoding(model).eval()
    frames = torch.zeros(2, model.head.num_frames, 3, image_size, image_size, dtype=torch.uint8)
    shapes = ({0: torch.export.Dim("clips")},)
    export_module(encoding, {"frames": frames}, shapes, encoding.names, path, f"backbone {model.backbone.name!r}")


def export_matching(model: STRM, qc_weight: float, path: Path, *, shots: int) -> None:
    """Write the matching of a prepared support as ONNX: output ``logits``, inputs as in `MatchingOfPrepared`.

    The axes that depend on the numbers of classes, shots and queries are dynamic. They are found by comparing the
    shapes for two supports of different size.

    Args:
        model: the model.
        qc_weight: lambda, the weight of QC.
        path: file to write.
        shots: largest number of clips of a class; with 1, ``auto`` is another method.

    Raises:
        InputError: an operation of the method cannot be converted.
    """
    if shots == 1:  # one clip is exported as several, unless the method then prepares other tensors
        one, several = (_example(model, 3, most, 5)[0] for most in (1, 2))
        shots = 1 if set(one) != set(several) else 2
    sizes_of = ((3, 2, 5), (4, 7, 11)) if shots > 1 else ((3, 1, 5), (4, 1, 11))
    (support, query, mask), other = (_example(model, *sizes) for sizes in sizes_of)
    matching = MatchingOfPrepared(model, qc_weight, list(support), list(query), masked=mask is not None).eval()
    inputs = dict(zip(matching.names, _flat(support, query, mask), strict=True))
    axes: dict[tuple[int, int], Any] = {}  # axes with the same two sizes are one axis, such as the classes
    shapes = tuple(
        {
            axis: axes.setdefault(sizes, torch.export.Dim(_AXES.get(sizes[0], f"axis_{sizes[0]}")))
            for axis, sizes in enumerate(zip(tensor.shape, larger.shape, strict=True))
            if sizes[0] != sizes[1]
        }
        for tensor, larger in zip(inputs.values(), _flat(*other), strict=True)
    )
    export_module(matching, inputs, (shapes,), ["logits"], path, f"matching {model.head.matching_name!r}")


def example_arrays(support: SupportSet) -> tuple[dict[str, np.ndarray], list[list[int]]]:
    """Prepare a support set for the exported matching.

    Returns:
        Arrays by the names of the inputs of `MatchingOfPrepared`, such as ``0/support.keys`` for the first group of
        classes; the classes of each group, as positions in `SupportSet.labels`.
    """
    arrays: dict[str, np.ndarray] = {}
    chunks = support.chunks()
    for number, chunk in enumerate(chunks):
        prepared, mask = _without_absent(support.model, chunk.prepared, chunk.features, chunk.mask)
        tensors = {SUPPORT + name: tensor for name, tensor in prepared.items()}
        tensors |= {} if mask is None else {PRESENT: mask}
        arrays |= {f"{number}/{name}": tensor.numpy() for name, tensor in tensors.items()}
    return arrays, [chunk.columns for chunk in chunks]


def _without_absent(
    model: STRM, prepared: Encoded, support: Encoded, shot_mask: Tensor | None
) -> tuple[Encoded, Tensor | None]:
    """Remove absent clips from a prepared support, or return it with its mask if the matching needs one.

    Raises:
        InputError: the method has removed them, but QC needs them and the mask.
    """
    if shot_mask is None:
        shot_mask = torch.ones(next(iter(support.values())).shape[:2], dtype=torch.bool)
    without = model.head.matching.without_absent(prepared, shot_mask)
    if without is None:
        return prepared, shot_mask
    if model.head.qc is not None:
        raise InputError(f"matching {model.head.matching_name!r} with query_class cannot be exported")
    return without, None


def takes_any_examples(model: STRM) -> bool:
    """Whether the matching computes nothing from the support alone, so that examples can be chosen after the export."""
    return type(model.head.matching).prepare is Matching.prepare


@torch.no_grad()
def _example(model: STRM, way: int, shots: int, queries: int) -> tuple[Encoded, Encoded, Tensor | None]:
    """Build a prepared support and queries of random numbers."""
    generator = torch.Generator().manual_seed(0)

    def clips(*leading: int) -> Encoded:
        shapes = {name: (*leading, *tensor.shape) for name, tensor in blank_clip(model).items()}
        return {name: torch.randn(shape, generator=generator) / math.prod(shape[1:]) for name, shape in shapes.items()}

    support = clips(way, shots)
    prepared, mask = _without_absent(model, model.head.prepare(support), support, None)
    return prepared, clips(queries), mask


def _flat(support: Encoded, query: Encoded, mask: Tensor | None) -> list[Tensor]:
    return [*support.values(), *query.values(), *([] if mask is None else [mask])]


def export_module(
    module: nn.Module, inputs: Encoded, shapes: Any, outputs: Sequence[str], path: Path, what: str
) -> None:
    """Write a module in evaluation mode as ONNX.

    Args:
        module: the module.
        inputs: examples of its inputs, in order, by name.
        shapes: dynamic axes, see `torch.export.export`.
        outputs: names of its outputs.
        path: file to write; weights of more than 1.5 GB are written to a second file beside it.
        what: name of the module, for the message of an error.

    Raises:
        InputError: an operation cannot be converted.
    """
    from onnxscript import opset18

    def adaptive_max_pool2d(maps: Any, grid: Sequence[int]) -> Any:  # torch converts it only if sizes are multiples
        sizes = maps.shape[2:]
        for axis, size, cells in zip((2, 3), sizes, grid, strict=True):
            ends = [(i * size // cells, -(-(i + 1) * size // cells)) for i in range(cells)]
            parts = [opset18.Slice(maps, [start], [end], [axis]) for start, end in ends]
            maps = opset18.Concat(*(opset18.ReduceMax(part, [axis], keepdims=1) for part in parts), axis=axis)
        return maps, maps  # the second output, the indices, is not used

    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "# The axis name")  # of an axis that several inputs share
            warnings.filterwarnings("ignore", "`isinstance.treespec", FutureWarning)  # torch 2.10 warns of its own code
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                dynamo=True,
                verbose=False,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=shapes,
                custom_translation_table={torch.ops.aten.adaptive_max_pool2d.default: adaptive_max_pool2d},
            )
    except torch.onnx.OnnxExporterError as error:
        raise InputError(f"{what} cannot be converted to ONNX: {_reason(error)}") from error
    assert program is not None
    size = sum(weight.numel() * weight.element_size() for weight in module.state_dict().values())
    program.save(path, external_data=size > LARGEST_FILE)


def _reason(error: BaseException) -> str:
    """Return the last line of the first cause of an error; torch's own message repeats the steps of the export."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).splitlines()), type(error).__name__)
