"""Kinds of torch functions for the rules, by the names that a recording holds."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ELEMENTWISE = _words("""
    add sub mul div true_divide neg pow exp log log1p expm1 sqrt rsqrt sin cos tanh sigmoid silu
    gelu relu relu6 leaky_relu elu softplus mish hardswish clamp clamp_min clamp_max clip abs square
    reciprocal where trunc frac addcdiv round_ clamp_min_ clamp_max_
    to type float half bfloat16 double type_as clone contiguous dropout masked_fill nan_to_num
    eq ne lt le gt ge logical_and logical_or logical_not bitwise_and bitwise_or bitwise_not bool
    minimum maximum addcmul lerp erf round floor ceil sign fmod remainder detach rsub int long
    empty_like zeros_like ones_like full_like add_ sub_ mul_ div_ copy_ clamp_ neg_ silu_ relu_
    sigmoid_ tanh_ exp_ addcmul_ lerp_ masked_fill_ zero_ fill_ multiply subtract divide negative
    __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ __mul__ __rmul__ __imul__ __truediv__
    __rtruediv__ __itruediv__ __pow__ __rpow__ __neg__ __and__ __or__ __xor__ __invert__ __eq__
    __ne__ __lt__ __le__ __gt__ __ge__ __rdiv__
""")
SHAPE = _words("""
    view reshape flatten unflatten permute transpose swapaxes movedim moveaxis squeeze unsqueeze
    expand unbind chunk split split_with_sizes tensor_split select narrow __getitem__
    unsafe_chunk __get__ t
""")
REDUCE = _words("""
    mean sum var amax amin norm softmax log_softmax logsumexp normalize any all cumsum flip
""")
# Each sample of a batch [N, ...] is independent.
SAMPLEWISE = _words("""
    conv1d conv2d conv3d conv_transpose2d group_norm instance_norm interpolate pad avg_pool2d
    max_pool2d pixel_shuffle pixel_unshuffle
""")
EXPENSIVE = _words("""
    linear matmul bmm baddbmm addmm __matmul__ conv1d conv2d conv3d einsum
    scaled_dot_product_attention
""")
