"""Measure each way to make a model faster beside the stock pipeline: `python -m tools.speed`.

`shapes` has the real networks as configs, `measure` the measurements.
"""
