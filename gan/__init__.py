"""The networks: generator, discriminator, losses, training stages."""
