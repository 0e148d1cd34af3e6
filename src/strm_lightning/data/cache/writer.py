"""Convert a video to a clip file of the frame cache."""

import errno
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from strm_lightning.data.cache.clipfile import SUFFIX, ClipWriter
from strm_lightning.data.cache.store import CacheOptions
from strm_lightning.data.decode.image import decode_image, encode_jpeg
from strm_lightning.data.decode.video import VideoError, estimate_num_frames, read_frames, visit_frames
from strm_lightning.data.sampling import reachable_frames
from strm_lightning.data.sources.base import Listing
from strm_lightning.data.sources.frame_folders import EncodedStore
from strm_lightning.data.sources.video_files import FileListing
from strm_lightning.data.transforms import resize_short_side


class Converter:
    """Write the clip files of a frame cache; can be called from several threads.

    Args:
        listing: listing of the source videos.
        names: videos to convert.
        options: options of the cache.
        target: folder of the cache.
    """

    def __init__(self, listing: Listing, names: Sequence[str], options: CacheOptions, target: Path) -> None:
        self.listing, self.options, self.target = listing, options, target
        self.damaged: dict[str, str] = {}
        self._store: EncodedStore | None = None
        if not isinstance(listing, FileListing):
            counts = listing.count(names, progress=True)
            self.damaged = {name: reason for name, reason in counts.items() if isinstance(reason, str)}
            store = listing.open({n: count for n, count in counts.items() if isinstance(count, int)}, self.damaged)
            assert isinstance(store, EncodedStore)
            self._store = store
            self._row_of = {name: row for row, name in enumerate(store.videos)}

    def __call__(self, name: str) -> tuple[int, int]:
        """Write the clip file of a video; return the number of frames of the source and the bytes of the file.

        Raises:
            VideoError: the video cannot be read, or its name is too long.
        """
        if name in self.damaged:
            raise VideoError(self.damaged[name])
        try:
            return self._from_file(name) if self._store is None else self._from_images(name, self._store)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise VideoError(f"{name}: its name is too long for the file {name.rpartition('/')[2]}{SUFFIX}") from error

    def estimated_bytes(self, name: str) -> int:
        """Estimate the bytes of the clip file of a video.

        Raises:
            VideoError: the video cannot be read.
        """
        if name in self.damaged:
            raise VideoError(self.damaged[name])
        if self._store is None:
            path = self.listing.paths[name]
            available = estimate_num_frames(path)
            data = self._encode(read_frames(path, [0])[0].numpy())
        else:
            row = self._row_of[name]
            available = int(self._store.frame_counts[row])
            ((place, stored),) = self._store.encoded(row, [0])
            data = stored if self.options.format == "keep" else self._encode(decode_image(stored, place))
        return len(bytes(data)) * len(self._chosen(available))

    def _from_file(self, name: str) -> tuple[int, int]:
        path, expected = self.listing.paths[name], estimate_num_frames(self.listing.paths[name])
        while True:
            with ClipWriter(self.target / f"{name}{SUFFIX}") as writer:
                chosen = self._chosen(expected)
                found = visit_frames(path, set(chosen), lambda i, image: writer.add(i, self._encode(image)))
                if found == expected or chosen == self._chosen(found):
                    return found, writer.finish(source_frames=found)
            expected = found

    def _from_images(self, name: str, store: EncodedStore) -> tuple[int, int]:
        row = self._row_of[name]
        available = int(store.frame_counts[row])
        chosen = self._chosen(available)
        with ClipWriter(self.target / f"{name}{SUFFIX}") as writer:
            shape = None
            for number, (place, data) in zip(chosen, store.encoded(row, chosen), strict=True):
                image = decode_image(data, place)  # finds damage even if the bytes are kept unchanged
                shape = shape or image.shape
                if image.shape != shape:
                    raise VideoError(f"{place}: differs in size from the video's other frames")
                writer.add(number, data if self.options.format == "keep" else self._encode(image))
            return available, writer.finish(source_frames=available)

    def _encode(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"] | bytes:
        image = resize_short_side(torch.from_numpy(image)[None], self.options.short_side)[0].numpy()
        return image if self.options.format == "raw" else encode_jpeg(image, self.options.quality)

    def _chosen(self, available: int) -> list[int]:
        return reachable_frames(self.options.policies, max(available, 1), self.options.num_frames)
