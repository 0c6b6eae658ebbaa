"""Predicts seconds: operators counted on the meta device, times measured on this machine."""
