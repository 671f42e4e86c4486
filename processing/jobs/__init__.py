"""Jobs join models and rasters: a frozen dataclass and a function each, for QGIS, a test or a script."""
