"""Every exception this package raises on purpose, below one base class."""


class KernelError(Exception):
    """Base class: catch this to catch whatever `npnet_kernels` raises on purpose."""


class KernelInputError(KernelError, ValueError):
    """An argument has the wrong shape, dtype, device or value."""


class BackendUnavailableError(KernelError, RuntimeError):
    """The requested back-end cannot run here (no Triton, or no device it compiles for)."""


class SVDInputError(KernelInputError):
    """The matrix given to `svd` cannot be factorised: wrong shape or dtype, NaN or infinity."""


class SVDConvergenceError(KernelError, RuntimeError):
    """No solver reached the required accuracy. Unconverged factors are never returned instead."""
