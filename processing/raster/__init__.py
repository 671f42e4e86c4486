"""Raster files in and out: windows, chips, stretch, polygons. No torch, no QGIS."""
