"""Labels of rasters as algorithms take them: polygons of any CRS with a class field, or label rasters."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qgis.core import (
    NULL,
    QgsCoordinateTransform,
    QgsCsException,
    QgsFeature,
    QgsFeatureRequest,
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingFeatureSource,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterField,
    QgsRasterLayer,
    QgsWkbTypes,
)

from ...models.progress import Progress, raise_if_cancelled
from ...models.semantic.card import SegmenterCard
from ..errors import JobError
from .model_algorithm import ModelAlgorithm, RasterInput
from .prompt_source import straight_geometry

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

    from ...models.chips import Chips
    from ..jobs.class_scheme import ClassScheme
    from ..jobs.training_data import LabelledRaster

# `jobs.class_scheme.BACKGROUNDS`; that module needs the environment (a test compares them).
BACKGROUNDS = ("auto", "class", "unlabelled")
READ = 0.05
"""Share of the progress that reading labelled rasters takes."""
OF_SOURCE = "SOURCE_"
"""What the names of labels of the source begin with, beside labels of the target."""
# What the layers of `selectsamples` are known by, also after the analyst has drawn in them.
SAMPLE_FIELDS = ("rank", "predicted")
SAMPLE_CLASS = "class"
"""Their field that the analyst fills in."""


class LabelledAlgorithm(ModelAlgorithm):
    """An algorithm that is given rasters with labels."""

    LABELS = "LABELS"
    CLASS_FIELD = "CLASS_FIELD"
    LABEL_RASTERS = "LABEL_RASTERS"
    CLASS_NAMES = "CLASS_NAMES"
    BACKGROUND = "BACKGROUND"
    AREA = "AREA"
    SOURCE = "SOURCE"

    def label_helps(self) -> dict[str, str]:
        """Return the help of the parameters that `add_labels` adds."""
        return {
            self.LABELS: self.tr(
                "Polygons of the classes on all rasters, in any CRS; layers of the interactive tool serve as they are, "
                "several layers have to be merged. Where polygons of different classes overlap, pixels are left "
                "unlabelled."
            ),
            self.CLASS_FIELD: self.tr(
                "Field of the polygons that holds the name of the class; polygons without a value are unknown ground. "
                "Without the field every polygon is of one class, and the rest is background; in a layer of Select "
                "samples to label it is the field class."
            ),
            self.LABEL_RASTERS: self.tr(
                "Rasters of whole class ids instead of polygons: one for each raster, of the same file name (a word "
                "may follow, as in scene_classes.png) or else in the same order, or a single one for all. Nodata is "
                "unlabelled, and so is 255 unless it is named."
            ),
            self.CLASS_NAMES: self.tr(
                "Names of the values of the label rasters, such as 0=other, 1=roof; other values are then unlabelled. "
                "Without it the names in the files, else the values."
            ),
            self.BACKGROUND: self.tr(
                "What pixels without a polygon are: a class of their own, or unlabelled. Auto makes them that class "
                "where complete areas are given; without areas, for a new model where the polygons name one class "
                "alone, and for a model that is there where it has one class besides the background and no polygon "
                "is called as the background is. They are unlabelled else, and where a model knows no background. In a "
                "layer of Select samples to label (fields rank and predicted) polygons without a class are places: "
                "where polygons with a class lie in one, the rest of that place is background; places without any, "
                "and with auto all ground beside the places, are unlabelled."
            ),
            self.AREA: self.tr(
                "Polygons within which everything was labelled, in any CRS: what no label covers there is background, "
                "and outside it is unknown; rasters without any label polygon count there, too. Without it that holds "
                "for the whole of each raster that a label polygon lies on."
            ),
        }

    def add_labels(self, *, are_of_source: bool = False) -> None:
        """Add polygons with a class field, or label rasters, and what pixels without a label are."""
        polygon = [QgsProcessing.TypeVectorPolygon]
        labels, field, label_rasters, area = (
            self._source_titles()
            if are_of_source
            else (
                self.tr("Label polygons"),
                self.tr("Class field"),
                self.tr("Label rasters"),
                self.tr("Completely labelled areas"),
            )
        )
        self.add(QgsProcessingParameterFeatureSource(self.LABELS, labels, polygon, optional=True))
        self.add(QgsProcessingParameterField(self.CLASS_FIELD, field, None, self.LABELS, optional=True))
        self.add_rasters(self.LABEL_RASTERS, label_rasters, optional=True)
        self.add_text(self.CLASS_NAMES, self.tr("Names of raster values"), advanced=True)
        self.add_choice(self.BACKGROUND, self.tr("Pixels without a polygon"), BACKGROUNDS, advanced=True)
        self.add(QgsProcessingParameterFeatureSource(self.AREA, area, polygon, optional=True))

    def source_helps(self) -> dict[str, str]:
        """Return the help of the parameters that `add_source` adds."""
        return {
            self.SOURCE: self.tr(
                "Rasters of the source with labels, rehearsed while learning so that nothing is forgotten. Optional, "
                "but on real images learning without them did harm as often as good; the method fourier needs them."
            ),
            OF_SOURCE + self.LABELS: self.tr("Polygons of the classes on the source rasters, in any CRS."),
            OF_SOURCE + self.CLASS_FIELD: self.tr(
                "Field of these polygons that holds the name of the class; without it every polygon is of one class."
            ),
            OF_SOURCE + self.LABEL_RASTERS: self.tr(
                "Rasters of whole class ids instead of polygons, which go with the source rasters as other label "
                "rasters do with theirs. Names of values hold for both."
            ),
            OF_SOURCE + self.AREA: self.tr(
                "Polygons within which everything was labelled on the source rasters, in any CRS; without it all of "
                "each raster that a label polygon lies on."
            ),
        }

    def add_source(self) -> None:
        """Add rasters of the source with labels of their own, to rehearse."""
        polygon = [QgsProcessing.TypeVectorPolygon]
        labels, field, label_rasters, area = (
            OF_SOURCE + name for name in (self.LABELS, self.CLASS_FIELD, self.LABEL_RASTERS, self.AREA)
        )
        titles = self._source_titles()
        self.add_rasters(self.SOURCE, self.tr("Source rasters"), optional=True)
        self.add(QgsProcessingParameterFeatureSource(labels, titles[0], polygon, optional=True))
        self.add(QgsProcessingParameterField(field, titles[1], None, labels, optional=True))
        self.add_rasters(label_rasters, titles[2], optional=True)
        self.add(QgsProcessingParameterFeatureSource(area, titles[3], polygon, optional=True))

    def source_chips(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        card: SegmenterCard,
        *,
        of: str = OF_SOURCE,
        progress: Progress,
    ) -> Chips | None:
        """Chips of the rasters of `SOURCE` with the labels whose names begin with `of`; None without rasters.

        Raises `JobError` for labels without rasters, and as `labelled_rasters`, `class_scheme` and
        `read_labelled_chips` do.
        """
        from ..jobs.model_rasters import MOST_CHIPS, read_labelled_chips

        rasters = self.rasters(self.SOURCE)
        if not rasters:
            if parameters.get(of + self.LABELS) or parameters.get(of + self.LABEL_RASTERS):
                raise JobError("There are labels, but no source rasters that they belong to; give both, or neither.")
            return None
        labelled = self.labelled_rasters(parameters, context, progress=progress, rasters=rasters, of=of)
        scheme = self.class_scheme(parameters, context, labelled, card=card, progress=progress)
        seed = self.parameterAsInt(parameters, self.SEED, context)
        chips = read_labelled_chips(labelled, scheme, card, n_most=MOST_CHIPS, seed=seed, progress=progress)
        progress.info(self.tr("{} chips of the source are rehearsed.").format(len(chips)))
        return chips

    def labelled_rasters(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        *,
        progress: Progress,
        rasters: Sequence[RasterInput] | None = None,
        of: str = "",
    ) -> list[LabelledRaster]:
        """The rasters of `RASTERS` (or these) with their labels, polygons in the CRS of each.

        `of`: what the names of the labels' parameters begin with.

        Raises `JobError` for no labels, both kinds of labels, label rasters that do not go with the rasters, layers
        without CRS or geometries, and coordinates that cannot be transformed; `Cancelled`.
        """
        from ..jobs.training_data import LabelledRaster, with_places

        chosen = self.rasters(self.RASTERS) if rasters is None else list(rasters)
        if not chosen:
            raise JobError("No raster is given; choose one or more.")
        source = self.parameterAsSource(parameters, of + self.LABELS, context)
        if source is None and parameters.get(of + self.LABELS):
            raise JobError(self.invalidSourceError(parameters, of + self.LABELS))
        label_rasters = self.rasters(of + self.LABEL_RASTERS)
        if (source is None) == (not label_rasters):
            whose = "" if rasters is None else " of the source"
            raise JobError(f"Give either label polygons or label rasters{whose}, one of the two.")
        if source is None:
            paths, is_by_order = paired([one.path for one in chosen], [one.path for one in label_rasters])
            if is_by_order:
                pairs = [
                    f"{Path(label).name} - {Path(one.path).name}" for one, label in zip(chosen, paths, strict=True)
                ]
                progress.info(
                    self.tr("The names of the label rasters do not tell their rasters; their order does: {}.").format(
                        ", ".join(pairs)
                    )
                )
            shown = {one.path: one.crs_wkt for one in label_rasters}
            return [
                LabelledRaster(path=one.path, label_path=Path(path), crs_wkt=one.crs_wkt, label_crs_wkt=shown[path])
                for one, path in zip(chosen, paths, strict=True)
            ]
        is_sampled = is_of_samples(source)
        field = self.parameterAsString(parameters, of + self.CLASS_FIELD, context)
        if not field and is_sampled and source.fields().lookupField(SAMPLE_CLASS) >= 0:
            # Without it the places themselves would be of the class that is looked for.
            field = SAMPLE_CLASS
        if field and source.fields().lookupField(field) < 0:
            raise JobError(f"'{source.sourceName()}' has no field '{field}'; choose the one that names the class.")
        if not source.featureCount():
            raise JobError(f"'{source.sourceName()}' holds no polygon; draw some, or choose another layer.")
        area = self.parameterAsSource(parameters, of + self.AREA, context)
        if area is None and parameters.get(of + self.AREA):
            raise JobError(self.invalidSourceError(parameters, of + self.AREA))
        is_auto = self.parameterAsEnumString(parameters, self.BACKGROUND, context) == "auto"
        found = []
        for raster in chosen:
            labels = read_polygons(source, field, raster=raster, context=context, progress=progress)
            areas = None if area is None else read_polygons(area, "", raster=raster, context=context, progress=progress)
            labelled = LabelledRaster(
                path=raster.path,
                polygons=tuple(polygon for polygon, _ in labels),
                names=tuple(name for _, name in labels),
                area=None if areas is None else tuple(polygon for polygon, _ in areas),
                crs_wkt=raster.crs_wkt,
            )
            found.append(with_places(labelled, is_rest_unknown=is_auto) if is_sampled else labelled)
        if not any(raster.polygons for raster in found):
            if not any(_has_outline(feature) for feature in source.getFeatures()):
                raise JobError(
                    f"None of the {source.featureCount()} features of '{source.sourceName()}' has a geometry; draw "
                    "their polygons, or choose another layer."
                )
            raise JobError(
                f"None of the {source.featureCount()} polygons of '{source.sourceName()}' lies on a raster; check the "
                "CRS of both."
            )
        if area is not None and not any(raster.area for raster in found):
            raise JobError(
                f"None of the {area.featureCount()} polygons of '{area.sourceName()}', within which everything was "
                "labelled, lies on a raster; check the CRS of both, or leave the areas out."
            )
        return found

    def class_scheme(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        rasters: Sequence[LabelledRaster],
        *,
        card: SegmenterCard | None = None,
        progress: Progress,
    ) -> ClassScheme:
        """The classes that the labels name, or those of a model's card. Raises `JobError` where they do not fit."""
        from ..jobs.class_scheme import BACKGROUNDS as KINDS
        from ..jobs.class_scheme import parse_value_names, scheme_of_card, scheme_of_labels

        chosen = self.parameterAsEnumString(parameters, self.BACKGROUND, context)
        background = next(kind for kind in KINDS if kind == chosen)
        names = parse_value_names(self.parameterAsString(parameters, self.CLASS_NAMES, context))
        if card is not None:
            return scheme_of_card(card, rasters, background=background, value_names=names, progress=progress)
        only = self.labels_name(parameters, context) or "object"
        return scheme_of_labels(rasters, background=background, only_name=only, value_names=names, progress=progress)

    def _source_titles(self) -> tuple[str, str, str, str]:
        """Titles of the parameters with labels of the source: polygons, field, rasters, areas."""
        return (
            self.tr("Label polygons of the source"),
            self.tr("Class field of the source"),
            self.tr("Label rasters of the source"),
            self.tr("Completely labelled areas of the source"),
        )

    def labels_name(self, parameters: dict[str, Any], context: QgsProcessingContext) -> str:
        """The name of the layer of polygons, or those of the label rasters."""
        source = self.parameterAsSource(parameters, self.LABELS, context)
        if source is not None:
            return str(source.sourceName())
        return ", ".join(raster.name for raster in self.rasters(self.LABEL_RASTERS))


