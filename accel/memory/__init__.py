"""Predict memory from configurations, and answer whether a job fits."""
