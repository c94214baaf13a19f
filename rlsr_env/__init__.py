"""Gymnasium environments for image restoration: observations are LR pictures, rewards are gains of a metric.

Importing this package registers the ids, so that `gymnasium.make("rlsr/PSNRPrediction-v0")` works.
"""

from gymnasium.envs.registration import register, registry

if "rlsr/PSNRPrediction-v0" not in registry:
    # Entry points as strings: an EnvSpec can then be written to JSON, and importing this package stays light.
    register(
        id="rlsr/PSNRPrediction-v0",
        entry_point="rlsr_env.env:RestorationEnv",
        vector_entry_point="rlsr_env.vector_env:RestorationVectorEnv",
        kwargs={"task": "psnr_prediction"},
    )
