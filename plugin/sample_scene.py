"""The sample scene that comes with the plugin, as layers of the project."""

from __future__ import annotations

from pathlib import Path

from qgis.core import QgsProject, QgsRasterLayer, QgsVectorLayer

_FOLDER = Path(__file__).resolve().parent / "resources" / "sample"
# Bottom to top, so that the small things stay visible.
_VECTORS = (
    ("reference", "Reference outlines"),
    ("prompt_boxes", "Prompt boxes"),
    ("prompt_points", "Prompt points"),
)


def load_sample_scene(project: QgsProject) -> QgsRasterLayer:
    """Add the scene, its prompts and its reference outlines to the project and return the raster.

    The vector layers are switched off: they are for the algorithms, and would hide what is to be clicked.
    A layer that the project has is not added again. Raises `FileNotFoundError` where the scene is missing.
    """
    path = _FOLDER / "rotterdam_50cm.tif"
    raster = QgsRasterLayer(str(path), "Rotterdam 50 cm (sample)", "gdal")
    if not raster.isValid():
        raise FileNotFoundError(f"The sample scene {path} is missing; install SegAdapt again.")
    known = {layer.source(): layer for layer in project.mapLayers().values()}
    if raster.source() in known:
        raster = known[raster.source()]
    else:
        project.addMapLayer(raster)
    for table, title in _VECTORS:
        layer = QgsVectorLayer(f"{_FOLDER / 'rotterdam.gpkg'}|layername={table}", f"{title} (sample)", "ogr")
        if layer.isValid() and layer.source() not in known:
            project.addMapLayer(layer)
            project.layerTreeRoot().findLayer(layer.id()).setItemVisibilityChecked(False)
    return raster
