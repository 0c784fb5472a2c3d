"""How a network is trained: configs, steps, losses, augmentation, checkpoints."""
