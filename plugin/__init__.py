"""The QGIS side: the dock, the map tool and the worker thread. Nothing here imports torch or rasterio."""
