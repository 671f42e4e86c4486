"""Errors of the model layer. Each message names the value that was wrong and what to do about it."""


class ModelError(RuntimeError):
    """Root of every error that the model layer raises on purpose."""


class UnknownModelError(ModelError, LookupError):
    """A model name that the catalogue does not hold."""


class CheckpointError(ModelError, OSError):
    """Weights that are missing, cannot be fetched, or are not what their card says."""


class PromptError(ModelError, ValueError):
    """Prompts that contradict themselves or lie outside the chip."""


class EngineError(ModelError):
    """The inference engine cannot run: wrong device, no memory left, or already closed."""


class Cancelled(Exception):  # noqa: N818 - a request of the user, not an error
    """Raised where work stopped because `Progress.is_cancelled` said so; nothing half-written stays behind."""
