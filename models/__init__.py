"""Promptable and semantic segmentation models: arrays and tensors in, arrays out.

Nothing here knows QGIS or a raster file. Modules that describe models (`card`, `catalogue`, `registry`,
`storage`, `progress`, `errors`, `prompts`) import without torch, so that QGIS can list them at once;
the modules that compute import torch at their top.
"""
