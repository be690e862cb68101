import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sj_prune.data import ClosedLoop, Sensor, simulate
from sj_prune.data.motion import as_gray, log_canvas
from sj_prune.data.sensor import crossings, past_refractory


def slow_crossings(views, times, thresholds):
    """Pixel by pixel, event by event."""
    found = []
    flat = [view.ravel() for view in views]
    rise, fall = thresholds.reshape(2, -1)
    for pixel in range(flat[0].size):
        level = flat[0][pixel]
        for step in range(len(times) - 1):
            before, after = flat[step][pixel], flat[step + 1][pixel]
            start, stop = int(times[step]), int(times[step + 1])
            base, k = level, 1
            while True:
                up = base + k * rise[pixel]
                down = base - k * fall[pixel]
                if after >= up and after > base:
                    target, on = up, True
                elif after <= down and after < base:
                    target, on = down, False
                else:
                    break
                part = min(max((target - before) / (after - before), 0), 1)
                found.append((start + int(part * (stop - start)), pixel, on))
                level, k = target, k + 1
    return found


def slow_refractory(t, pixel, refractory):
    last, kept = {}, []
    for time, place in zip(t, pixel, strict=True):
        ok = place not in last or time - last[place] >= refractory
        kept.append(ok)
        if ok:
            last[place] = time
    return kept


@pytest.mark.parametrize("seed", range(20))
def test_crossings_equal_a_loop_over_pixels(seed):
    rng = np.random.default_rng(seed)
    views = np.cumsum(rng.normal(0, 0.6, (9, 4, 5)), axis=0)
    views[4] = views[3]
    times = np.cumsum(rng.integers(1, 5000, 9))
    thresholds = rng.uniform(0.1, 0.5, (2, 4, 5))
    fast = crossings(views, times, thresholds)
    expected = slow_crossings(views, times, thresholds)
    assert len(expected) > 100
    order = lambda event: (event[1], event[0], event[2])  # noqa: E731
    got = [(int(t), int(pixel), bool(on)) for t, pixel, on in zip(*fast, strict=True)]
    assert sorted(got, key=order) == sorted(expected, key=order)


@given(
    data=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3)), max_size=60),
    refractory=st.integers(0, 25),
)
@settings(max_examples=100, deadline=None)
def test_refractory_equals_a_loop_over_events(data, refractory):
    t, pixel = np.array(sorted(data), dtype=np.int64).reshape(-1, 2).T
    kept = past_refractory(t, pixel, refractory)
    assert kept.tolist() == slow_refractory(t, pixel, refractory)


def test_a_ramp_gives_the_count_of_thresholds():
    """Light that rises by 0.875 at a threshold of 0.25: three events, evenly spaced, all rising."""
    views = [np.zeros((2, 2)), np.full((2, 2), 0.875)]
    sensor = Sensor(threshold=0.25, mismatch=0, noise=0, refractory=0)
    rng = np.random.default_rng(0)
    thresholds = sensor.thresholds((2, 2), rng)
    events = sensor.record(views, np.array([0, 875]), thresholds, rng)
    assert events.on.all()
    assert events.t.reshape(3, 4)[:, 0].tolist() == [250, 500, 750]
    assert sorted(events.pixel.tolist()) == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_a_still_scene_gives_noise_alone_at_its_rate():
    views = [np.zeros((64, 64))] * 3
    sensor = Sensor(noise=5.0, refractory=0)
    rng = np.random.default_rng(0)
    times = np.array([0, 500_000, 1_000_000])
    events = sensor.record(views, times, sensor.thresholds((64, 64), rng), rng)
    expected = 5.0 * 64 * 64
    assert abs(events.t.size - expected) < 5 * np.sqrt(expected)
    assert (np.diff(events.t) >= 0).all()
    assert events.t.max() < 1_000_000
    assert abs(events.on.mean() - 0.5) < 0.02
    silent = Sensor(noise=0.0).record(views, times, sensor.thresholds((64, 64), rng), rng)
    assert silent.t.size == 0


