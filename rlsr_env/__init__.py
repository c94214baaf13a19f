"""Gymnasium environments for image restoration: observations are LR pictures, rewards are gains of a metric.

Importing this package registers the ids, so that `gymnasium.make("rlsr/PSNRPrediction-v0")` works.
"""

from typing import Any

from gymnasium.envs.registration import register, registry

# Variants are settings of one class.
ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "rlsr/PSNRPrediction-v0": {"task": "psnr_prediction", "episode_length": 5, "metric": "psnr", "reward": "threshold"},
    "rlsr/SuperResolution-v0": {
        "task": "super_resolution", "episode_length": 1, "metric": "psnr", "reward": "improvement",
    },
    # Scale 2 and quality 20: the patches are small, and the oracle gains three times what the best constant gains.
    "rlsr/DetailControl-v0": {
        "task": "detail_control", "episode_length": 3, "metric": "ssim", "reward": "improvement",
        "scale": 2, "quality": 20,
    },
}  # fmt: skip

for _id, _settings in ENVIRONMENTS.items():
    if _id not in registry:
        # Entry points as strings: an EnvSpec can then be written to JSON, and importing this package stays light.
        register(
            id=_id,
            entry_point="rlsr_env.env:RestorationEnv",
            vector_entry_point="rlsr_env.vector_env:RestorationVectorEnv",
            kwargs=_settings,
        )

# A class of its own: it stores whole pictures, where the others restore patches.
RATE_CONTROL = "rlsr/RateControl-v0"

if RATE_CONTROL not in registry:
    register(
        id=RATE_CONTROL,
        entry_point="rlsr_env.rate_env:RateControlEnv",
        vector_entry_point="rlsr_env.rate_control:RateControlVectorEnv",
    )
