"""Which frames are chosen: integers in, integers out."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.video_utils import VideoMetadata, default_sample_indices_fn

from vitcop_video import sampling


def transformers_indices(length: int, frames: int) -> list[int]:
    metadata = VideoMetadata(total_num_frames=length, fps=30.0)
    return [int(index) for index in default_sample_indices_fn(metadata, num_frames=frames)]


def test_uniform_equals_transformers_for_a_thousand_pairs() -> None:
    # Old versions step by the whole part of length / frames, and never reach what is left over.
    leaves_rest = transformers_indices(7, 4)[:4] == [0, 1, 2, 3]
    random = np.random.default_rng(0)
    for length in random.integers(1, 200_000, 1000).tolist():
        frames = int(random.integers(1, min(length, 256) + 1))
        window = range(length - length % frames if leaves_rest else length)
        assert sampling.uniform(window, frames) == transformers_indices(length, frames)[:frames]


@given(st.integers(1, 10**7), st.data())
def test_uniform_is_ascending_and_in_range(length: int, data: st.DataObject) -> None:
    frames = data.draw(st.integers(1, min(length, 100)))
    chosen = sampling.uniform(range(length), frames)
    assert len(chosen) == frames
    assert chosen[0] == 0
    assert all(low < high for low, high in pairwise(chosen))
    assert chosen[-1] < length


def test_uniform_stays_in_its_window() -> None:
    assert sampling.uniform(range(100, 200), 4) == [100, 125, 150, 175]


@pytest.mark.parametrize(
    ("frames", "error", "said"),
    [
        pytest.param(11, ValueError, "frames must be at most 10, which is how many there are, got 11", id="too many"),
        pytest.param(0, ValueError, "frames must be an integer >= 1, got 0", id="none"),
        pytest.param(-3, ValueError, "frames must be an integer >= 1, got -3", id="negative"),
        pytest.param(2.0, TypeError, "frames must be an integer", id="float"),
        pytest.param(True, TypeError, "frames must be an integer", id="bool"),
    ],
)
def test_uniform_refuses(frames: int, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        sampling.uniform(range(10), frames)


@pytest.mark.parametrize("time_base", [Fraction(1, 1000), Fraction(1, 15360), Fraction(1, 30)])
@pytest.mark.parametrize(("fps", "step"), [(30, 1), (15, 2), (10, 3), (1, 30), (Fraction(1, 2), 60)])
def test_by_rate_steps_evenly_whatever_the_clock(time_base: Fraction, fps: int | Fraction, step: int) -> None:
    ticks = [round(Fraction(number, 30) / time_base) for number in range(300)]
    assert sampling.by_rate(range(300), ticks, fps, time_base) == list(range(0, 300, step))


def test_by_rate_takes_what_is_on_screen_where_the_rate_varies() -> None:
    ticks = [0, 100, 200, 2500, 2600, 5000]
    assert sampling.by_rate(range(6), ticks, 1, Fraction(1, 1000)) == [0, 2, 4, 5]


def test_by_rate_counts_from_the_window() -> None:
    ticks = [10 * number for number in range(100)]
    assert sampling.by_rate(range(5, 50), ticks, 10, Fraction(1, 1000)) == [5, 15, 25, 35, 45]


def test_by_rate_of_one_frame() -> None:
    assert sampling.by_rate(range(3, 4), [0, 10, 20, 30], 1000, Fraction(1, 1000)) == [3]


@pytest.mark.parametrize(
    ("fps", "error", "said"),
    [
        pytest.param(31, ValueError, "fps must be at most 30, the rate of the clip, got 31", id="too many"),
        pytest.param(0, ValueError, "fps must be a positive number, got 0", id="zero"),
        pytest.param(float("nan"), ValueError, "fps must be a positive number, got nan", id="nan"),
        pytest.param("2", TypeError, "fps must be a positive number", id="text"),
    ],
)
def test_by_rate_refuses(fps: float, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        sampling.by_rate(range(60), list(range(60)), fps, Fraction(1, 30))


def test_key_frames_of_a_window() -> None:
    assert sampling.key_frames(range(5, 30), [0, 10, 20, 30]) == [10, 20]


def test_key_frames_refuses_a_window_without_any() -> None:
    with pytest.raises(ValueError, match="the window has none"):
        sampling.key_frames(range(1, 9), [0, 10])


def test_explicit_keeps_order_and_repeats() -> None:
    assert sampling.explicit(10, [9, 0, 9]) == [9, 0, 9]


@pytest.mark.parametrize(
    ("indices", "error", "said"),
    [
        pytest.param([0, 10], ValueError, r"indices\[1\] must be an integer from 0 to 9, got 10", id="past the end"),
        pytest.param([-1], ValueError, r"indices\[0\] must be an integer from 0 to 9, got -1", id="negative"),
        pytest.param([], ValueError, "indices must be a list with one index at least", id="empty"),
        pytest.param([0.5], TypeError, r"indices\[0\] must be an integer", id="float"),
        pytest.param(3, TypeError, "indices must be a sequence, got int", id="integer"),
    ],
)
def test_explicit_refuses(indices: list[int], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        sampling.explicit(10, indices)


@pytest.mark.parametrize(
    ("start", "end", "chosen"),
    [
        pytest.param(None, None, range(10), id="all"),
        pytest.param(20, None, range(2, 10), id="from a frame on"),
        pytest.param(21, 50, range(3, 5), id="between, its end left out"),
        pytest.param(21, 29, range(3, 3), id="between two frames"),
    ],
)
def test_window(start: int | None, end: int | None, chosen: range) -> None:
    assert sampling.window(list(range(0, 100, 10)), start, end) == chosen
