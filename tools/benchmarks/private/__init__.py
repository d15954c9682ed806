"""Private inference, measured: two processes compute on secret shares with SPU, and what they send is counted.

``make private`` makes an environment for it in ``_build/private`` and runs ``python -m tools.benchmarks.private``.
nfcore does not import this package. The page Private inference reads the files that it writes.

- ``engine``: two parties on this machine, their programs and the count of their bytes and messages.
- ``operations``: the functions that are measured, one by one.
- ``models``: the decoder in JAX, from the weights of a run.
- ``costs``: the cost of a whole model as the sum of its operations.
"""
