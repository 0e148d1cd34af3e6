"""Products of the weights of PLE, kept as long as the weights do not change."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Products(NamedTuple):
    """Weights of the layers that replace two layers in sequence, for `torch.nn.functional.linear`.

    Attributes:
        scores: ``[D, D]``, with ``linear(x, scores, scores_bias) @ x^T + linear(x, rows, rows_bias) = q k^T``.
        scores_bias: ``[D]``; None without biases.
        rows: ``[1, D]``; None without biases. Softmax ignores this constant of a row; it is computed since DDP fails if
            a parameter, here the bias of the keys, has no gradient.
        rows_bias: ``[1]``; None without biases.
        values: ``[hidden, D]``, with ``linear(x, values, values_bias) = linear(v, psi's first weight)``.
        values_bias: ``[hidden]``; None without biases.
    """

    scores: Tensor
    scores_bias: Tensor | None
    rows: Tensor | None
    rows_bias: Tensor | None
    values: Tensor
    values_bias: Tensor | None


class ProductsOfWeights:
    """Compute `Products` of query, key, value and psi's first layer, and keep them where no gradient is needed.

    Kept products are used as long as the weights give the same products with a fixed vector. That takes one pass over
    the weights in each call. It notices every change: by optimisers, `load_state_dict`, ``.to()``, and by ``.data``,
    which the version counter of a tensor does not record. Copies and pickled modules do not contain them.
    """

    def __init__(self) -> None:
        self._kept: tuple[Tensor, Products] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_kept": None}

    def get(self, query: nn.Linear, key: nn.Linear, value: nn.Linear, psi: nn.Linear, *, many: bool) -> Products | None:
        """Return the products; None if computing them takes longer than they save.

        Args:
            query: the layer of W1.
            key: the layer of W2.
            value: the layer of W3.
            psi: psi's first layer.
            many: whether the products save time if they are computed for one call.
        """
        layers = query, key, value, psi
        weights = [tensor for layer in layers for tensor in (layer.weight, layer.bias) if tensor is not None]
        learning = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)
        if learning or not all(type(weight) is nn.Parameter and weight.device.type != "meta" for weight in weights):
            return _compute(query, key, value, psi) if many else None
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(query.weight.device.type, enabled=False):
            probe = torch.cat([_probe(weight) for weight in weights])
            if self._kept is None or not _same(self._kept, probe, query.weight):
                self._kept = probe, _compute(query, key, value, psi)
            return self._kept[1]


def is_plain(layer: nn.Module) -> bool:
    """Whether calling the layer computes nothing but the linear function of its weight and bias.

    False for subclasses (adapters, quantised layers, parametrisations) and layers with hooks, and in a graph that is
    compiled or exported, where kept products would become constants and the number of patches would become fixed.
    """
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    in_graph = torch.compiler.is_compiling() or bool(torch._C._get_tracing_state())
    return type(layer) is nn.Linear and not any(hooks) and not in_graph


def _probe(weight: Tensor) -> Tensor:
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return (
        weight if weight.ndim == 1 else weight @ torch.arange(weight.shape[-1], device=weight.device).to(weight).cos()
    )


def _same(kept: tuple[Tensor, Products], probe: Tensor, like: Tensor) -> bool:
    scores = kept[1].scores
    return scores.dtype == like.dtype and scores.device == like.device and torch.equal(kept[0], probe)


def _compute(query: nn.Linear, key: nn.Linear, value: nn.Linear, psi: nn.Linear) -> Products:
    biased = query.bias is not None
    return Products(
        scores=key.weight.mT @ query.weight,
        scores_bias=query.bias @ key.weight if biased else None,
        rows=(key.bias @ query.weight).unsqueeze(0) if biased else None,
        rows_bias=(query.bias @ key.bias).unsqueeze(0) if biased else None,
        values=psi.weight @ value.weight,
        values_bias=psi.weight @ value.bias if biased else None,
    )
