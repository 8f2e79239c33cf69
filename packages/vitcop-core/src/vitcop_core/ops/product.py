"""Matrix products that no setting of the process makes narrower."""

import torch
from torch import Tensor

from vitcop_core.checks import check_instance, require
from vitcop_core.ops._library import accumulator


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left @ right`` in the accumulating dtype: float64, or float32 where the device has none.

    Under autocast a float32 product runs in half precision, and with ``torch.set_float32_matmul_precision`` in TF32 or
    bfloat16; what tokens are chosen by must not depend on either. Neither acts on float64.

    Args:
        left: ``[..., n, d]`` floating.
        right: ``[..., d, m]`` floating.

    Returns:
        ``[..., n, m]`` in the accumulating dtype.

    Raises:
        TypeError: An argument is no floating tensor.
        ValueError: The shapes do not fit.
    """
    for name, tensor in (("left", left), ("right", right)):
        check_instance(name, tensor, Tensor, "a tensor")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must have a floating dtype, got {tensor.dtype}")
    fits = left.dim() > 1 and right.dim() > 1 and left.shape[-1] == right.shape[-2]
    if not fits:
        expected = f"of shape [..., d, m] for the left's {[*left.shape]}"
        require(False, "right", expected, [*right.shape])
    wide = accumulator(left)
    if wide is torch.float64:
        return left.to(wide) @ right.to(wide)
    with torch.autocast(left.device.type, enabled=False):
        return left.to(wide) @ right.to(wide)
