"""From files on disk to episodes of uint8 clips: splits, readers, stores, transforms, samplers."""
