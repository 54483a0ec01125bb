"""The specification, Magistral's algorithm: generate, judge, learn, publish, in turn."""

from concurrent.futures import Future

from magistral_jax.config import RunConfig
from magistral_jax.ledger import GENERATOR, TRAINER
from magistral_jax.loops.moves import Generation, learn, report, verdict_of
from magistral_jax.loops.rooms import Rooms
from magistral_jax.types import Completion, Prompt, Verdict


def run_sync(config: RunConfig, rooms: Rooms, *, start: int = 0) -> None:
    """Until the last step, or a stop.

    A step's prompts are submitted together; a group whose rewards are all equal is dropped and
    replaced by exactly one new prompt.
    """
    generation = Generation(config, rooms)
    rooms.ledger.phase("wait_batch", TRAINER)

    def is_judged(prompt: Prompt, completion: Completion, waiting: Future[Verdict]) -> bool:
        verdict = verdict_of(
            rooms, waiting, prompt, config.stall_s, lambda: rooms.backlog.is_stopped
        )
        if verdict is not None:
            rooms.backlog.judged(completion, verdict)
        return verdict is not None

    for prompt, completion in rooms.backlog.unjudged():  # of a run that was stopped amid a step
        if not is_judged(prompt, completion, rooms.judge(prompt, completion)):
            return
    for version in range(start, config.trainer.steps):
        while not rooms.backlog.is_batch_ready:
            handed = []
            generation.admit()
            if rooms.backlog.is_stopped:
                return
            while rooms.generator.has_work and not rooms.backlog.is_stopped:
                handed += generation.decode()
                generation.admit()
            if not all(is_judged(*one) for one in handed):
                return
        groups = rooms.backlog.take_batch()
        if groups is None:  # stopped
            return
        with rooms.ledger.doing(GENERATOR, "wait_admission", f"update {version + 1}"):
            snapshot = learn(rooms, groups, version)
        if snapshot is None:  # stopped
            return
        generation.swap(snapshot)
        generation.measure_to_the_end(snapshot)
        step = version + 1
        report(rooms, step, generation.picture(frontier=rooms.wants_frontier(step)))
