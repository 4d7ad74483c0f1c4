"""Figures of a run, from its metrics, its evaluation report and example tasks."""
