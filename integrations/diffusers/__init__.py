"""ConsistencySolver for diffusers, in one file: `scheduling_consistency_solver.py`."""
