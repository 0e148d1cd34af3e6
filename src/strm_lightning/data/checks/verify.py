"""Read all frames of a data set, to find damage that counting frames does not detect."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from strm_lightning.data.cache.clipfile import ClipFile
from strm_lightning.data.cache.store import CacheListing
from strm_lightning.data.decode.image import decode_image
from strm_lightning.data.decode.video import VideoError
from strm_lightning.data.sources.base import Listing
from strm_lightning.data.sources.frame_folders import EncodedStore
from strm_lightning.data.sources.video_files import FileListing


def verify(listing: Listing, frame_counts: Mapping[str, int]) -> dict[str, str]:
    """Decode every image and verify every checksum; return the error of each damaged video, by name.

    Video files are skipped, since counting their frames decodes them.

    Args:
        listing: listing of the videos.
        frame_counts: number of frames of each video, by name.
    """
    if isinstance(listing, FileListing) or not frame_counts:
        return {}
    store = listing.open(frame_counts, {})

    def damage(row: int) -> str | None:
        try:
            if isinstance(listing, CacheListing):
                with ClipFile(store.path_of(row)) as clip:
                    for entry in range(clip.kept):
                        clip.read(entry)
            elif isinstance(store, EncodedStore):
                frames = range(int(store.frame_counts[row]))
                if len({decode_image(data, place).shape for place, data in store.encoded(row, frames)}) > 1:
                    return "its frames differ in size"
        except VideoError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = range(len(store.videos))
        found = list(tqdm(pool.map(damage, rows), "Verifying", len(rows), delay=2, unit="videos"))
    return {store.videos[row]: reason for row, reason in zip(rows, found, strict=True) if reason}
