"""Makes this checkout importable as `segadapt`, whatever its folder is called, and shares fixtures."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

# `python -m pytest` puts the root first on sys.path, where our `processing` would hide QGIS's.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

# Always, not only when segadapt is missing: an editable install may point at another clone.
_spec = importlib.util.spec_from_file_location("segadapt", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
if _spec is None or _spec.loader is None:
    raise RuntimeError(f"{ROOT} holds no __init__.py; run the tests from a checkout of SegAdapt.")
sys.modules["segadapt"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["segadapt"])

# As `activate` does before torch is imported, whichever tests are chosen: after a canvas was drawn, torch's libraries
# would meet those of the display and end QGIS.
if importlib.util.find_spec("qgis") is not None:
    from segadapt.processing.library_isolation import isolate_libraries

    isolate_libraries()


@pytest.fixture
def raster_factory(tmp_path: Path) -> Callable[..., str]:
    """Write a small raster and return its path: `raster_factory(pixels, crs=..., transform=..., nodata=...)`.

    `pixels`: (bands, rows, cols). Half-metre pixels in UTM zone 31 unless told otherwise; `crs=None` writes none.
    `mask`: (rows, cols) bool, an internal mask. Further keywords go to rasterio's profile.
    """
    # Not above: a test of the plugin without its environment has no rasterio.
    import rasterio
    from affine import Affine

    half_metre = Affine(0.5, 0, 590_000, 0, -0.5, 5_750_000)

    def write(
        pixels: Any,
        name: str = "scene.tif",
        *,
        crs: str | None = "EPSG:32631",
        transform: Any = half_metre,
        mask: Any = None,
        colorinterp: Sequence[Any] | None = None,
        colormap: Mapping[int, tuple[int, ...]] | None = None,
        descriptions: Sequence[str] = (),
        overviews: Sequence[int] = (),
        **profile: Any,
    ) -> str:
        bands, rows, cols = pixels.shape
        profile = {
            "driver": "GTiff",
            "count": bands,
            "height": rows,
            "width": cols,
            "dtype": pixels.dtype,
            **profile,
        }
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(tmp_path / name, "w", crs=crs, transform=transform, **profile) as dataset,
        ):
            if colorinterp is not None:
                dataset.colorinterp = colorinterp  # before the pixels, or a GeoTIFF forgets it
            dataset.write(pixels)
            if mask is not None:
                dataset.write_mask(mask)
            if colormap is not None:
                dataset.write_colormap(1, colormap)
            for band, description in enumerate(descriptions, 1):
                dataset.set_band_description(band, description)
            if overviews:
                dataset.build_overviews(list(overviews), rasterio.enums.Resampling.average)
        return str(tmp_path / name)

    return write
