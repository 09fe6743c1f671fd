"""One rank's half of an update; rank 0 saves the gradients. Run by test_two_processes.py."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from opd.learner.batch import pack
from opd.objective.divergence import JSD
from opd.objective.loss import Distill, Likelihood, PolicyGradient
from opd.objective.term import Term
from opd.objective.weight import Only, Rest
from opd.teacher.score import Teacher
from opd.teacher.view import Plain
from opd.teacher.weights import Frozen
from tests.students import Coupled, Rank, draw_trajectories, gradients, open_student


def main(folder: Path, to: Path) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    terms = {
        "distil": Term(
            loss=Distill(target="solution", divergence=JSD()), weights=FAILURES, pool="tokens"
        ),
        "imitate": Term(loss=Likelihood(), weights=(Rest(of=FAILURES),), pool="tokens"),
        "reinforce": Term(loss=PolicyGradient(), average="sequence"),
        "joint": Term(loss=Coupled(), weights=(Rank(),)),
    }
    learner = open_student(folder, terms, accelerator=accelerator)
    teacher = Teacher(weights=Frozen(), views={"solution": Plain()})
    teacher.weights.setup(learner)
    rank, ranks = accelerator.process_index, accelerator.num_processes
    # Uneven on purpose: a mean over ranks would not be the mean over tokens.
    mine = draw_trajectories()[rank::ranks]
    batches = pack(mine, tokens_per_batch=60, packing=False, pad_id=0)
    update = learner.update(batches, teacher.score(mine, batches, ("solution",), learner), 0)
    if accelerator.is_main_process:
        metrics = {f"metric:{n}": torch.tensor(v) for n, v in update.metrics.items()}
        save_file({**gradients(learner), **metrics}, to)
    accelerator.end_training()


FAILURES = (Only(when="failure"),)

if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
