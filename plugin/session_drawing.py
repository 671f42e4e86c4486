"""The object in hand on the canvas."""

from __future__ import annotations

from qgis.core import QgsGeometry, QgsPointXY, QgsRectangle

from .crs import CanvasToRaster, geometry_from_wkb
from .rubber_bands import Overlay
from .session import Session


def draw_session(session: Session, overlay: Overlay, *, mask: QgsGeometry | None, mapping: CanvasToRaster) -> None:
    """Show the prompts and the mask (raster's CRS) of the object. Raises `CoordinateError`."""
    step, answer = session.step, session.shown_answer
    points = [
        (mapping.point_to_canvas(point), bool(label)) for point, label in zip(step.points_map, step.labels, strict=True)
    ]
    scribbles = [
        (mapping.to_canvas(QgsGeometry.fromPolylineXY([QgsPointXY(*point) for point in line])), bool(label))
        for line, label in zip(step.scribbles_map, step.scribble_labels, strict=True)
    ]
    box = outline = None
    if step.box_map is not None:
        box = mapping.to_canvas(QgsGeometry.fromRect(QgsRectangle(*step.box_map)).densifyByCount(8))
    if step.outline_wkb:
        outline = mapping.to_canvas(geometry_from_wkb(step.outline_wkb))
    overlay.show_prompts(points, box=box, scribbles=scribbles, outline=outline)
    overlay.show_mask(None if mask is None else mapping.to_canvas(mask))
    # The preview stays until the answer to the click on it is there: no flicker.
    if answer is not None or session.is_empty:
        overlay.show_hover(None)
