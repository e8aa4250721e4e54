"""What can go wrong, as one small hierarchy: catch `MilrunError` to catch all of it."""


class MilrunError(Exception):
    """Base of every error that milrun raises on purpose."""


class PackageError(MilrunError):
    """The package is incomplete, corrupt or inconsistent; nothing was executed."""


class UnsupportedModelError(MilrunError):
    """The package holds a kind of model that is not an ML Program."""


class UnsupportedOperationError(MilrunError):
    """The program uses operations that milrun has no kernel for; raised when the model is loaded."""


class InputError(MilrunError, ValueError):
    """The caller's inputs don't fit the model's declared inputs."""


class ExecutionError(MilrunError):
    """An operation failed while the program ran, or its result contradicts its declared type."""
