"""How XLA compiles in tests: quickly. They compile much and compute little, so LLVM does not optimise; the HLO is the same."""

import importlib.metadata

QUICK = '--xla_backend_optimization_level=0'
FUSED = {}  # options of jax.jit for a program whose rounding is compared with another's, down to gradients that are all rounding
# A third of the time to compile. A flag that XLA does not know ends the process, so other versions go without.
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  QUICK += ' --xla_cpu_use_fusion_emitters=false'
  # Small modules compile in a tenth less CPU time in one part than in many.
  QUICK += ' --xla_cpu_parallel_codegen_split_count=1'
  FUSED = {'xla_cpu_use_fusion_emitters': True}
