"""Training and testing: the LightningModule, checkpoints, memory."""
