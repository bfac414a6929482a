"""Every error this package raises on purpose.

Each message says what was expected, what was given, and what to change.
"""


class NPNetError(Exception):
    """Base of all errors raised by `npnet_runtime` and the packages built on it."""


class ConfigError(NPNetError, ValueError):
    """A network configuration that cannot describe an NPNet, or an unknown model name."""


class CheckpointError(NPNetError):
    """A checkpoint that is unreadable, foreign, incomplete, or for another model."""


class PackagedError(NPNetError):
    """Weights bundled with the project that are missing, not listed, or altered."""


class DownloadError(NPNetError):
    """Weights that could not be fetched from the Hugging Face hub."""


class InputError(NPNetError, ValueError):
    """Noise or prompt embeddings that do not fit the network."""


class BundleError(NPNetError):
    """An engine bundle that is missing, incomplete, altered, or of an unknown format."""


class BackendError(NPNetError):
    """No back end can run this engine bundle here, or the one chosen failed to start."""


class PrefetchError(NPNetError):
    """A prefetcher that has no more noise to give, because it was closed or belongs to another process."""


class PipelineError(NPNetError, ValueError):
    """A pipeline that golden noise cannot be attached to, or not in the state it is in."""


class GenerateError(NPNetError):
    """A run of `npnet-generate` that cannot start or go on."""
