"""The hand-written runtime of the generated package `postbus`.

It stands beside `gen/postbus`, in the same wheel: the generator replaces that folder as a whole,
and imports run one way, `postbus_runtime <- postbus <- shared <- services`. The package whose
contracts it reads is a parameter, so that tests and benchmarks use it for contracts of their own.
The generator and the compatibility check read descriptors and options by the same modules.
"""

__all__: list[str] = []
