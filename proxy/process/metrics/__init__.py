"""Figures of a process that hub and relay show to Prometheus."""
