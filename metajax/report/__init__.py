"""Plots from a work directory."""
