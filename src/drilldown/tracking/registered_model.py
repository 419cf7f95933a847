"""The script of a registered model: MLflow runs it when it loads the model ("models from code").

A copy lies in the folder of every model. It imports nothing of this project, because users who load a model do not have
the project. It checks the images, answers in small batches, and moves the network to the device that was asked for.
"""

import mlflow
import numpy as np
import torch
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext
from torch.export.passes import move_to_device_pass


class PixelError(MlflowException):
    """The images are not what the model takes: status 400 of a server."""

    def __init__(self, found: str) -> None:
        """Say in one line what was found, and what the model takes."""
        super().__init__(
            f"{found}: the model takes uint8 pixel values from 0 to 255 in the shape (N, 28, 28), white on black",
            INVALID_PARAMETER_VALUE,
        )

    def __setattr__(self, name: str, value: object) -> None:
        """Keep the first message: MLflow's server puts all pixels of the request in front of it."""
        if name != "message" or "message" not in vars(self):
            super().__setattr__(name, value)


def check_pixels(images: object) -> np.ndarray:
    """Return the images as uint8 (N, 28, 28); the numbers may have any type, if they are whole and from 0 to 255.

    Raises: PixelError when they are something else; also when the highest pixel is 1, because images on a scale from
    0 to 1 that were cut to whole numbers look like this. Blank images are 0 on every scale, and are accepted.
    """
    pixels = np.asarray(images)
    if pixels.shape[1:] != (28, 28):
        raise PixelError(f"the images have the shape {pixels.shape}")
    if pixels.dtype.kind not in "uif":
        raise PixelError(f"the pixels have the type {pixels.dtype}")
    with np.errstate(invalid="ignore"):  # NaN becomes any number
        checked = pixels.astype(np.uint8, order="C")
    if (wrong := pixels[pixels != checked]).size:
        raise PixelError(f"a pixel is {wrong[0]}")
    if checked.max(initial=0) == 1:
        raise PixelError("the highest pixel is 1, as on a scale from 0 to 1")
    return checked


class RegisteredModel(PythonModel):
    """The exported network, which normalizes pixels itself."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the network; `model_config` has its device, and how many images it answers at a time."""
        self.device, self.batch_size = context.model_config["device"], context.model_config["batch_size"]
        program = torch.export.load(context.artifacts["program"])
        if self.device != "cpu":  # it was exported there
            program = move_to_device_pass(program, self.device)
        self.network = program.module()

    def predict(self, model_input: np.ndarray) -> np.ndarray:  # type: ignore[override]  # MLflow takes it without context
        """Map images (N, 28, 28) to probabilities float32 (N, 10). Raises PixelError."""
        images = torch.from_numpy(check_pixels(model_input))
        with torch.inference_mode():
            answers = [self.network(batch.to(self.device)).cpu() for batch in images.split(self.batch_size)]
        return torch.cat(answers).numpy()


mlflow.models.set_model(RegisteredModel())
