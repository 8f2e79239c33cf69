"""What the kernels cost, beside the references, the released code's formulation and what the machine can do.

``python -m vitcop_cuda.bench`` measures and stores; nothing here is imported by the package itself.
"""
