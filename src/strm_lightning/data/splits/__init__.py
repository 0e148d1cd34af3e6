"""Splits of classes and videos into train, val and test."""
