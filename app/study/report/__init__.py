"""From a log to its report: analysis, plots, power, and simulated studies."""