def parse_bands(text: str) -> tuple[int, ...] | None:
    """Read "1, 2, 3" or "1;2;3" as band numbers; None for an empty text. Raises `JobError` for anything else."""
    parts = text.replace(";", ",").replace(",", " ").split()
    if not all(part.isdigit() and int(part) for part in parts):
        raise JobError(f"The bands '{text}' are no numbers; write for instance 1, 2, 3.")
    return tuple(int(part) for part in parts) or None


def paired(rasters: Sequence[str], labels: Sequence[str]) -> tuple[list[str], bool]:
    """The label raster of each raster, by file name where all have one partner, else by order; whether by order.

    The ending does not count, and a label raster may add a word: scene_classes.png goes with scene.tif, unless there
    is a scene_classes.tif. A single label raster goes with every raster. Raises `JobError` for other numbers.
    """
    if len(labels) == 1:
        return [labels[0]] * len(rasters), False
    stems = [Path(path).stem for path in rasters]
    partners: dict[str, list[str]] = {stem: [] for stem in stems}
    for path in labels:
        begun = [stem for stem in stems if f"{Path(path).stem}_".startswith((f"{stem}_", f"{stem}-"))]
        if begun:
            partners[max(begun, key=len)].append(path)
    # Of several the one of the same name.
    found = [[path for path in partners[stem] if Path(path).stem == stem] or partners[stem] for stem in stems]
    if all(len(some) == 1 for some in found):
        return [some[0] for some in found], False
    if len(labels) != len(rasters):
        raise JobError(
            f"{len(labels)} label rasters for {len(rasters)} rasters; give one for each, of the same file name or in "
            "the same order, or a single one for all."
        )
    return list(labels), True


