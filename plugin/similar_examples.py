"""Of what similar objects are looked for: outlines chosen with X, else the objects of the class in the target layer."""

from __future__ import annotations

from qgis.core import QgsFeature, QgsFeatureRequest, QgsGeometry, QgsVectorLayer

from .crs import CoordinateError, geometry_from_wkb
from .feature_outlines import valid_polygons
from .field_mapping import field_of
from .polygon_picker import flat_geometry
from .scene_control import SceneControl
from .target import TargetChoice

# More examples say little more, and each costs a window to encode.
MOST_EXAMPLES = 20


class SimilarExamples:
    """Outlines are WKB in the raster's CRS."""

    def __init__(self, *, scene: SceneControl, target: TargetChoice) -> None:
        self._scene, self._target = scene, target
        self._chosen: list[tuple[bytes, str]] = []

    def __len__(self) -> int:
        """Return how many were chosen with X."""
        return len(self._chosen)

    def add(self, wkb: bytes, class_name: str) -> None:
        """Take an outline that was chosen, and its class."""
        self._chosen.append((bytes(wkb), class_name))

    def clear(self) -> None:
        """Take back what was chosen."""
        self._chosen.clear()

    def rename_class(self, old: str, new: str) -> None:
        """Follow a class that has another name now."""
        self._chosen = [(wkb, new if name == old else name) for wkb, name in self._chosen]

    def outlines(self) -> list[QgsGeometry]:
        """Return what was chosen."""
        return [geometry_from_wkb(wkb) for wkb, _ in self._chosen]

    def newest(self, class_name: str) -> tuple[list[bytes], str]:
        """Return the newest examples and their class: those chosen, else objects of `class_name` on the raster.

        What was chosen without a class is of `class_name`, too.
        """
        if self._chosen:
            return [wkb for wkb, _ in self._chosen[-MOST_EXAMPLES:]], self._chosen[-1][1] or class_name
        layer, mapping = self._target.layer(), self._scene.mapping
        if layer is None or mapping is None:
            return [], class_name
        extent = QgsGeometry.fromRect(self._scene.extent)
        found: list[bytes] = []
        for feature in reversed(_features_of_class(layer, class_name)):
            try:
                outline = valid_polygons(flat_geometry(feature, layer, destination=mapping.raster_crs))
            except CoordinateError:
                continue  # Without a place in the raster's CRS it is not on the raster.
            if outline.intersects(extent):
                found.append(bytes(outline.asWkb()))
            if len(found) == MOST_EXAMPLES:
                break
        return found[::-1], class_name


def _features_of_class(layer: QgsVectorLayer, class_name: str) -> list[QgsFeature]:
    """Features of a class, the newest last; all of them for no class or in a layer without classes."""
    field = field_of(layer, "class")
    # What is not saved yet has ids below zero, the newest the lowest.
    features = sorted(layer.getFeatures(QgsFeatureRequest()), key=lambda one: (one.id() < 0, abs(one.id())))
    with_outline = [feature for feature in features if feature.hasGeometry()]
    if not class_name or field is None:
        return with_outline
    return [feature for feature in with_outline if feature[field] == class_name]
