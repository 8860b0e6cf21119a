"""Evaluation: scores with intervals, and what can be scored without looking."""