def is_of_samples(source: QgsProcessingFeatureSource) -> bool:
    """Whether a layer of polygons is one of `selectsamples`, also after the analyst has drawn in it."""
    return set(SAMPLE_FIELDS) <= set(source.fields().names())


def read_polygons(
    source: QgsProcessingFeatureSource,
    field: str,
    *,
    raster: RasterInput,
    context: QgsProcessingContext,
    progress: Progress,
) -> list[tuple[BaseGeometry, str | None]]:
    """Polygons of a layer that meet a raster, in its CRS, with their class; "" without a field, None without a value.

    Curves, z and m are left out and invalid outlines mended. Raises `JobError` for a layer without CRS and for
    coordinates that cannot be transformed; `Cancelled`.
    """
    if raster.crs.isValid() and not source.sourceCrs().isValid():
        raise JobError(f"'{source.sourceName()}' has no CRS; assign one with Layer > Set CRS of Layer(s).")
    transform = QgsCoordinateTransform(source.sourceCrs(), raster.crs, context.transformContext())
    extent = QgsRasterLayer(raster.path).extent()
    request = QgsFeatureRequest()
    # Where the raster reaches beyond the place that the labels' CRS is for, look at all of them.
    with contextlib.suppress(QgsCsException):
        request.setFilterRect(transform.transformBoundingBox(extent, QgsCoordinateTransform.ReverseTransform))
    polygons: list[tuple[BaseGeometry, str | None]] = []
    for feature in source.getFeatures(request, QgsProcessingFeatureSource.FlagSkipGeometryValidityChecks):
        raise_if_cancelled(progress)
        if not _has_outline(feature):
            continue
        name = _class_of(feature, field)
        polygons += [(part, name) for part in _parts(feature, transform) if _meets(part, extent)]
    return polygons


