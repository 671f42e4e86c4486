"""Semantic segmentation models: a class for every pixel, in packages that describe themselves."""
