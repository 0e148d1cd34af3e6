"""Match episodes from a bank of features."""

import torch

from strm_lightning.episode import Episode, MatchLogits
from strm_lightning.evaluation.bank import FeatureBank
from strm_lightning.models.head import STRMHead
from strm_lightning.models.matching.base import Encoded


def match_from_bank(head: STRMHead, bank: FeatureBank, episode: Episode, device: torch.device) -> MatchLogits:
    """Logits ``[B, Q, N]`` of a batch of episodes whose videos are in a bank.

    On a CPU the episodes are matched one after the other: the features of one episode, 14 MB at the paper's sizes, stay
    in the caches, those of sixteen do not. The logits of an episode then do not depend on its batch either.
    """
    at_once = 1 if device.type == "cpu" else len(episode.index)
    supports, queries = episode.support_ids.cpu().split(at_once), episode.query_ids.cpu().split(at_once)
    found = [
        head.match_encoded(_to(bank.get(support), device), _to(bank.get(query), device))
        for support, query in zip(supports, queries, strict=True)
    ]
    qc = [logits.qc for logits in found if logits.qc is not None]
    return MatchLogits(trm=torch.cat([logits.trm for logits in found]), qc=torch.cat(qc) if qc else None)


def _to(encoded: Encoded, device: torch.device) -> Encoded:
    return {name: tensor.to(device) for name, tensor in encoded.items()}
