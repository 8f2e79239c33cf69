"""The operators: typed functions over ``torch.ops.vitcop``.

All take a batch, and ``lengths`` makes it ragged; a row's result never depends on its neighbors. Scores and distances
are computed in float32 or better whatever the input dtype, and whatever autocast, the default dtype and the precision
of matrix products are set to. Sizes come from the arguments and never from tensor values,
so no operator waits for the device, and none looks at lengths, counts or labels on one: those that do not fit are cut
to what does (the compiled CPU kernels refuse them). ``REFERENCES`` has the pure-torch implementation of each by name.
"""

from vitcop_core.ops._library import REFERENCES
from vitcop_core.ops.cls_saliency import cls_saliency
from vitcop_core.ops.co_prune import co_prune
from vitcop_core.ops.gather_tokens import gather_tokens
from vitcop_core.ops.key_norm import key_norm
from vitcop_core.ops.product import product
from vitcop_core.ops.received_attention import received_attention
from vitcop_core.ops.top_tokens import top_tokens
from vitcop_core.ops.vic import auto_cutoff, vic, vic_in_time

__all__ = [
    "REFERENCES",
    "auto_cutoff",
    "cls_saliency",
    "co_prune",
    "gather_tokens",
    "key_norm",
    "product",
    "received_attention",
    "top_tokens",
    "vic",
    "vic_in_time",
]
