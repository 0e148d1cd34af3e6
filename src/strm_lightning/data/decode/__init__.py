"""Decode videos and images."""
