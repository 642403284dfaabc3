"""Sections of `python benchmarks/gpu.py`: each is a module with `run(check)`, started in a process of its own."""
