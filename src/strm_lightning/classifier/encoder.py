"""Encode videos in batches while threads read the next ones."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from itertools import islice

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional as F

from strm_lightning.classifier.clips import ClipConfig, read_clip
from strm_lightning.classifier.support import EncodedClip
from strm_lightning.classifier.videos import Video, duration_of, video_name
from strm_lightning.data.decode.video import VideoError
from strm_lightning.models.strm import STRM

_THUMBNAIL = 112  # pixels
_NamedClip = tuple[str, UInt8[Tensor, "L 3 S S"]]
_TimedClip = tuple[_NamedClip, float | None]  # and its duration


def encode_each(
    videos: Iterable[Video], model: STRM, config: ClipConfig, *, batch_size: int = 4, jobs: int = 1
) -> Iterator[EncodedClip | VideoError]:
    """Encode videos in order; yield the `VideoError` of a video that cannot be read.

    Args:
        videos: iterated lazily; ``batch_size + jobs`` videos are read ahead.
        model: the model.
        config: size and number of frames of a clip.
        batch_size: number of clips in a forward pass.
        jobs: number of threads that read videos.
    """

    def read(video: Video) -> _TimedClip | VideoError:
        try:
            pixels = read_clip(video, config)
            duration = duration_of(video)
        except VideoError as error:
            return error
        return (video_name(video), pixels), duration

    with ThreadPoolExecutor(jobs) as pool:
        remaining, pending = iter(videos), deque[Future[_TimedClip | VideoError]]()

        def fill() -> None:
            pending.extend(pool.submit(read, video) for video in islice(remaining, batch_size + jobs - len(pending)))

        fill()
        while pending:
            batch = [pending.popleft().result() for _ in range(min(batch_size, len(pending)))]
            fill()
            encoded = iter(encode([clip[0] for clip in batch if not isinstance(clip, VideoError)], model))
            for clip in batch:
                yield clip if isinstance(clip, VideoError) else replace(next(encoded), duration=clip[1])


@torch.inference_mode()
def encode(clips: Sequence[_NamedClip], model: STRM) -> list[EncodedClip]:
    """Encode named clips in one batch."""
    if not clips:
        return []
    device = next(model.parameters()).device
    pixels = torch.stack([clip for _, clip in clips]).to(device)
    features = model.head.encode(model.encode(pixels))
    return [
        EncodedClip(
            name=name,
            digest=sha256(pixels.numpy().tobytes()).hexdigest()[:16],
            thumbnail=F.interpolate(pixels.float(), _THUMBNAIL, mode="area").round().to(torch.uint8),
            features={key: tensor[i] for key, tensor in features.items()},
        )
        for i, (name, pixels) in enumerate(clips)
    ]
