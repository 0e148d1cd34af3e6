"""Base class of matching methods, and the registry of methods by name.

A matching method computes logits from the features of an episode. The same class is used in training, testing,
comparison, explanation and the classifier. A new method is one class::

    @register_matching("prototype")
    class Prototype(Matching):
        def encode(self, clip):
            return {"mean": clip.frame_level.mean(-2, keepdim=True)}

        def match(self, support, query, shot_mask=None):
            means = prototypes(support["mean"], shot_mask)  # [..., N, 1, D], of `matching.shots`
            return {"prototype": -torch.cdist(query["mean"].squeeze(-2), means.squeeze(-2))}
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, TypeAlias, TypeVar, Union, get_args, get_origin

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from strm_lightning.episode import VideoFeatures
from strm_lightning.errors import InputError, InputTypeError
from strm_lightning.messages import did_you_mean
from strm_lightning.models.matching.shots import mean_over_shots

Encoded: TypeAlias = dict[str, Tensor]
"""Output of `Matching.encode`: tensors by name, with the leading axes of the clips."""

_PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True)
class FeatureSpec:
    """Sizes of the input features of a matching method.

    Attributes:
        dim: channels D of a patch and of a time step.
        steps: time steps L of a clip; with a video backbone fewer than frames.
        patches: patches of a time step, P*P.
        variant: ``paper`` or ``official``, see `STRMHead`.
        stages: channels of each stage of the backbone, whose sum is ``dim``; empty for one stage.
    """

    dim: int
    steps: int
    patches: int
    variant: str = "paper"
    stages: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Decomposition of the logit of one query for one class: ``contributions.sum() + offset``.

    Attributes:
        contributions: contribution of each support clip and pair of time steps (query, support), ``[K, L, L]``.
        weights: non-negative strength of each match, for pictures, ``[K, L, L]``.
        kind: kind of the weights for captions, such as ``attention``, ``alignment`` or ``similarity``.
        offset: part of the logit that is not assigned to a pair.
        strongest: the strongest match as (query steps, clip, support steps, weight), or None.
    """

    contributions: Float[Tensor, "K L M"]
    weights: Float[Tensor, "K L M"]
    kind: str
    offset: float = 0.0
    strongest: tuple[tuple[int, ...], int, tuple[int, ...], float] | None = None

    @property
    def logit(self) -> float:
        """Sum of the contributions and the offset."""
        return float(self.contributions.double().sum()) + self.offset

    @property
    def clip_scores(self) -> Float[Tensor, " K"]:
        """Weight of each support clip, ``[K]``."""
        return self.weights.sum((1, 2))


