"""One rank of a whole run. Run by test_two_processes.py."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from tests.runs import run

if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), Path(sys.argv[2]), steps=2, problems_per_step=3)
    Accelerator().end_training()