def _has_outline(feature: QgsFeature) -> bool:
    return bool(feature.hasGeometry() and not feature.geometry().isEmpty())


def _class_of(feature: QgsFeature, field: str) -> str | None:
    if not field:
        return ""
    value = feature[field]
    # Shapefiles and spreadsheets hold whole numbers as decimals: 1.0 is the class that is 1 elsewhere.
    is_whole = isinstance(value, float) and value.is_integer()
    text = "" if value is None or value == NULL else str(int(value) if is_whole else value).strip()
    return text or None


def _parts(feature: QgsFeature, transform: QgsCoordinateTransform) -> list[BaseGeometry]:
    """Single polygons of a feature in the raster's CRS."""
    # shapely comes from the environment, which is not there yet when QGIS imports this file.
    import shapely

    geometry = straight_geometry(feature, transform, what="labels")
    if not geometry.isGeosValid():
        geometry = geometry.makeValid()
    return [
        shapely.from_wkb(bytes(part.asWkb()))
        for part in geometry.asGeometryCollection()
        if part.type() == QgsWkbTypes.GeometryType.PolygonGeometry
    ]


def _meets(polygon: BaseGeometry, extent: Any) -> bool:
    left, bottom, right, top = polygon.bounds
    return bool(
        left < extent.xMaximum()
        and right > extent.xMinimum()
        and bottom < extent.yMaximum()
        and top > extent.yMinimum()
    )
