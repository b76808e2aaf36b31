"""Evaluation: compare solvers on held-out prompts, with intervals, and report the results."""
