"""Windows: where they lie, what they contain, and that walks leave nothing out."""

from __future__ import annotations

import numpy as np
import pytest
from segadapt.processing.errors import RasterError
from segadapt.processing.raster.windows import (
    WINDOW_SIZES_PX,
    SquareWindow,
    core_grid,
    fitting_size_px,
    lattice_window,
    lattice_windows,
)

SHAPES = [(8, 8), (300, 5000), (1024, 1024), (1025, 1023), (4999, 7001), (100_000, 100_000)]


def _points(shape: tuple[int, int], n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    xy = rng.random((n, 2)) * (shape[1], shape[0])
    # Whole pixels sit on lattice borders more often than random numbers do.
    xy[: n // 2] = np.floor(xy[: n // 2] / 64) * 64
    return xy


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size_px", WINDOW_SIZES_PX)
def test_a_point_lies_in_the_central_half_unless_the_edge_shifts_the_window(shape, size_px):
    for x, y in _points(shape, 300):
        window = lattice_window(x, y, size_px=size_px, shape=shape)
        for value, off, length in ((x, window.col_off, shape[1]), (y, window.row_off, shape[0])):
            assert off >= 0
            assert off + size_px <= max(length, size_px)
            if 0 < off < length - size_px:
                assert off % (size_px // 2) == 0
                assert off + size_px / 4 <= value < off + 3 * size_px / 4
            else:
                assert off <= value <= off + size_px


@pytest.mark.parametrize("shape", SHAPES)
def test_the_fitting_window_contains_the_object(shape):
    rng = np.random.default_rng(1)
    for x, y in _points(shape, 300, seed=1):
        # Objects lie inside the raster; so the centre is at least half the extent from each edge.
        room = 2 * min(x, y, shape[1] - x, shape[0] - y)
        extent = min(4096.0, room) * rng.random() ** 3
        window = lattice_window(x, y, size_px=fitting_size_px(extent), shape=shape)
        box = (x - extent / 2, y - extent / 2, x + extent / 2, y + extent / 2)
        assert window.contains_bounds(box), (window, box)


@pytest.mark.parametrize(
    ("extent", "size"),
    [(0, 256), (1, 256), (128, 256), (128.01, 512), (512, 1024), (1025, 4096), (4096, 8192), (50_000, 8192)],
)
def test_fitting_sizes(extent, size):
    assert fitting_size_px(extent) == size


def test_neighbouring_prompts_share_a_window():
    windows = {lattice_window(x, 900, size_px=512, shape=(4000, 4000)) for x in range(896, 1152)}
    assert windows == {SquareWindow(col_off=768, row_off=768, size_px=512)}


@pytest.mark.parametrize("shape", [(8, 8), (300, 5000), (1025, 1023), (3001, 2777)])
@pytest.mark.parametrize("size_px", [256, 1024])
def test_lattice_windows_are_those_of_all_points_inside(shape, size_px):
    rng = np.random.default_rng(2)
    for _ in range(6):
        left, right = sorted(rng.uniform(0, shape[1], 2))
        top, bottom = sorted(rng.uniform(0, shape[0], 2))
        windows = lattice_windows((left, top, right, bottom), size_px=size_px, shape=shape)
        # A window depends on x and y apart, and never changes within 16 px that start at a multiple of 16.
        xs = [left, np.nextafter(right, left), *np.arange(np.ceil(left / 16) * 16, right, 16)]
        ys = [top, np.nextafter(bottom, top), *np.arange(np.ceil(top / 16) * 16, bottom, 16)]
        wanted = {lattice_window(x, y, size_px=size_px, shape=shape) for x in xs for y in ys}
        assert len(windows) == len(wanted)
        assert set(windows) == wanted
        assert list(windows) == sorted(windows, key=lambda window: (window.row_off, window.col_off))


def test_lattice_windows_of_a_point_and_of_nothing():
    shape = (2000, 3000)
    at = lattice_windows((700, 650, 700, 650), size_px=512, shape=shape)
    assert list(at) == [lattice_window(700, 650, size_px=512, shape=shape)]
    for outside in [
        (-50, 0, -1, 10),
        (-50, 0, 0, 10),
        (3000, 0, 3100, 10),
        (0, 2000, 5, 2100),
        (9, 0, 3, 10),
    ]:
        assert len(lattice_windows(outside, size_px=512, shape=shape)) == 0
    nothing = (float("nan"),) * 4
    assert len(lattice_windows(nothing, size_px=512, shape=shape)) == 0


def test_lattice_windows_of_a_huge_raster_are_lazy():
    windows = lattice_windows((0, 0, 1e6, 1e6), size_px=256, shape=(1_000_000, 1_000_000))
    assert len(windows) == 7812**2
    assert windows[0] == SquareWindow(0, 0, 256)
    assert windows[-1] == SquareWindow(999_744, 999_744, 256)
    assert windows[1:3] == [SquareWindow(128, 0, 256), SquareWindow(256, 0, 256)]
    with pytest.raises(IndexError):
        windows[len(windows)]


@pytest.mark.parametrize("shape", [(8, 8), (1024, 1024), (1025, 3000), (4999, 2501)])
@pytest.mark.parametrize(("size_px", "halo_px"), [(1024, 0), (1024, 256), (256, 100)])
def test_cores_cover_the_raster_once_and_keep_their_halo(shape, size_px, halo_px):
    covered = np.zeros(shape, np.uint8)
    for cell in core_grid(shape, size_px=size_px, halo_px=halo_px):
        left, top, right, bottom = cell.core_px
        covered[top:bottom, left:right] += 1
        window_left, window_top, window_right, window_bottom = cell.window.bounds()
        assert left - window_left >= (halo_px if left else 0)
        assert top - window_top >= (halo_px if top else 0)
        assert right == shape[1] or window_right - right >= halo_px
        assert bottom == shape[0] or window_bottom - bottom >= halo_px
        assert right <= window_right
        assert bottom <= window_bottom
    assert covered.min() == covered.max() == 1


def test_cores_of_bounds_are_the_cores_of_the_whole_that_meet_them():
    shape, rng = (4000, 6000), np.random.default_rng(3)
    whole = list(core_grid(shape, size_px=512, halo_px=64))
    for _ in range(30):
        left, right = sorted(rng.uniform(0, 6000, 2))
        top, bottom = sorted(rng.uniform(0, 4000, 2))
        wanted = [
            cell
            for cell in whole
            if cell.core_px[0] < right and cell.core_px[2] > left and cell.core_px[1] < bottom and cell.core_px[3] > top
        ]
        assert list(core_grid(shape, size_px=512, halo_px=64, bounds_px=(left, top, right, bottom))) == wanted


def test_the_part_inside_a_small_raster():
    window = lattice_window(3, 3, size_px=256, shape=(8, 20))
    assert window == SquareWindow(0, 0, 256)
    assert window.inside((8, 20)) == (8, 20)
    inside = window.to_rasterio((8, 20))
    assert (inside.col_off, inside.row_off, inside.width, inside.height) == (0, 0, 20, 8)
    assert window.contains_bounds((10, 10, 246, 246), margin_px=10)
    assert not window.contains_bounds((10, 10, 247, 246), margin_px=10)


def test_wrong_numbers_are_refused():
    with pytest.raises(RasterError, match="not finite"):
        lattice_window(float("nan"), 0, size_px=256, shape=(10, 10))
    with pytest.raises(RasterError, match="even number"):
        lattice_window(0, 0, size_px=255, shape=(10, 10))
    with pytest.raises(RasterError, match="halo of 128 px"):
        core_grid((10, 10), size_px=256, halo_px=128)
    with pytest.raises(RasterError, match="no pixel"):
        lattice_windows((0, 0, 1, 1), size_px=256, shape=(0, 10))
