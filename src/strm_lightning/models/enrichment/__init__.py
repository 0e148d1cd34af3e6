"""Enrichment: compute features from the pooled maps of a clip."""
