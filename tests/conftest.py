"""Makes this checkout importable as `segadapt`, whatever its folder is called, and shares fixtures."""

from __future__ import annotations

import importlib.util
import os
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where files are tested beside each other, one process takes all windows: there is one focus.

    It begins with them, as they take longest; fixtures of a file are made once.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    windows = ROOT / "tests" / "test_plugin" / "test_gui"
    for item in items:
        item.add_marker(pytest.mark.xdist_group("windows" if windows in item.path.parents else item.path.name))
    items.sort(key=lambda item: windows not in item.path.parents)


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


@pytest.fixture(scope="session")
def train_roofs() -> Callable[..., Any]:
    """Train a tiny model that tells roofs from background at half a metre, in seconds; returns it with its chips.

    `train_roofs(roof=200, ground=70, chip_px=32, n_chips=16, chips=None, n_steps=30, batch=8, **card)`: values of both
    (0 to 255), labelled `chips` to learn from in place of these, and what the card has besides the usual.
    """

    def train(
        *,
        roof: int = 200,
        ground: int = 70,
        chip_px: int = 32,
        n_chips: int = 16,
        chips: Any = None,
        n_steps: int = 30,
        batch: int = 8,
        **card: Any,
    ) -> Any:
        import numpy as np
        import torch
        from segadapt.models.chips import unlabelled_chips
        from segadapt.models.semantic.card import SegmenterCard, SegmenterClass
        from segadapt.models.semantic.segmenter import build_segmenter
        from segadapt.models.training import TrainingOptions, fit

        usual: dict[str, Any] = {
            "name": "roofs",
            "decoder": "unet",
            "encoder": "lcnet_035",
            "bands": ("red", "green", "blue"),
            "classes": (SegmenterClass(0, "background", (90, 90, 90)), SegmenterClass(1, "roof", (230, 85, 13))),
            "gsd_m": 0.5,
            "chip_px": chip_px,
            "mean": (127.0,) * 3,
            "std": (128.0,) * 3,
            "stretch": (0.0,) * 3 + (255.0,) * 3,
            "licence": "test",
            "made_on": "2026-01-01",
            "segadapt_version": "0",
        }
        if chips is None:
            random = np.random.default_rng(0)
            labels = np.zeros((n_chips, chip_px, chip_px), np.uint8)
            side = 15 * chip_px // 32
            for label in labels:
                row, col = random.integers(0, chip_px // 2, 2)
                label[row : row + side, col : col + side] = 1
            noise = random.integers(-10, 10, (n_chips, 3, chip_px, chip_px))
            pixels = np.where(labels[:, None] == 1, roof, ground) + noise
            chips = unlabelled_chips(pixels.astype(np.uint8)).with_labels(labels)
        torch.manual_seed(0)
        model = build_segmenter(SegmenterCard(**usual | card))
        options = TrainingOptions(n_steps=n_steps, batch=batch, rate=4e-3, encoder_rate=1.0)
        with pytest.MonkeyPatch.context() as patch:
            # The same model wherever it is trained: so few steps end elsewhere where a CPU computes in bf16.
            patch.setattr("segadapt.models.semantic.prediction.precision_of", lambda _device: "fp32")
            fit(model, chips, None, options)
        return model, chips

    return train


class Town:
    """Dark ground with a bright roof in every chip of 64 px, in the light of `town_model`'s source and in haze."""

    side_px, chip_px = 256, 64

    def paint(self, seed: int) -> tuple[Any, Any]:
        """Pixels (3, 256, 256) and labels (256, 256), uint8, as the source sees them."""
        import numpy as np

        random = np.random.default_rng(seed)
        pixels = random.normal(85, 10, (3, self.side_px, self.side_px))
        labels = np.zeros((self.side_px, self.side_px), np.uint8)
        for row in range(0, self.side_px, self.chip_px):
            for col in range(0, self.side_px, self.chip_px):
                height, width = random.integers(18, 30, 2)
                y, x = (int(random.integers(3, self.chip_px - side - 3)) for side in (height, width))
                labels[row + y : row + y + height, col + x : col + x + width] = 1
        pixels[:, labels == 1] += 90
        return pixels.clip(0, 255).astype(np.uint8), labels

    def in_haze(self, pixels: Any) -> Any:
        """Bright ground, hardly any contrast."""
        return (0.2 * pixels.astype(float) + 170).clip(0, 255).astype("uint8")

    def chips(self, pixels: Any, labels: Any) -> Any:
        """The 16 labelled chips of a picture."""
        import numpy as np
        from segadapt.models.chips import unlabelled_chips

        starts = range(0, self.side_px, self.chip_px)
        places = [(slice(row, row + self.chip_px), slice(col, col + self.chip_px)) for row in starts for col in starts]
        plain = unlabelled_chips(np.stack([pixels[:, rows, cols] for rows, cols in places]))
        return plain.with_labels(np.stack([labels[rows, cols] for rows, cols in places]))

    def roof_iou(self, path: str | Path, pixels: Any, labels: Any) -> float:
        """Of the roofs that the model in a file finds in a picture."""
        from segadapt.models.semantic.package import load_segmenter
        from segadapt.models.semantic.prediction import predict_labels

        chips = self.chips(pixels, labels)
        found, truth = predict_labels(load_segmenter(Path(path)), chips) == 1, chips.labels == 1
        return float((found & truth).sum() / (found | truth).sum())


@pytest.fixture(scope="session")
def town() -> Town:
    """What models are adapted to."""
    return Town()


@pytest.fixture(scope="session")
def town_model(town: Town, train_roofs: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of a model that knows the town in its own light, remembers how it looked, and is lost in haze."""
    from dataclasses import replace

    from segadapt.models.semantic.package import save_segmenter
    from segadapt.models.transfer.statistics import source_statistics

    # The stretch of the card keeps the haze: without it every raster is stretched to its own range.
    # With more steps it calls all of the haze roof, and how well one answer agrees with itself is chance.
    model, chips = train_roofs(chips=town.chips(*town.paint(0)), chip_px=town.chip_px, n_steps=20, batch=4)
    statistics, extra = source_statistics(model, chips)
    model.card = replace(model.card, statistics=statistics)
    path = tmp_path_factory.mktemp("mödels") / "roofs.safetensors"
    save_segmenter(model, path, extra=extra)
    return path
