"""Detectors from ID images and their outliers."""
