"""Encode videos: threads read ahead, the model encodes in batches."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from itertools import islice

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional as F

from strm_lightning.classifier.clips import Preprocessing, Video, read_clip, video_name
from strm_lightning.classifier.support import EncodedClip
from strm_lightning.data.decode.video import VideoError
from strm_lightning.models.strm import STRM

_THUMBNAIL = 112  # pixels
_NamedClip = tuple[str, UInt8[Tensor, "L 3 S S"]]


def encode_each(
    videos: Iterable[Video], model: STRM, how: Preprocessing, *, batch_size: int = 4, jobs: int = 1
) -> Iterator[EncodedClip | VideoError]:
    """Encode videos in their order; of one that cannot be read, yield what is wrong with it.

    Args:
        videos: any number of them; a few are read ahead.
        model: encodes the clips.
        how: size and number of frames of a clip.
        batch_size: clips encoded at once.
        jobs: videos read at once, each by a thread of its own.
    """

    def read(video: Video) -> _NamedClip | VideoError:
        try:
            pixels = read_clip(video, how)
        except VideoError as error:
            return error
        return video_name(video), pixels

    with ThreadPoolExecutor(jobs) as pool:
        coming, waiting = iter(videos), deque[Future[_NamedClip | VideoError]]()

        def fill() -> None:
            waiting.extend(pool.submit(read, video) for video in islice(coming, batch_size + jobs - len(waiting)))

        fill()
        while waiting:
            batch = [waiting.popleft().result() for _ in range(min(batch_size, len(waiting)))]
            fill()
            encoded = iter(encode([clip for clip in batch if not isinstance(clip, VideoError)], model))
            for clip in batch:
                yield clip if isinstance(clip, VideoError) else next(encoded)


@torch.inference_mode()
def encode(clips: Sequence[_NamedClip], model: STRM) -> list[EncodedClip]:
    """Encode clips that have been read, in one batch."""
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
