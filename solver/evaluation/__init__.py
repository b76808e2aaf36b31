"""Evaluation: measures, intervals, comparison, report."""
