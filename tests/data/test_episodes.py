"""Episodes: a pure function of seed, stage, epoch and index, whoever asks and however often."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from strm_lightning.data.episodes import EpisodeGenerator
from strm_lightning.data.loaders import ClipReader, EpisodeDataset, EpisodeLoader, EpisodeSampler, VideoDataset
from strm_lightning.data.transforms import ClipTransform
from strm_lightning.data.video_sets import VideoSet, VideoStore
from strm_lightning.episode import Episode


class CountingStore(VideoStore):
    """Frames that say which they are: red is the video's row, green the frame's number."""

    def __init__(self, videos: int, frames: int = 30) -> None:
        self.videos = [f"c{row % 7}/{row}" for row in range(videos)]
        self.frame_counts = np.full(videos, frames)
        self.unreadable = {}

    def path_of(self, row: int) -> Path:
        return Path(self.videos[row])

    def read(self, row: int, frames: list[int]) -> torch.Tensor:
        pixels = torch.zeros(len(frames), 10, 12, 3, dtype=torch.uint8)
        pixels[..., 0], pixels[..., 1] = row, torch.tensor(frames)[:, None, None]
        pixels[..., 2] = torch.arange(12) * 20
        return pixels


MEMBERS = tuple(np.arange(c, 70, 7) for c in range(7))


def generator(stage: str = "train", **options: int) -> EpisodeGenerator:
    return EpisodeGenerator(
        MEMBERS, **{"way": 4, "shot": 2, "query_per_class": 3, "stage": stage, "seed": 0, **options}
    )


def dataset(stage: str = "train", pixels: bool = True, **options: int) -> EpisodeDataset:
    videos = VideoSet(stage, CountingStore(70), tuple(f"c{c}" for c in range(7)), MEMBERS)
    reader = ClipReader(videos, 4, "segments", ClipTransform(8, flip=True, short_side=10)) if pixels else None
    return EpisodeDataset(generator(stage), reader, **options)


def same(a: Episode, b: Episode) -> bool:
    pairs = zip(vars(a).values(), vars(b).values(), strict=True)
    return all(torch.equal(x, y) if x is not None else y is None for x, y in pairs)


def test_an_episode_has_its_classes_and_disjoint_clips() -> None:
    for index in range(50):
        episode, _ = generator().draw(3, index)
        assert len(set(episode.class_ids.tolist())) == 4
        assert torch.equal(episode.support_ids % 7, episode.class_ids[:, None].expand(-1, 2))
        assert torch.equal(episode.query_ids % 7, episode.class_ids[episode.query_labels])
        rows = torch.cat([episode.support_ids.flatten(), episode.query_ids])
        assert len(rows.unique()) == 4 * (2 + 3)


def test_all_classes_and_clips_come_up_alike() -> None:
    counts = np.zeros(70)
    for index in range(2000):
        episode, _ = generator().draw(0, index)
        np.add.at(counts, torch.cat([episode.support_ids.flatten(), episode.query_ids]).numpy(), 1)
    expected = 2000 * 20 / 70
    assert np.abs(counts - expected).max() < 5 * expected**0.5


def test_an_episode_is_pinned_for_all_time() -> None:
    """Two papers years apart test on the same episodes: these very numbers, on any machine and Python."""
    episode, rng = generator("test", seed=7).draw(0, 123)
    assert episode.class_ids.tolist() == [1, 4, 0, 3]
    assert episode.query_ids.tolist() == [64, 57, 50, 60, 67, 39, 0, 35, 14, 3, 10, 52]
    assert rng.random() == 0.1454085398332169


def test_seed_stage_epoch_and_index_each_matter() -> None:
    keys = [("train", 0, 0, 0), ("train", 1, 0, 0), ("train", 0, 1, 0), ("train", 0, 0, 1), ("val", 0, 0, 0)]
    keys.append(("test", 0, 0, 0))
    draws = [generator(stage, seed=seed).draw(e, i)[0].query_ids.tolist() for stage, seed, e, i in keys]
    assert len({tuple(d) for d in draws}) == len(draws)


@pytest.mark.parametrize("stage", ["val", "test"])
def test_evaluation_never_changes(stage: str) -> None:
    assert same(dataset(stage)[0, 5], dataset(stage)[9, 5])


def test_workers_change_nothing() -> None:
    loaders = [EpisodeLoader(dataset(num_episodes=6), batch_size=2, num_workers=n) for n in (0, 2)]
    for alone, shared in zip(*loaders, strict=True):
        assert same(alone, shared)
        assert alone.support.shape == (2, 4, 2, 4, 3, 8, 8)


def test_clips_are_of_the_videos_that_the_episode_names() -> None:
    episode = dataset()[2, 1]
    assert torch.equal(episode.support[:, :, 0, 0, 0, 0].long(), episode.support_ids)
    assert torch.equal(episode.query[:, 0, 0, 0, 0].long(), episode.query_ids)
    frames = episode.query[:, :, 1, 0, 0].int()
    assert (frames.diff(dim=1) > 0).all()  # in order of time
    blue = episode.query[:, :, 2]
    assert torch.equal(blue, blue[:, :1].expand_as(blue))  # one crop and one flip for a clip


@pytest.mark.parametrize(("world", "batch"), [(1, 1), (2, 1), (3, 2)])
def test_ranks_share_the_indices(world: int, batch: int) -> None:
    train = [list(EpisodeSampler(17, batch, training=True, rank=r, world_size=world)) for r in range(world)]
    indices = [index for keys in train for _, index in keys]
    assert len({len(keys) for keys in train}) == 1
    assert len(indices) == len(set(indices)) == 17 // (world * batch) * world * batch

    test = [list(EpisodeSampler(17, batch, training=False, rank=r, world_size=world)) for r in range(world)]
    indices = sorted(index for keys in test for _, index in keys)
    assert len({len(keys) for keys in test}) == 1
    assert indices == list(range(len(indices)))
    assert 17 <= len(indices) < 17 + world * batch


def test_a_resumed_epoch_goes_on_where_it_was() -> None:
    def loader(epoch: int) -> EpisodeLoader:
        loader = EpisodeLoader(dataset(pixels=False, num_episodes=10), batch_size=2)
        loader.keys.set_epoch(epoch)
        return loader

    whole, cut, resumed = loader(3), loader(3), loader(3)
    batches = iter(cut)
    for _ in range(2):
        next(batches)
    resumed.load_state_dict(cut.state_dict())
    rest = list(resumed)
    assert len(rest) == 3
    assert all(same(a, b) for a, b in zip(rest, list(whole)[2:], strict=True))
    resumed.keys.set_epoch(4)
    assert len(list(resumed)) == len(resumed) == 5


def ranks(world: int, batch: int, **options: int) -> list[EpisodeLoader]:
    """A loader for each process."""
    keys = [EpisodeSampler(24, batch, training=True, rank=rank, world_size=world) for rank in range(world)]
    return [EpisodeLoader(dataset(pixels=False, num_episodes=24), batch_size=batch, sampler=k) for k in keys]


def drawn(loader: EpisodeLoader, batches: int | None = None) -> list[int]:
    return [index for batch in islice(loader, batches) for index in batch.index.tolist()]


@pytest.mark.parametrize(("before", "after"), [((1, 4), (1, 2)), ((1, 2), (1, 3)), ((2, 2), (3, 1)), ((1, 8), (2, 2))])
def test_another_batch_size_or_world_continues_after_the_same_episodes(
    before: tuple[int, int], after: tuple[int, int]
) -> None:
    first = ranks(*before)
    done = [index for loader in first for index in drawn(loader, 2)]
    assert sorted(done) == list(range(2 * before[0] * before[1]))
    states = [loader.state_dict() for loader in first]
    assert all(state == states[0] for state in states)
    rest = []
    for loader in ranks(*after):
        loader.load_state_dict(states[0])
        rest += drawn(loader)
    steps = (24 - len(done)) // (after[0] * after[1])
    assert sorted(rest) == list(range(len(done), len(done) + steps * after[0] * after[1]))


def test_states_of_version_0_1_continue_after_their_steps() -> None:
    (loader,) = ranks(1, 4)
    loader.load_state_dict({"epoch": 2, "steps": 3})
    assert drawn(loader) == list(range(12, 24))
    assert loader.keys.epoch == 2
    assert loader.state_dict() == {"epoch": 2, "episodes": 24, "step_episodes": 4}


def test_a_finished_epoch_is_followed_by_the_next() -> None:
    (loader,), (resumed,) = ranks(1, 10), ranks(1, 4)
    drawn(loader)  # 20 of 24: the rest is too few for a step
    resumed.load_state_dict(loader.state_dict())
    assert drawn(resumed) == list(range(24))
    assert resumed.keys.epoch == 1
    resumed.keys.set_epoch(2)
    assert resumed.state_dict() == {"epoch": 2, "episodes": 0, "step_episodes": 4}


def test_a_plain_loop_sees_other_episodes_in_each_epoch() -> None:
    loader = EpisodeLoader(dataset(pixels=False, num_episodes=4), batch_size=2)
    epochs = [torch.cat([batch.query_ids for batch in loader]) for _ in range(3)]
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])
    loader.keys.set_epoch(1)
    assert torch.equal(torch.cat([batch.query_ids for batch in loader]), epochs[1])
    next(iter(loader))  # an epoch that is broken off is over
    assert torch.equal(next(iter(loader)).index, torch.tensor([0, 1]))
    assert loader.keys.epoch == 3


def test_without_pixels_views_are_drawn() -> None:
    episode = dataset(pixels=False, views=3)[0, 0]
    assert episode.support is None
    views = torch.cat([dataset(pixels=False, views=3)[0, i].query_views for i in range(20)])
    assert set(views.tolist()) == {0, 1, 2}
    assert same(episode, dataset(pixels=False, views=3)[0, 0])


def test_a_bank_sees_the_test_choice_or_fixed_views() -> None:
    reader = dataset().reader
    plain = VideoDataset(reader, [(4, 0)])
    expected = torch.empty(reader.shape, dtype=torch.uint8)
    reader.read(4, None, expected)
    assert torch.equal(plain[0][1], expected)
    views = VideoDataset(reader, [(4, 0), (4, 1), (4, 0)], seed=0)
    assert torch.equal(views[0][1], views[2][1])
    assert not torch.equal(views[0][1], views[1][1])
