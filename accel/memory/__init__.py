"""Predicts memory from configurations and answers whether a job fits."""
