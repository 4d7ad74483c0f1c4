"""Analyses of trained learners: pure functions that return tables."""
