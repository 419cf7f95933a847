"""The script of a registered model: which images it takes, on which device it computes, in which batches."""

import copy
import re

import mlflow
import numpy as np
import pytest
import torch
from mlflow.models import Model

from drilldown.tracking import export
from drilldown.tracking.registered_model import PixelError, check_pixels
from tests.support.registered import log_as_before

EXPECTED = "the model takes uint8 pixel values from 0 to 255 in the shape (N, 28, 28), white on black"
ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(scope="module")
def saved(tmp_path_factory, trained, digits):
    """The folder of the small network's model."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    network = copy.deepcopy(trained.eval_model).cpu().eval()
    export.save_model(str(folder), Model(), network, input_example=digits.test_images[:2].numpy())
    return str(folder)


@pytest.fixture
def with_cuda(monkeypatch):
    """A machine with a CUDA device, or one that says that it has one."""
    monkeypatch.delenv("MLFLOW_DEFAULT_PREDICTION_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def devices(model):
    return {parameter.device.type for parameter in model.unwrap_python_model().network.parameters()}


@pytest.fixture
def answers(trained, digits):
    """The probabilities of the network itself."""
    with torch.inference_mode():
        return trained.eval_model.cpu().eval()(digits.test_images).numpy()


@pytest.mark.slow
def test_it_answers_on_the_cpu_where_there_is_a_cuda_device(saved, with_cuda, digits, answers, recwarn):
    model = mlflow.pyfunc.load_model(saved)
    assert devices(model) == {"cpu"}
    np.testing.assert_allclose(model.predict(digits.test_images.numpy()), answers, atol=1e-6)
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.slow
def test_a_model_of_earlier_versions_loads_there_only_with_a_device(store, with_cuda, trained, digits, answers):
    with mlflow.start_run():
        uri = log_as_before(trained.eval_model, digits, "model").model_uri
    with pytest.raises(mlflow.MlflowException, match="can't be loaded on 'cuda' device"):
        mlflow.pyfunc.load_model(uri)
    model = mlflow.pyfunc.load_model(uri, model_config={"device": "cpu"})  # as predict and verify load it
    np.testing.assert_allclose(model.predict(digits.test_images.numpy()), answers, atol=1e-6)


@ON_CUDA
def test_it_computes_on_cuda_when_asked_to(saved, digits, answers):
    model = mlflow.pyfunc.load_model(saved, model_config={"device": "cuda"})
    assert devices(model) == {"cuda"}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # TF32 has ten bits of each value
        np.testing.assert_allclose(model.predict(digits.test_images.numpy()), answers, atol=1e-4)
    assert torch.cuda.max_memory_allocated() > before


def test_it_computes_on_the_device_that_is_asked_for(saved, digits):
    """Torch's device without memory stands in for a GPU: the network is moved, and has no values to answer with."""
    model = mlflow.pyfunc.load_model(saved, model_config={"device": "meta"})
    assert devices(model) == {"meta"}
    with pytest.raises(NotImplementedError, match="out of meta tensor"):
        model.predict(digits.test_images[:1].numpy())


def test_any_number_of_images_is_answered_in_small_batches(saved, digits, answers, monkeypatch):
    model = mlflow.pyfunc.load_model(saved)
    script, sizes = model.unwrap_python_model(), []
    network = script.network
    monkeypatch.setattr(script, "network", lambda batch: sizes.append(len(batch)) or network(batch))
    images = digits.test_images.numpy()
    np.testing.assert_allclose(model.predict(images[:250]), answers[:250], atol=1e-6)
    assert sizes == [100, 100, 50]
    assert model.predict(images[:0]).shape == (0, 10)


def test_the_pytorch_flavor_is_the_same_network_without_pickle(saved, digits, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    network = mlflow.pytorch.load_model(saved)
    assert isinstance(network, torch.nn.Module)
    images = digits.test_images[:100]
    with torch.inference_mode():
        answers = network(images).numpy()
    assert np.array_equal(mlflow.pyfunc.load_model(saved).predict(images.numpy()), answers)


IMAGE = np.arange(784).reshape(1, 28, 28) % 256
WRONG = {
    "a scale from 0 to 1": (IMAGE / 255, "a pixel is 0.00392"),
    "the same, cut to whole numbers": (IMAGE // 255, "the highest pixel is 1, as on a scale from 0 to 1"),
    "the same, as uint8": ((IMAGE // 255).astype(np.uint8), "the highest pixel is 1, as on a scale from 0 to 1"),
    "truth values": (IMAGE > 0, "the pixels have the type bool"),
    "a scale from -1 to 1": (IMAGE / 127.5 - 1, "a pixel is -1.0"),
    "negative": (IMAGE - 1, "a pixel is -1"),
    "above 255": (IMAGE + 1, "a pixel is 256"),
    "far above": (IMAGE * 1e300, "a pixel is 1e+300"),
    "NaN": (np.where(IMAGE == 255, np.nan, IMAGE), "a pixel is nan"),
    "infinity": (np.where(IMAGE == 255, np.inf, IMAGE), "a pixel is inf"),
    "standardized": ((IMAGE - 33.3) / 78.6, "a pixel is -0.42"),
    "letters": (np.full((1, 28, 28), "a"), "the pixels have the type <U1"),
    "None": (np.full((1, 28, 28), None), "the pixels have the type object"),
    "one image alone": (IMAGE[0], "the images have the shape (28, 28)"),
    "channels": (IMAGE[:, None], "the images have the shape (1, 1, 28, 28)"),
    "rows": (IMAGE.reshape(1, 784), "the images have the shape (1, 784)"),
    "a number": (5, "the images have the shape ()"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_image_of_this_scale_is_refused(wrong):
    images, message = WRONG[wrong]
    with pytest.raises(PixelError, match=re.escape(message) + f".*: {re.escape(EXPECTED)}$") as refused:
        check_pixels(images)
    assert refused.value.get_http_status_code() == 400


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32, np.float64, list])
def test_whole_numbers_from_0_to_255_are_taken(kind):
    images = IMAGE.tolist() if kind is list else IMAGE.astype(kind)
    checked = check_pixels(images)
    assert checked.dtype == np.uint8
    assert np.array_equal(checked, IMAGE)


def test_blank_images_are_taken():
    assert check_pixels(np.zeros((3, 28, 28))).shape == (3, 28, 28)
    assert check_pixels(np.zeros((0, 28, 28))).shape == (0, 28, 28)
    assert check_pixels(np.concatenate([IMAGE * 0, IMAGE // 255 * 2])).max() == 2
