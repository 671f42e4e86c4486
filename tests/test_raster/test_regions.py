"""Label rasters to polygons: strips give what the whole gives, and memory stays bounded."""

from __future__ import annotations

import numpy as np
import pyogrio
import pytest
from rasterio.features import rasterize
from segadapt.processing.errors import RasterError
from segadapt.processing.raster.polygon_writer import PolygonWriter
from segadapt.processing.raster.regions import RegionOutliner, thin_strips
from shapely.geometry import Polygon, box


def outlined(labels, heights):
    outliner, top, found = RegionOutliner(), 0, []
    for height in heights:
        found += outliner.add(labels[top : top + height])
        top += height
    return found + outliner.finish()


def as_set(regions):
    return {(region.value, region.polygon.normalize().wkb) for region in regions}


@pytest.mark.parametrize("heights", [[60], [1] * 60, [7] * 8 + [4], [59, 1]])
@pytest.mark.parametrize("grain", [1, 3, 11])
def test_strips_give_the_areas_of_the_whole(heights, grain):
    coarse = np.random.default_rng(grain).integers(0, 3, (60, 48)).astype(np.uint8)
    labels = np.kron(coarse, np.ones((grain, grain), np.uint8))[:60, :48]
    found = outlined(labels, heights)
    assert as_set(found) == as_set(outlined(labels, [60]))
    assert all(region.polygon.is_valid for region in found)
    assert np.array_equal(rasterize([(r.polygon, r.value) for r in found], out_shape=labels.shape), labels)


def test_arms_that_meet_later_are_one_area_and_corners_do_not_meet():
    labels = np.array([[1, 0, 1, 2], [1, 0, 1, 2], [1, 1, 1, 0], [2, 2, 2, 1]], np.uint8)
    found = outlined(labels, [1, 1, 1, 1])
    assert sorted((region.value, region.polygon.area) for region in found) == [(1, 1), (1, 7), (2, 2), (2, 3)]


def test_areas_are_given_as_soon_as_they_end():
    labels = np.zeros((4, 5), np.uint8)
    labels[0, 0] = labels[1:, 2] = 1
    outliner = RegionOutliner()
    assert [len(outliner.add(row[None])) for row in labels] == [0, 1, 0, 0]
    assert [region.polygon.bounds for region in outliner.finish()] == [(2, 1, 3, 4)]


def test_nothing_has_no_areas():
    assert outlined(np.zeros((3, 4), np.uint8), [2, 1]) == []


def test_thin_strips_are_the_whole():
    labels = np.random.default_rng(0).integers(0, 9, (1000, 1500)).astype(np.uint8)
    strips = list(thin_strips(labels))
    assert len(strips) > 1
    assert np.array_equal(np.concatenate(strips), labels)


def test_a_file_grows_in_batches_and_is_there_at_the_end(tmp_path):
    path = tmp_path / "areas.gpkg"
    with PolygonWriter(path, crs="EPSG:32631", fields={"class": object, "n": np.int32}) as writer:
        for n in range(12_000):
            writer.add(box(n, 0, n + 1, 1), {"class": "wood" if n % 2 else None, "n": n})
        assert not path.exists()
        assert writer.commit() == path
    info = pyogrio.read_info(path)
    assert (info["features"], info["geometry_type"], info["layer_name"]) == (12_000, "Polygon", "areas")
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_without_polygons_has_its_fields(tmp_path):
    with PolygonWriter(tmp_path / "none.gpkg", crs=None, fields={"class": object, "n": np.int32}) as writer:
        writer.commit()
    info = pyogrio.read_info(tmp_path / "none.gpkg")
    assert (info["features"], list(info["fields"]), list(info["dtypes"])) == (0, ["class", "n"], ["object", "int32"])


def test_an_error_keeps_the_older_file(tmp_path):
    path = tmp_path / "areas.gpkg"
    path.write_bytes(b"older")
    with pytest.raises(ZeroDivisionError), PolygonWriter(path, crs=None, fields={"n": np.int32}) as writer:
        writer.add(Polygon([(0, 0), (1, 0), (0, 1)]), {"n": 1 // 0})
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"older"


@pytest.mark.parametrize("name", ["areas.shp", "missing/areas.gpkg"])
def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path, name):
    with pytest.raises(RasterError, match=r"give a name that ends in \.gpkg|choose a folder"):
        PolygonWriter(tmp_path / name, crs=None, fields={"n": np.int32})
    assert list(tmp_path.iterdir()) == []