class Matching(nn.Module):
    """Base class of matching methods.

    `encode` processes each clip separately, `match` an episode. Both are stateless. Options are keyword arguments of
    ``__init__`` with plain values, which checkpoints store.

    Args:
        spec: sizes of the features.

    Attributes:
        reads: features that `encode` reads: a subset of ``maps`` (pooled maps of the backbone), ``patches`` (after PLE
            if it is on), ``patch_level`` (H) and ``frame_level`` (E). Only these are computed. If it depends on
            options, a subclass sets it in ``__init__``.
        per_class: whether the logit of a class depends only on the support clips of that class; classes are then
            matched in chunks.
        per_query: whether each query is matched separately; False for transductive methods.
        version: version of `encode`; increase it when the encoded tensors change, so that stored banks are recomputed.
        temperature: see `default_temperature`.
        options: options of this instance, as plain values.
    """

    reads: frozenset[str] = frozenset({"frame_level"})
    per_class: ClassVar[bool] = True
    per_query: ClassVar[bool] = True
    version: ClassVar[int] = 1
    temperature: float = 1.0

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        self.spec = spec
        self.options: dict[str, Any] = {}

    def encode(self, clip: VideoFeatures) -> Encoded:
        """Compute the tensors that `match` needs, for each clip separately.

        Args:
            clip: features of clips with any leading axes; those in `reads` are not None.

        Returns:
            Tensors by name with the same leading axes.
        """
        raise NotImplementedError

    def match(
        self, support: Encoded, query: Encoded, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> dict[str, Tensor]:
        """Compute the logits of each query for each class.

        Args:
            support: encoded clips with leading axes ``[..., N, K]``.
            query: encoded clips with leading axes ``[..., Q]``.
            shot_mask: True where a support clip exists. Absent clips must have no effect, even if they contain NaN.

        Returns:
            Logits by name, ``[..., Q, N]``; their sum is the logit of the method.
        """
        raise NotImplementedError

    def prepare(self, support: Encoded, shot_mask: Bool[Tensor, "*B N K"] | None = None) -> Encoded:
        """Compute what depends only on the support, so that many queries can be matched with it.

        Returns:
            The support of `match_prepared`: tensors by name. By default, ``support`` itself.
        """
        return support

    def match_prepared(
        self, prepared: Encoded, query: Encoded, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> dict[str, Tensor]:
        """Compute `match` from the result of `prepare` with the same ``shot_mask``."""
        return self.match(prepared, query, shot_mask)

    def without_absent(self, prepared: Encoded, shot_mask: Bool[Tensor, "N K"]) -> Encoded | None:
        """Remove absent clips from the result of `prepare` for one episode, so that `match_prepared` needs no mask.

        Returns None if `match_prepared` always needs the mask.
        """
        return None

    def leave_out(
        self, prepared: Encoded, folds: Int[Tensor, "N K"], shot_mask: Bool[Tensor, "N K"] | None = None
    ) -> Float[Tensor, "N K N"] | None:
        """Compute the logits of each support clip for the support without the clips of its fold.

        A method overrides it if it can do this with less work than one match for each fold.

        Args:
            prepared: result of `prepare` for a support ``[N, K]``.
            folds: number of the fold of each clip; below 0 for clips that are never left out.
            shot_mask: True where a support clip exists.

        Returns:
            Logits of each clip, ``[N, K, N]``, with -inf for classes of which all clips are in the fold; those of clips
            without fold have no meaning. None if not supported.
        """
        return None

    def default_temperature(self, shots: Sequence[int]) -> float:
        """Return the divisor of the logits in the classifier if none is fitted, for classes with these shots."""
        return self.temperature

    def clip_scores(self, support: Encoded, query: Encoded) -> Float[Tensor, "Q V"] | None:
        """Compute the score of each query and support clip, ``[Q, V]``, if a logit is the mean score over clips.

        Returns None for other methods. Leave-one-out evaluation and intervals over clips use this matrix instead of
        matching again.
        """
        return None

    def pair_scores(self, support: Encoded, query: Encoded) -> Encoded | None:
        """Compute the scores of each query and support clip, ``[Q, V]`` by name, if `match_scores` needs nothing else.

        Any number of episodes are then matched from these matrices. None for other methods.
        """
        scores = self.clip_scores(support, query)
        return None if scores is None else {"score": scores}

    def match_scores(
        self, own: Encoded, cross: Encoded, way: int, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> Float[Tensor, "*B Q N"]:
        """Compute the logits of episodes from `pair_scores`.

        Args:
            own: scores of the support clips with each other, ``[..., S, S]``, ordered by class: ``S = N K``.
            cross: scores of the queries and support clips, ``[..., Q, S]``.
            way: number of classes N.
            shot_mask: True where a support clip exists.
        """
        return mean_over_shots(cross["score"], way, shot_mask)

    def explain(
        self, support: Encoded, query: Encoded, label: int, shot_mask: Bool[Tensor, "N K"] | None = None
    ) -> dict[str, Evidence] | None:
        """Decompose each named logit of one query for one class; None if the method does not support it.

        Args:
            support: encoded clips ``[N, K]``; methods with their own `prepare` also accept its result.
            query: one encoded clip, without leading axis.
            label: the class, 0 .. N-1.
            shot_mask: True where a support clip exists.
        """
        return None

    def floats_per_pair(self, encoded: Encoded) -> int:
        """Return the peak number of floats for matching one query with one support clip, to choose chunk sizes.

        Args:
            encoded: clips with one leading axis.
        """
        return max(tensor[0].numel() for tensor in encoded.values())


def spread_over_steps(
    values: Float[Tensor, "T K J"], members: Int[Tensor, "w T"], steps: int
) -> Float[Tensor, "K L L"]:
    """Distribute the value of each pair of tuples equally over the pairs of time steps at the same tuple position.

    Args:
        values: value of each query tuple, support clip and support tuple, ``[T, K, T]``.
        members: time steps of each tuple, ``[w, T]``.
        steps: time steps L of a clip.
    """
    one_hot = F.one_hot(members, steps).to(values.dtype)  # [w, T, L]
    return torch.einsum("tkj,wtl,wjm->klm", values, one_hot, one_hot) / len(members)


_registry: dict[str, type[Matching]] = {}
Method = TypeVar("Method", bound=type[Matching])


def register_matching(name: str) -> Callable[[Method], Method]:
    """Class decorator that registers a `Matching` as ``matching: name``.

    Args:
        name: a Python identifier that no other method has.

    Raises:
        InputError: the name is registered already or is no identifier, ``__init__`` does not take the spec, or an
            option is not keyword-only with a default value.
        InputTypeError: the class is not a `Matching`.
    """

    def register(method: Method) -> Method:
        if not name.isidentifier():
            raise InputError(f"matching {name!r}: a name consists of letters, digits and underscores")
        if not issubclass(method, Matching):
            raise InputTypeError(f"matching {name!r}: {_place(method)} is no subclass of Matching")
        parameters = list(inspect.signature(method.__init__).parameters.values())
        if len(parameters) < 2 or parameters[1].kind not in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ):
            raise InputError(f"matching {name!r}: __init__ of {_place(method)} must take the spec first")
        other = _registry.get(name)
        if other is not None and not _is_redefinition(other, method):
            raise InputError(f"matching {name!r} is registered twice: by {_place(other)} and by {_place(method)}")
        unclear = [p.name for p in _options_of(method).values() if p.kind is not p.KEYWORD_ONLY or p.default is p.empty]
        if unclear:
            raise InputError(
                f"matching {name!r}: option {unclear[0]!r} of {_place(method)} must be keyword-only with a default "
                "value: def __init__(self, spec, *, option=value)"
            )
        _registry[name] = method
        return method

    return register


def build_matching(name: str, spec: FeatureSpec, options: Mapping[str, Any] | None = None) -> Matching:
    """Build a registered method.

    Args:
        name: name of the method.
        spec: sizes of the features.
        options: options of the method.

    Raises:
        InputError: the name is not registered, the method has no such option, or a value is of the wrong type.
    """
    if name not in _registry:
        raise InputError(
            f"matching {name!r} is not registered: {did_you_mean(name, _registry)}registered are "
            f"{', '.join(matching_names())}; --import FILE_OR_MODULE (in Python: import it) registers your own"
        )
    method, options = _registry[name], dict(options or {})
    known = matching_options(name)
    for option in options:
        if option not in known:
            has = f"its options are {', '.join(known)}" if known else "it has none"
            raise InputError(
                f"matching_options: {name!r} has no option {option!r}; {did_you_mean(option, known)}{has} "
                "(an earlier YAML may have set options of another method)"
            )
        _check_value(name, option, options[option], _options_of(method)[option].annotation)
    matching = method(spec, **options)
    matching.options = options
    return matching


def matching_names() -> list[str]:
    """Return the names of all registered methods, sorted."""
    return sorted(_registry)


def matching_options(name: str) -> dict[str, Any]:
    """Return the options of a registered method with their defaults."""
    return {option: p.default for option, p in _options_of(_registry[name]).items()}


def matching_class(name: str) -> type[Matching]:
    """Return the class of a registered method."""
    return _registry[name]


def source_hash(method: type[Matching]) -> str:
    """Return the SHA-256 of the file that defines a user's method; empty for methods of this package.

    Stored features of a user's method are only valid for the same source.
    """
    if method.__module__.partition(".")[0] == _PACKAGE:
        return ""
    try:
        source = Path(inspect.getfile(method)).read_bytes()
    except (OSError, TypeError):  # defined in a notebook or an interactive session
        try:
            source = inspect.getsource(method).encode()
        except (OSError, TypeError):
            source = repr(sorted(vars(method))).encode()
    return sha256(source).hexdigest()


_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a text"),
    Sequence: ((list, tuple), "a list"),
    list: ((list, tuple), "a list"),
    tuple: ((list, tuple), "a list"),
    NoneType: ((NoneType,), "null"),
}


def _check_value(name: str, option: str, value: Any, annotation: Any) -> None:
    """Refuse a value of another type than the option's annotation, as far as it names plain types.

    The options are one dictionary to the command line, which therefore checks no value.
    """
    choices = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    choices = tuple(get_origin(choice) or choice for choice in choices)
    if not all(choice in _KINDS for choice in choices):
        return
    for choice in choices:
        if isinstance(value, _KINDS[choice][0]) and (choice is bool or not isinstance(value, bool)):
            return
    wanted = " or ".join(_KINDS[choice][1] for choice in choices)
    raise InputError(f"matching_options: {option} of {name!r} is {value!r}: give {wanted}")


def _options_of(method: type[Matching]) -> dict[str, inspect.Parameter]:
    parameters = list(inspect.signature(method.__init__).parameters.values())
    return {p.name: p for p in parameters[2:]}  # without self and spec


def _is_redefinition(old: type, new: type) -> bool:
    """Whether a notebook cell or an interactive session defines the same class again."""
    return old.__module__ == new.__module__ == "__main__" and old.__qualname__ == new.__qualname__


def _place(method: type) -> str:
    return f"{method.__module__}.{method.__qualname__}"
