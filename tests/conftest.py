"""Small pictures, networks and environments that several test files share."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from agents.vec_env import GymnasiumVecEnv
from gan.adversarial import AdversarialConfig, AdversarialUpdate
from gan.content import ENVIRONMENT_VARIABLE, ContentLoss
from gan.generator import Generator, GeneratorConfig
from gan.training import PatchSampler
from rlsr_env.codec import LRCodec
from rlsr_env.images import DecodedImages
from rlsr_env.patches import PatchSource
from rlsr_env.vector_env import RestorationVectorEnv


@pytest.fixture(autouse=True)
def _no_weights_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever VGG19 weights this machine has, no test finds them."""
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.getbasetemp() / "empty-torch-home"))


@pytest.fixture
def torch_rng() -> Iterator[None]:
    """The global random stream is put back where it was."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def _picture(height: int, width: int, seed: int) -> np.ndarray:
    """A gradient with waves and a few hard-edged boxes, `(height, width, 3) uint8`."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = 40 * np.sin(rows / rng.uniform(1.5, 4)) * np.cos(columns / rng.uniform(1.5, 4))
    picture = (120 + rows / 2 - columns / 3 + waves)[..., None] + rng.uniform(-30, 30, 3)
    for _ in range(6):
        top, left = rng.integers(0, height - 12), rng.integers(0, width - 12)
        picture[top : top + 12, left : left + 12] = rng.uniform(0, 255, 3)
    return picture.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def hr_pictures() -> list[np.ndarray]:
    """Two pictures that are just large enough for MS-SSIM, of sides that no scale divides."""
    return [_picture(163, 181, 0), _picture(171, 165, 1)]


@pytest.fixture(scope="session")
def patch_source() -> PatchSource:
    """LR patches of 8 pixels at scale 2, from three pictures of 64 to 96 pixels."""
    sizes = [(64, 80), (96, 64), (72, 72)]
    pictures = tuple(_picture(height, width, seed) for seed, (height, width) in enumerate(sizes))
    images = DecodedImages(tuple(f"picture-{number}" for number in range(3)), pictures, ())
    return PatchSource(images, LRCodec(scale=2, quality=75), lr_patch_size=8)


@pytest.fixture(scope="session")
def content_loss() -> ContentLoss:
    """VGG19 of fixed random weights; built once, because of its size."""
    return ContentLoss()


@pytest.fixture
def small_config() -> GeneratorConfig:
    """An architecture with everything that can go wrong: BatchNorm, two sub-pixel layers, no base."""
    return GeneratorConfig(scale=2, channels=8, n_blocks=1, batch_norm=True, n_subpixel_layers=2, base="none")


@pytest.fixture
def make_generator(torch_rng: None, small_config: GeneratorConfig) -> Callable[..., Generator]:
    """Builds seeded generators."""

    def make(config: GeneratorConfig | None = None, seed: int = 0) -> Generator:
        torch.manual_seed(seed)
        return Generator(config or small_config)

    return make


@pytest.fixture
def make_sampler(patch_source: PatchSource) -> Callable[..., PatchSampler]:
    """Builds streams of batches."""
    return lambda seed=0, batch_size=2: PatchSampler(patch_source, batch_size, seed)


@pytest.fixture
def make_update(make_sampler: Callable[..., PatchSampler]) -> Callable[..., AdversarialUpdate]:
    """Builds adversarial updates with a tiny discriminator; without content loss, unless one is given."""

    def make(
        generator: Generator, content: ContentLoss | None = None, seed: int = 0, batch_size: int = 2, **config: object
    ) -> AdversarialUpdate:
        settings = AdversarialConfig(**{"discriminator_channels": 4, "learning_rate": 1e-3, **config})  # type: ignore[arg-type]
        return AdversarialUpdate(generator, make_sampler(seed, batch_size), content, settings, seed=seed)

    return make


@pytest.fixture
def make_env(patch_source: PatchSource) -> Callable[..., GymnasiumVecEnv]:
    """Builds `rlsr/PSNRPrediction-v0` for SB3: two environments, four steps on a patch."""

    def make(num_envs: int = 2) -> GymnasiumVecEnv:
        return GymnasiumVecEnv(RestorationVectorEnv(num_envs, source=patch_source, episode_length=4))

    return make
