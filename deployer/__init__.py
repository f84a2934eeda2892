"""Modelium."""
