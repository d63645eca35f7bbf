"""The parts of gpu.py: modules named *_tasks run in separate processes, which the others start."""