def test_thresholds_differ_by_the_mismatch():
    thresholds = Sensor(threshold=0.2, mismatch=0.05).thresholds(
        (128, 128), np.random.default_rng(0)
    )
    assert thresholds.shape == (2, 128, 128)
    assert thresholds.mean() == pytest.approx(0.2, rel=0.01)
    assert thresholds.std() == pytest.approx(0.01, rel=0.03)
    assert Sensor(mismatch=10.0).thresholds((9, 9), np.random.default_rng(0)).min() > 0


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (Sensor, {"threshold": 0}),
        (Sensor, {"threshold": float("nan")}),
        (Sensor, {"mismatch": -1}),
        (Sensor, {"refractory": -1}),
        (Sensor, {"noise": -0.5}),
        (Sensor, {"dark": 0}),
        (ClosedLoop, {"steps": 0}),
        (ClosedLoop, {"loops": 1.5}),
        (ClosedLoop, {"duration": 50}),
        (ClosedLoop, {"amplitude": -1}),
    ],
)
def test_settings_out_of_range(kind, change):
    with pytest.raises(ValueError, match=f"Expected {next(iter(change))}"):
        kind(**change)


def test_the_path_is_closed_smooth_and_inside_the_margin():
    motion = ClosedLoop(amplitude=5.5, loops=3, steps=60, duration=1000)
    offsets, times = motion.offsets(), motion.times()
    assert len(offsets) == len(times) == 61
    assert (times[0], times[-1]) == (0, 1000)
    np.testing.assert_allclose(offsets[0], offsets[-1], atol=1e-12)
    np.testing.assert_allclose(np.hypot(*offsets.T), 5.5)
    assert motion.margin >= 6


def test_views_equal_bilinear_sampling():
    motion = ClosedLoop(amplitude=2.3, loops=1, steps=7, duration=70)
    size, m = 9, motion.margin
    canvas = np.random.default_rng(0).normal(size=(size + 2 * m, size + 2 * m))
    for view, (down, right) in zip(motion.views(canvas), motion.offsets(), strict=True):
        for i, j in ((0, 0), (8, 8), (3, 5)):
            y, x = i + m - down, j + m - right
            a, b = int(np.floor(y)), int(np.floor(x))
            corners = canvas[a : a + 2, b : b + 2]
            weights = np.outer([1 - (y - a), y - a], [1 - (x - b), x - b])
            assert view[i, j] == pytest.approx((corners * weights).sum())


def test_gray_takes_the_usual_layouts():
    rgb = torch.randint(0, 256, (4, 3, 8, 6), dtype=torch.uint8)
    expected = (rgb.float() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1) / 255
    torch.testing.assert_close(as_gray(rgb), expected)
    torch.testing.assert_close(as_gray(rgb.permute(0, 2, 3, 1).numpy()), expected)
    torch.testing.assert_close(as_gray(rgb[:, 0]), rgb[:, 0].float() / 255)
    torch.testing.assert_close(as_gray(rgb[:, :1]), rgb[:, 0].float() / 255)
    for bad in (rgb.float(), rgb[0, 0], torch.zeros(2, 5, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="Expected"):
            as_gray(bad)


def test_canvas_is_the_log_of_the_enlarged_image():
    canvas = log_canvas(torch.full((4, 4), 0.5), 20, dark=0.1)
    np.testing.assert_allclose(canvas, np.full((20, 20), np.log(0.6)), rtol=1e-6)


def test_an_edge_brightens_where_light_moves_in(short):
    """Left half dark, right half bright; the image moves left first: rising events, p = 0."""
    image = torch.zeros(32, 32)
    image[:, 16:] = 1
    events = simulate(image, Sensor(noise=0), short, seed=0)
    early = events["t"] < short.duration // 2
    assert early.any()
    assert (events["p"][early] == 0).mean() > 0.95
    assert (events["p"][~early] == 1).mean() > 0.95
    column = 127 - events["y"]
    assert abs(column.mean() - 64) < 4


def test_simulation_follows_from_its_seeds(short):
    image = torch.rand(16, 16)

    def run(**seeds):
        return simulate(image, None, short, **seeds)

    first = run(seed=1, index=2)
    for key, values in run(seed=1, index=2).items():
        np.testing.assert_array_equal(values, first[key])
    assert (
        run(seed=1, index=3)["t"].size != first["t"].size
        or (run(seed=1, index=3)["t"] != first["t"]).any()
    )
    assert run(seed=2, index=2)["t"].size != first["t"].size
