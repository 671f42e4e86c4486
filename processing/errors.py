"""Errors of the raster layer. Each message names the value that was wrong and what to do about it."""


class RasterError(RuntimeError):
    """A raster that cannot be read, written, or used for what was asked."""


class JobError(RuntimeError):
    """A job whose inputs do not fit together."""
