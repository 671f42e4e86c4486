"""What the next click does, in a sentence for the status line. Pure text, no Qt."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .modes import Mode

_WHERE_TO_CLICK = {
    "point": "Click on {what} in '{raster}', right click beside it, or drag a box around it.",
    "box": "Drag a box around {what} in '{raster}', or click on two of its corners.",
    "scribble": "Draw over {what} in '{raster}'; with Shift or the right button over what is not part of it.",
    "polygon": "Click around {what} in '{raster}'; a double click, the right button or Enter closes the polygon.",
    "refine": "Click on the polygon to correct; it becomes the outline to start from.",
    "exemplar": "Click on the polygon of an object of which others like it are to be found.",
    "cut": "Drag a line across the polygons of {target} that are to be cut.",
    "merge": "Click on one polygon of {target} after the other to make one of them, with the right button on one "
    "to merge it with all that touch it.",
}
_WHERE_TO_GO_ON = {
    "box": "Click on the opposite corner of the box; Esc or the right button drops it.",
    "polygon": "Click on the next corner; a double click, the right button or Enter closes the polygon, Backspace "
    "takes a corner back, Esc drops it.",
}
_NOTHING_TO_EDIT = "There is no target layer to {name} in yet; accept an object first, or choose a layer."
_EDITS = ("exemplar", "cut", "merge")


def hint_text(
    mode: Mode,
    *,
    is_begun: bool,
    is_drawing: bool,
    is_correction: bool,
    class_name: str,
    raster_name: str,
    target_name: str,
    is_batch: bool,
    taken_hint: str,
) -> str:
    """Return the sentence; empty without a raster.

    `is_begun`: an object is in the making; `is_drawing`: a box or a polygon is; `is_correction`: its accept corrects a
    polygon; `target_name` is empty for a layer that does not exist yet; `taken_hint`: what clicks do where they go
    elsewhere, else empty.
    """
    if not raster_name:
        return ""
    if is_batch:
        return "The selected features become objects one after another; Esc stops."
    if taken_hint:
        return taken_hint
    what = f"a '{class_name}'" if class_name else "an object"
    name = mode.value.name
    if is_drawing:
        return _WHERE_TO_GO_ON[name]
    if name in ("cut", "merge") and not target_name:
        return _NOTHING_TO_EDIT.format(name=name)
    target_name = target_name or "a new layer"
    if not is_begun or name in _EDITS:
        return _WHERE_TO_CLICK[name].format(what=what, raster=raster_name, target=target_name)
    where = "corrects the polygon" if is_correction else f"puts it as {what} into {target_name}"
    how = {
        "box": "Another box takes the place of the first",
        "scribble": "Draw to add, with Shift to take away",
        "polygon": "Shift+click takes away",
    }.get(name, "Click to add, right click to take away")
    return f"{how}; Enter {where}, Esc drops it."
