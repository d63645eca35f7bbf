"""XLA flags of tests: fast compilation, without LLVM optimization; the HLO is unchanged."""

import importlib.metadata

QUICK = '--xla_backend_optimization_level=0'
# Options of jax.jit for programs whose rounding is compared with another program's.
FUSED = {}
# These flags compile in a third of the time. A flag that XLA does not know ends the process, so
# other versions do without them.
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  QUICK += ' --xla_cpu_use_fusion_emitters=false'
  # Small modules compile in a tenth less CPU time in one part than in many.
  QUICK += ' --xla_cpu_parallel_codegen_split_count=1'
  FUSED = {'xla_cpu_use_fusion_emitters': True}
