"""Match episodes from a bank of features."""

import torch
from torch import Tensor

from strm_lightning.episode import Episode, MatchLogits, TupleFeatures
from strm_lightning.evaluation.bank import FeatureBank
from strm_lightning.models.head import STRMHead


def match_from_bank(
    head: STRMHead, bank: FeatureBank[TupleFeatures], episode: Episode, device: torch.device
) -> MatchLogits:
    """Logits ``[B, Q, N]`` of a batch of episodes whose videos are in a bank.

    On a CPU they are matched one after the other: the features of one episode, 14 MB at the paper's sizes, stay in the
    caches and in memory that is there already, those of sixteen do not. An episode's logits then do not depend on
    which others it came with, either.
    """
    at_once = 1 if device.type == "cpu" else len(episode.index)
    supports, queries = episode.support_ids.cpu().split(at_once), episode.query_ids.cpu().split(at_once)
    found = [
        head.match_tuples(bank.get(support).to(device), bank.get(query).to(device))
        for support, query in zip(supports, queries, strict=True)
    ]
    qc: list[Tensor] = [logits.qc for logits in found if logits.qc is not None]
    return MatchLogits(trm=torch.cat([logits.trm for logits in found]), qc=torch.cat(qc) if qc else None)
