"""Sizes of the blocks that Triton's kernels hold."""

DOT = 16  # the smallest side of `tl.dot`


def power_of_two(n: int, least: int = 1) -> int:
    """The smallest power of two that is no less than `n` and `least`, itself one."""
    return max(least, 1 << (n - 1).bit_length())
