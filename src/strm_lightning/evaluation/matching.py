"""Matching of episodes whose features are in a bank."""

import torch

from strm_lightning.episode import Episode, MatchLogits
from strm_lightning.evaluation.bank import FeatureBank
from strm_lightning.models.head import STRMHead
from strm_lightning.models.matching.base import Encoded


def match_from_bank(
    head: STRMHead, bank: FeatureBank, episode: Episode, device: torch.device, *, of_queries: FeatureBank | None = None
) -> MatchLogits:
    """Compute the logits ``[B, Q, N]`` of a batch of episodes from a bank.

    On a CPU the episodes are matched one by one: the features of one episode, 14 MB at the paper's sizes, fit in the
    processor's cache, and the logits do not depend on the batch.

    Args:
        head: head of the model.
        bank: features of the videos.
        episode: a batch of episodes without clips.
        device: device to match on.
        of_queries: another bank for the queries.
    """
    of_queries = of_queries or bank
    supports, queries = episode.support_ids.cpu(), episode.query_ids.cpu()
    if device.type != "cpu":
        return head.match_encoded(_to(bank.get(supports), device), _to(of_queries.get(queries), device))
    # Without an axis for episodes, products are those of matrices, which are faster than batches of one matrix.
    found = [
        head.match_encoded(bank.get(support), of_queries.get(query))
        for support, query in zip(supports, queries, strict=True)
    ]
    qc = [logits.qc for logits in found if logits.qc is not None]
    return MatchLogits(trm=torch.stack([logits.trm for logits in found]), qc=torch.stack(qc) if qc else None)


def _to(encoded: Encoded, device: torch.device) -> Encoded:
    return {name: tensor.to(device) for name, tensor in encoded.items()}
