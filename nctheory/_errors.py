"""The error that bad arguments raise; without heavy imports, so that a command line can name it and stay fast."""


class ArgumentError(ValueError):
    """A value passed to this library is not what it must be; the message names the argument and says why.

    A `ValueError`, so that callers need not know this class. Command lines show it as one line, whereas other errors
    are faults of the program and keep their traceback.
    """


class DatasetError(RuntimeError):
    """A data set is absent, cannot be downloaded, or cannot be read; the message says where it was looked for."""
