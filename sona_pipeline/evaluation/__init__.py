"""Detectors on test sets near and far: scores, metrics, reports."""
