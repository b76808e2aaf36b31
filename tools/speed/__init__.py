"""What each way of making a model faster is worth, beside the stock pipeline: `python -m tools.speed`.

`shapes` has the real networks as configs, `measure` the measurements.
"""
