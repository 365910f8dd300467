"""Scoring that leaves no trace on training."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from nlft.capture import inference


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients and eval mode inside; afterwards every module's mode and every random state is as before.

    The random states are those of Python, NumPy, torch's CPU and all CUDA devices.
    """
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        with inference(model):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
