"""Videos with recording boundaries, clips sampled from them, and detection of the boundaries."""

import pytest
import torch

from cvae_lab.data import Clip, ClipSampler, Video, load, read_folder
from cvae_lab.data.clips import find_boundaries, frame_changes


def numbered(n, boundaries=(), name="v"):
    """Return a video in which frame k has grey level k and its label has k + 100. The pixels identify the frame."""
    frames = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 3, 2, 4).contiguous()
    return Video(frames, frames + 100, boundaries, name)


def levels(pictures):
    return (pictures[..., 0, 0, 0] * 255).round().long()


def sampler(video, seed=0, **options):
    options = {"n_frames": 4, "batch_size": 3, "reference_frame": "first"} | options
    return ClipSampler(video, generator=torch.Generator().manual_seed(seed), **options)


def test_recordings_are_the_frames_between_boundaries():
    assert numbered(10, (3, 7)).recordings == [(0, 3), (3, 7), (7, 10)]
    assert numbered(10).recordings == [(0, 10)]
    empty = torch.zeros(0, 3, 2, 4, dtype=torch.uint8)
    assert Video(empty, empty).recordings == []


def test_clip_starts_are_exactly_those_inside_a_recording():
    video = numbered(40, (3, 17, 20))
    inside = [
        s
        for s in range(40)
        for t in [range(s, s + 5)]
        if t[-1] < 40 and not any(c in t[1:] for c in video.boundaries)
    ]
    assert video.clip_starts(5).tolist() == inside


def test_a_clip_too_long_for_every_recording_is_refused():
    with pytest.raises(
        ValueError, match=r"clip of 8 frames, because the longest recording has 7; use clips of 7"
    ):
        numbered(10, (7,)).clip_starts(8)


@pytest.mark.parametrize("boundaries", [(0,), (10,), (5, 5), (6, 4), (-1,)])
def test_boundaries_must_increase_inside_the_video(boundaries):
    with pytest.raises(ValueError, match=r"boundaries .* must increase, from 1 to 9"):
        numbered(10, boundaries)


def test_video_refuses_unequal_lengths_and_floats():
    frames = numbered(10).frames
    # TypeError comes from the shape annotations, which are checked in tests only.
    with pytest.raises((ValueError, TypeError), match="frames"):
        Video(frames, frames[:9])
    with pytest.raises((ValueError, TypeError), match="frames"):
        Video(frames.float(), frames.float())


def test_hold_out_splits_every_recording_and_keeps_the_boundaries():
    video = numbered(100, (40, 50))
    kept, held = video.hold_out(0.25, min_frames=8)
    # Recordings 0-40, 40-50, 50-100. A quarter is 10 and 12 frames. The recording of 10 frames is not split, because
    # it is too short to hold out 8 frames and keep 8.
    assert kept.frames[:, 0, 0, 0].tolist() == [*range(30), *range(40, 50), *range(50, 88)]
    assert held.frames[:, 0, 0, 0].tolist() == [*range(30, 40), *range(88, 100)]
    assert (kept.boundaries, held.boundaries) == ((30, 40), (10,))
    assert torch.equal(held.labels, held.frames + 100)


def test_hold_out_refuses_a_video_that_is_too_short():
    with pytest.raises(ValueError, match="no recording is long enough to hold out 16 frames"):
        numbered(30).hold_out()
    with pytest.raises(ValueError, match="fraction between 0 and 1"):
        numbered(90).hold_out(1.5)


def test_as_clips_returns_one_task_per_recording():
    first, second = numbered(10, (4,), "val").as_clips()
    assert (first.name, second.name, len(first), len(second)) == ("val0", "val1", 4, 6)
    assert torch.equal(second.answer[0], second.first)
    assert second.labels[:, 0, 0, 0].tolist() == list(range(104, 110))


def test_a_clip_needs_two_labels_and_an_answer_that_begins_with_its_first_frame():
    v = numbered(5)
    with pytest.raises(ValueError, match="two labels or more"):
        Clip("3", v.frames[0], v.labels[:1])
    with pytest.raises(ValueError, match="must begin with the first frame"):
        Clip("3", v.frames[1], v.labels, v.frames)


def test_an_epoch_of_all_clips_has_every_start_once_and_crosses_no_boundary():
    video = numbered(30, (11, 19))
    starts = video.clip_starts(4)
    batches = list(sampler(video, clips_per_epoch=len(starts)).epoch())
    x, p = torch.cat([b.x for b in batches]), torch.cat([b.p for b in batches])
    assert sorted(levels(x)[:, 0].tolist()) == starts.tolist()
    assert torch.equal(levels(x), levels(x)[:, :1] + torch.arange(4))
    assert torch.equal(levels(p), levels(x) + 100)
    assert not any(c in clip[1:] for clip in levels(x).tolist() for c in video.boundaries)


