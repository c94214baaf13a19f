"""Who acts and learns: Stable-Baselines3 policies on the generator's trunk, the loss-injecting callback, the commands.

Import from the modules (`from agents.callbacks import AdversarialLossCallback`): the package itself stays light, so
that `rlsr --help` answers without importing torch.
"""
