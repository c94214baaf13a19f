from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import VGG19_Weights, vgg19
from torchvision.transforms.functional import normalize

from gan.content import ENVIRONMENT_VARIABLE, ContentLoss, choose_content_loss

CACHED_NAME = "vgg19-dcbb9e9d.pth"


def shapes() -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {key: tensor.shape for key, tensor in vgg19(weights=None).features.state_dict().items()}


def write_weights(path: Path, value: float, prefix: str = "features.", **changed: Tensor) -> Path:
    """Weights of torchvision's form that are `value` throughout; one stored number each keeps the file small."""
    state_dict = {key: torch.full((1,), value).expand(shape) for key, shape in shapes().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({prefix + key: tensor for key, tensor in (state_dict | changed).items()}, path)
    return path


def value_of(loss: ContentLoss | None) -> float:
    """The value that a loss's weights have throughout."""
    assert loss is not None
    values = {tensor.mean().item() for tensor in loss.features.state_dict().values()}
    assert len(values) == 1
    return values.pop()


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torchvision, and no way to download anything."""

    def no_network(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host\nand a second line")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    return tmp_path / "home"


def test_random_weights_are_fixed_and_leave_the_global_stream_alone(content_loss: ContentLoss, torch_rng: None) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = ContentLoss()
    assert torch.equal(torch.get_rng_state(), before)
    for (name, first), second in zip(content_loss.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(first, second), name


def test_given_weights_leave_the_global_stream_alone(content_loss: ContentLoss) -> None:
    before = torch.get_rng_state()
    ContentLoss(content_loss.features.state_dict())
    assert torch.equal(torch.get_rng_state(), before)


def test_random_weights_keep_the_features_in_a_usable_range(content_loss: ContentLoss) -> None:
    features = content_loss.extract(torch.rand(2, 3, 32, 32))
    assert features.shape == (2, 512, 2, 2)
    assert (features >= 0).all()
    assert 0.1 < features.std() < 10


def test_loss_agrees_with_torchvisions_own_network(content_loss: ContentLoss) -> None:
    with torch.device("meta"):
        network = vgg19(weights=None).features
    network = network.to_empty(device="cpu")
    rest = {key: torch.zeros(shape) for key, shape in shapes().items()}
    network.load_state_dict(rest | content_loss.features.state_dict())
    # After the ReLU that follows the sixteenth convolution (conv5_4), before the fifth pooling.
    assert [type(layer) for layer in network[-3:]] == [nn.Conv2d, nn.ReLU, nn.MaxPool2d]

    def features(image: Tensor) -> Tensor:
        return network[:-1](normalize(image, VGG19_Weights.IMAGENET1K_V1.transforms().mean, [0.229, 0.224, 0.225]))

    sr_image, hr_image = torch.rand(2, 3, 32, 48), torch.rand(2, 3, 32, 48)
    loss, metrics = content_loss(sr_image, hr_image)
    expected = (features(sr_image) - features(hr_image)).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert metrics["gan/content"].item() == loss.item()
    assert not metrics["gan/content"].requires_grad


def test_pictures_are_normalised_by_imagenets_mean_and_deviation(content_loss: ContentLoss) -> None:
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    seen = []
    handle = content_loss.features[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    content_loss.extract(mean.view(1, 3, 1, 1).expand(1, 3, 16, 16))
    content_loss.extract((mean + 2 * deviation).view(1, 3, 1, 1).expand(1, 3, 16, 16))
    handle.remove()
    assert torch.allclose(seen[0], torch.zeros(1, 3, 16, 16), atol=1e-6)
    assert torch.allclose(seen[1], torch.full((1, 3, 16, 16), 2.0), atol=1e-6)


def test_equal_pictures_cost_nothing_and_the_gradient_flows_to_the_sr_picture_alone(content_loss: ContentLoss) -> None:
    image = torch.rand(1, 3, 16, 16)
    assert content_loss(image, image)[0].item() == 0.0
    sr_image = torch.rand(1, 3, 16, 16, requires_grad=True)
    hr_image = torch.rand(1, 3, 16, 16, requires_grad=True)
    content_loss(sr_image, hr_image)[0].backward()
    assert sr_image.grad is not None
    assert sr_image.grad.abs().sum() > 0
    assert hr_image.grad is None


def test_network_is_frozen(content_loss: ContentLoss) -> None:
    assert not any(parameter.requires_grad for parameter in content_loss.parameters())
    assert not content_loss.training
    content_loss(torch.rand(1, 3, 16, 16, requires_grad=True), torch.rand(1, 3, 16, 16))[0].backward()
    assert all(parameter.grad is None for parameter in content_loss.parameters())


@pytest.mark.parametrize("size", [(15, 64), (64, 8)])
def test_too_small_pictures_are_refused(size: tuple[int, int], content_loss: ContentLoss) -> None:
    with pytest.raises(ValueError, match="needs pictures of 16 pixels or more, got"):
        content_loss(torch.rand(1, 3, *size), torch.rand(1, 3, *size))


def test_argument_comes_before_environment_before_cache_before_random(
    torch_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content_loss: ContentLoss
) -> None:
    choice = choose_content_loss("auto")
    assert choice.loss is not None
    assert torch.equal(choice.loss.features[0].weight, content_loss.features[0].weight)
    assert choice.description.startswith("VGG19 of fixed random weights (seed 0): no weights given")

    write_weights(torch_home / "hub" / "checkpoints" / CACHED_NAME, 0.25)
    for name in ("auto", "vgg19"):
        choice = choose_content_loss(name)
        assert value_of(choice.loss) == 0.25
        assert choice.description == "VGG19 conv5_4, torchvision's weights"

    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(write_weights(tmp_path / "environment.pth", 0.5)))
    choice = choose_content_loss("auto")
    assert value_of(choice.loss) == 0.5
    assert choice.description == "VGG19 conv5_4, weights of environment.pth"

    choice = choose_content_loss("vgg19", write_weights(tmp_path / "argument.pth", 0.75))
    assert value_of(choice.loss) == 0.75
    assert choice.description == "VGG19 conv5_4, weights of argument.pth"


def test_random_and_none_are_as_asked_for(torch_home: Path, content_loss: ContentLoss) -> None:
    write_weights(torch_home / "hub" / "checkpoints" / CACHED_NAME, 0.25)
    choice = choose_content_loss("random")
    assert choice.loss is not None
    assert torch.equal(choice.loss.features[0].weight, content_loss.features[0].weight)
    assert choice.description == "VGG19 of fixed random weights (seed 0), as asked for"
    choice = choose_content_loss("none")
    assert choice.loss is None
    assert choice.description == "none"


@pytest.mark.parametrize("prefix", ["features.", ""])
def test_pth_with_and_without_prefix_is_read(prefix: str, tmp_path: Path) -> None:
    assert value_of(choose_content_loss("auto", write_weights(tmp_path / "vgg.pth", 0.5, prefix)).loss) == 0.5


def test_safetensors_with_prefix_and_classifier_is_read(tmp_path: Path, content_loss: ContentLoss) -> None:
    tensors = {f"features.{key}": value.contiguous() for key, value in content_loss.features.state_dict().items()}
    save_file(tensors | {"classifier.6.bias": torch.zeros(1000)}, tmp_path / "vgg.safetensors")
    loss = choose_content_loss("vgg19", str(tmp_path / "vgg.safetensors")).loss
    assert loss is not None
    for key, value in loss.features.state_dict().items():
        assert torch.equal(value, content_loss.features.state_dict()[key]), key


def test_download_is_used_where_it_succeeds(
    torch_home: Path, monkeypatch: pytest.MonkeyPatch, content_loss: ContentLoss
) -> None:
    def download(weights: VGG19_Weights, *, progress: bool, check_hash: bool) -> Mapping[str, Tensor]:
        assert check_hash
        write_weights(torch_home / "hub" / "checkpoints" / CACHED_NAME, 0.25)
        return {}

    monkeypatch.setattr(VGG19_Weights, "get_state_dict", download)
    choice = choose_content_loss("vgg19")
    assert value_of(choice.loss) == 0.25
    assert choice.description == "VGG19 conv5_4, torchvision's weights (downloaded)"


def test_failed_download_is_one_line_that_says_what_to_do(torch_home: Path) -> None:
    with pytest.raises(ValueError, match=r"could not be downloaded .*no route to host") as caught:
        choose_content_loss("vgg19")
    message = str(caught.value)
    assert "\n" not in message
    assert "--vgg-weights FILE" in message
    assert ENVIRONMENT_VARIABLE in message
    assert not list(torch_home.rglob("*.pth"))


def test_auto_downloads_nothing(torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("torch.hub.urlopen", asked.append)
    choose_content_loss("auto")
    assert asked == []


def test_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"no VGG19 weights at .*absent\.pth"):
        choose_content_loss("auto", tmp_path / "absent.pth")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "gone.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        choose_content_loss("auto")


def _truncated(path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    path.write_bytes(path.read_bytes()[:300])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty.pth": lambda path: path.write_bytes(b""),
    "text.pth": lambda path: path.write_text("no weights\nat all"),
    "picture.pth": lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(range(256))),
    "short.pth": _truncated,
    "dots.pth": lambda path: path.write_bytes(b"...."),
    "bytes.pth": lambda path: path.write_bytes(b"\x80\x02\x8a\x05zz"),
    "empty.safetensors": lambda path: path.write_bytes(b""),
    "text.safetensors": lambda path: path.write_text("no weights at all"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_file_that_holds_no_weights_is_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    DAMAGES[name](path)
    with pytest.raises(ValueError, match=f"{name} cannot be read as a weights file") as caught:
        choose_content_loss("auto", path)
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds a list, expected a dictionary"),
        ({}, r"lacks '0\.weight'"),
        ({0: torch.zeros(1)}, r"lacks '0\.weight'"),
        ({"state_dict": {}}, r"lacks '0\.weight'"),
        ({"features.0.weight": torch.zeros(64, 3, 3, 3)}, r"lacks '0\.bias'"),
        ({"features.0.weight": torch.zeros(64, 1, 3, 3)}, r"'0\.weight' has shape \(64, 1, 3, 3\), VGG19's is"),
    ],
)
def test_file_of_other_weights_is_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=message):
        choose_content_loss("auto", tmp_path / "other.pth")


def test_wrong_shape_far_inside_is_found(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "vgg16.pth", 0.5, **{"34.weight": torch.zeros(512, 256, 3, 3)})
    with pytest.raises(ValueError, match=r"'34\.weight' has shape \(512, 256, 3, 3\), VGG19's is \(512, 512, 3, 3\)"):
        choose_content_loss("auto", path)


def test_unknown_name_and_weights_that_nobody_uses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown content loss 'lpips'; known: auto, vgg19, random, none"):
        choose_content_loss("lpips")
    for name in ("random", "none"):
        with pytest.raises(ValueError, match=f"content loss {name} does not use them"):
            choose_content_loss(name, tmp_path / "vgg.pth")
