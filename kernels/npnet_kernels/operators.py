"""Import this module before loading an exported program: it registers every `npnet::` operator.

`import npnet_kernels` alone registers `svd` and `canonical_signs`; the others wait for their first use,
because `triton_op` imports PyTorch's compiler, which takes a second.
"""

from npnet_kernels.affine import operators as _affine  # noqa: F401
from npnet_kernels.attention import operators as _attention  # noqa: F401
from npnet_kernels.embedding import operators as _embedding  # noqa: F401
from npnet_kernels.features import operators as _features  # noqa: F401
from npnet_kernels.linalg import signs as _signs  # noqa: F401
from npnet_kernels.linalg import svd as _svd  # noqa: F401
from npnet_kernels.linear import operators as _linear  # noqa: F401
from npnet_kernels.reconstruction import operators as _reconstruction  # noqa: F401