def test_a_default_epoch_shows_each_frame_about_once_in_whole_batches():
    s = sampler(numbered(90))
    batches = list(s.epoch())
    assert len(batches) == len(s) == 10  # 90 frames / 3 predicted frames per clip = 30 clips, in batches of 3
    assert {len(b.x) for b in batches} == {3}
    assert levels(torch.cat([b.x for b in batches]))[:, 0].unique().numel() == 30


def test_the_order_depends_on_the_generator_only_and_resumes_between_epochs():
    def epoch(s):
        return torch.cat([torch.cat([levels(b.x)[:, 0], levels(b.x)[:, 1]]) for b in s.epoch()])

    a, b, other = sampler(numbered(90)), sampler(numbered(90)), sampler(numbered(90), seed=1)
    first = epoch(a)
    torch.rand(3)  # the global generator has no influence
    assert torch.equal(first, epoch(b))
    assert not torch.equal(first, epoch(other))
    state = a.generator.get_state()
    second = epoch(a)
    assert not torch.equal(first, second)
    b.generator.set_state(state)
    assert torch.equal(second, epoch(b))


def test_random_reference_frames_come_from_the_same_recording_and_cover_it():
    video = numbered(30, (11, 19))
    s = sampler(video, clips_per_epoch=len(video.clip_starts(4)), reference_frame="random")
    seen = set()
    for _ in range(20):
        for batch in s.epoch():
            for reference, first, *_ in levels(batch.x).tolist():
                assert any(a <= reference < b and a < first < b for a, b in video.recordings)
                seen.add(reference)
            assert torch.equal(levels(batch.p), levels(batch.x) + 100)
            assert torch.equal(levels(batch.x)[:, 1:].diff(), torch.ones(len(batch.x), 2).to(levels(batch.x)))
    assert seen == set(range(30))


def test_reference_frame_first_is_the_frame_before_frame_1():
    for batch in sampler(numbered(30), reference_frame="first").epoch():
        assert (levels(batch.x).diff() == 1).all()


def test_the_sampler_refuses_more_clips_than_there_are():
    with pytest.raises(ValueError, match="choose 1 to 27"):
        sampler(numbered(30), clips_per_epoch=28)


def walker(columns):
    """Draw a dark anti-aliased square on grey. `columns` gives the position of its left edge in every frame."""
    x, left = torch.arange(64.0), torch.as_tensor(columns, dtype=torch.float)[:, None]
    cover = (torch.minimum(x + 1, left + 8) - torch.maximum(x, left)).clamp(0, 1)
    frames = torch.full((len(left), 3, 32, 64), 180.0)
    frames[:, :, 8:24] -= 160 * cover[:, None, None]
    return frames.round().byte()


def test_a_jump_is_a_boundary_and_fast_motion_is_not():
    slow, fast = torch.arange(40) / 4, torch.arange(0, 54, 3)
    assert find_boundaries(walker(torch.cat([slow, 10 + fast]))) == ()
    assert find_boundaries(walker(torch.cat([slow, slow + 40, slow]))) == (40, 80)
    # A single different frame is not a new recording.
    assert find_boundaries(walker(torch.cat([slow, torch.tensor([50.0]), slow]))) == ()
    assert find_boundaries(walker([0.0])) == ()


def test_boundaries_of_the_synthetic_set_are_found():
    dataset = load("tiny")
    assert find_boundaries(dataset.train.frames) == dataset.train.boundaries != ()
    assert [find_boundaries(clip.answer) for clip in dataset.tests] == [()] * len(dataset.tests)


def test_boundaries_of_real_clips_are_where_frames_are_missing(real_data):
    # Checked by eye: the person jumps at these frames, so frames are missing before them. At the clip boundaries 629
    # and 1258 only one frame is missing, and no jump is visible.
    dataset = read_folder(real_data, progress=False)
    assert dataset.train.boundaries == (697, 729, 1425, 1470)
    assert dataset.val.boundaries == ()
    assert read_folder(real_data, boundaries=(629, 1258), progress=False).train.boundaries == (629, 1258)


def test_frame_changes_equal_a_direct_computation():
    frames = torch.randint(
        256, (1300, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    unit = frames.double() / 255
    expected = ((unit[1:] - unit[:-1]) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(frame_changes(frames).double(), expected, atol=1e-6, rtol=0)


def test_the_beginnings_of_recordings_have_the_wanted_number_of_frames():
    frames = torch.arange(100, dtype=torch.uint8)[:, None, None, None].expand(100, 3, 4, 8).contiguous()
    video = Video(frames, frames, (60, 90))
    short = video.beginnings(20)
    assert short.frames[:, 0, 0, 0].tolist() == [*range(12), *range(60, 66), 90, 91]
    assert short.boundaries == (12, 18)
    assert torch.equal(video.beginnings(100).frames, frames)
    assert video.beginnings(1).frames[:, 0, 0, 0].tolist() == [0]
    with pytest.raises(ValueError, match="has 100 frames; choose 1 to 100, not 101"):
        video.beginnings(101)
