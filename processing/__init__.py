"""Whole rasters: reading and writing (`raster`), work on them (`jobs`), and QGIS Processing on top (`algorithms`)."""
