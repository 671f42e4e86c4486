"""What a class map learned, as a file that maps other rasters."""

from __future__ import annotations

from pathlib import Path

from ...models.backbone import Backbone
from ...models.class_head import ClassModel, load_class_model, save_class_model
from ..errors import JobError
from .class_map import ClassMapOptions, ClassMapper, Learned, MapClass
from .page import version
from .scene import Scene

_LICENCE_NOTE = (
    "Made from the user's own clicks on features of Apache-2.0 networks (MobileSAM or SAM, EfficientNet-Lite0); "
    "it carries no image data."
)


def save_mapper(mapper: ClassMapper, path: Path) -> None:
    """Save what was learned as one safetensors file with a card that says from what.

    Raises `ClassHeadError` and `JobError` where there is nothing to save, or where the file cannot be written.
    """
    learned, reader, engine = mapper.learned(), mapper.scene.reader, mapper.scene.engine
    card = {
        "classes": [{"id": c.class_id, "name": c.name, "colour": list(c.colour)} for c in mapper.classes],
        "bands": list(reader.bands),
        "stretch": list(reader.stretch.as_key()),
        "gsd_m": reader.gsd_m,
        "window_px": mapper.window_px,
        "is_snapped": mapper.options.is_snapped,
        "backbone_sha256": mapper.backbone_sha256,
        "sam": engine.card.name,
        "sam_sha256": engine.checkpoint_sha256 if mapper.options.with_sam else None,
        "history": list(learned.history),
        "segadapt_version": version(),
        "licence": _LICENCE_NOTE,
    }
    save_class_model(ClassModel(learned.space, learned.head, card), path)


def load_mapper(path: Path, scene: Scene, backbone: Backbone | None) -> ClassMapper:
    """A mapper that maps with a saved model. Raises `ClassHeadError` and, for other networks, `JobError`."""
    model = load_class_model(path)
    _check_model(model, scene, backbone)
    card = model.card
    return ClassMapper(
        scene,
        backbone,
        classes=[MapClass(int(c["id"]), c["name"], tuple(c["colour"])) for c in card["classes"]],
        options=ClassMapOptions(
            head=model.head.kind,
            is_snapped=bool(card["is_snapped"]),
            window_px=int(card["window_px"]),
            with_sam=card["sam_sha256"] is not None,
        ),
        learned=Learned(model.space, model.head, tuple(card.get("history", []))),
    )


def _check_model(model: ClassModel, scene: Scene, backbone: Backbone | None) -> None:
    """Raise `JobError` where the features at hand are not those that the model was made from."""
    card = model.card
    engine = scene.engine
    if card["sam_sha256"] not in (None, engine.checkpoint_sha256):
        raise JobError(
            f"The class map model was made with the weights of '{card['sam']}', not with those of "
            f"'{engine.card.name}'; choose that model."
        )
    found = None if backbone is None else backbone.checkpoint_sha256
    if card["backbone_sha256"] != found:
        raise JobError("The class map model was made with another backbone; get the weights that its card names.")
