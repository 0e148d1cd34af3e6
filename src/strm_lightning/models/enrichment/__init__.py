"""Enrichment: from the pooled maps of one clip to its features."""
