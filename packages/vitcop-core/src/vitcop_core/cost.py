"""What a language model's prefill costs, in multiply-accumulates and in bytes of key-value cache.

The counter is the one of the released code, 4 N d^2 + 2 N^2 d + 3 N d d_ff a layer. It is what the paper's measured
TFLOPs agree with; Equation 7 as printed counts neither multiply-accumulates nor floating-point operations. One
multiply-accumulate is two floating-point operations.
"""

from dataclasses import dataclass, fields

from vitcop_core.checks import MAX_LAYERS, check_instance, check_int, plain_fields

# Sums of counts of which each is within the usual limit.
_MOST_TOKENS = 2**63 - 1


@dataclass(frozen=True)
class LanguageModelShape:
    """The sizes of a language model that its cost depends on.

    Attributes:
        num_layers: Decoder layers, at most 10,000.
        hidden_size: Width d of the residual stream.
        intermediate_size: Width d_ff of the gated feed-forward block.
        num_heads: Query heads H.
        num_kv_heads: Key-value heads G; equal to ``num_heads`` without grouped queries.
        head_dim: Width e of a head.

    Raises:
        TypeError: A size is not an integer.
        ValueError: A size is not positive.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        """Check the sizes."""
        plain_fields(self)
        for field in fields(self):
            check_int(field.name, getattr(self, field.name), 1, MAX_LAYERS if field.name == "num_layers" else None)


def check_shape(shape: object) -> None:
    """Raise ``TypeError`` unless ``shape`` is that of a language model."""
    check_instance("shape", shape, LanguageModelShape, "a LanguageModelShape")


def layer_macs(shape: LanguageModelShape, tokens: int, past: int = 0) -> int:
    """Return the multiply-accumulates of one decoder layer over ``tokens`` tokens.

    Query and output projections 2 N d (H e), key and value projections 2 N d (G e), scores and weighted values
    2 N^2 (H e), gated feed-forward 3 N d d_ff. With as many key-value heads as query heads and H e = d this is
    4 N d^2 + 2 N^2 d + 3 N d d_ff. Tokens that the layer's cache holds already add 2 N P (H e).

    What a method computes to choose tokens is not counted.

    Args:
        shape: The language model.
        tokens: N.
        past: P.

    Raises:
        TypeError: ``shape`` is not one, or a number no integer.
        ValueError: A number is negative.
    """
    check_shape(shape)
    tokens, past = check_int("tokens", tokens, 0, _MOST_TOKENS), check_int("past", past, 0, _MOST_TOKENS)
    query_width = shape.num_heads * shape.head_dim
    kv_width = shape.num_kv_heads * shape.head_dim
    projections = 2 * tokens * shape.hidden_size * (query_width + kv_width)
    attention = 2 * tokens * (tokens + past) * query_width
    feed_forward = 3 * tokens * shape.hidden_size * shape.intermediate_size
    return projections + attention + feed_forward


def layer_kv_bytes(shape: LanguageModelShape, tokens: int, bytes_per_element: int = 2) -> int:
    """Return the bytes that one layer's keys and values of ``tokens`` tokens take.

    Raises:
        TypeError: ``shape`` is not one, or a number no integer.
        ValueError: ``tokens`` is negative, or ``bytes_per_element`` below 1.
    """
    check_shape(shape)
    tokens = check_int("tokens", tokens, 0, _MOST_TOKENS)
    bytes_per_element = check_int("bytes_per_element", bytes_per_element, 1)
    return 2 * shape.num_kv_heads * shape.head_dim * bytes_per_element * tokens
