"""A text game: find the way through a house whose plan the player does not know.

    python examples/text_game.py                             # the demo model, SmolLM2-135M
    python examples/text_game.py model.name=FOLDER steps=1

Every turn is one step; the game answers with where it leads. After a step that does not bring the
player nearer it says, to the teacher alone, which one would have: feedback about single turns.
"""

from __future__ import annotations

import re
import sys

import sdpo
from sdpo.envs.base import FunctionEnv

HOUSE = {
    "hall": {"north": "kitchen", "east": "library"},
    "kitchen": {"south": "hall", "east": "cellar"},
    "library": {"west": "hall", "north": "cellar", "east": "garden"},
    "cellar": {"west": "kitchen", "south": "library"},
    "garden": {"west": "library", "north": "attic"},
    "attic": {"south": "garden"},
}
ASKED = (
    "You are in the {start}. Go to the {goal}. Answer with one word: north, south, east or west."
)


def first_steps(goal: str) -> dict[str, str]:
    """For every other room, a first step of a shortest way to `goal`."""
    found: dict[str, str] = {}
    rooms = [goal]
    for room in rooms:
        for other, doors in HOUSE.items():
            for direction, behind in doors.items():
                if behind == room and other != goal and other not in found:
                    found[other] = direction
                    rooms.append(other)
    return found


class Game:
    """One attempt to get from a room to another."""

    def __init__(self, task: sdpo.Task, attempt: int) -> None:
        self.room, self.goal = task.reference
        self.steps = 0

    def step(self, turn: sdpo.Turn) -> sdpo.Reply:
        right = first_steps(self.goal)[self.room]
        feedback = f"From the {self.room}, the way to the {self.goal} leads {right}."
        said = re.findall(r"north|south|east|west", turn.text.lower())
        self.steps += 1
        if len(said) != 1:
            answer = "Answer with one word: north, south, east or west."
        elif said[0] not in HOUSE[self.room]:
            answer = f"There is no door. You are in the {self.room}."
        else:
            self.room = HOUSE[self.room][said[0]]
            if self.room == self.goal:
                return sdpo.Reply()
            answer = f"You are in the {self.room}."
        return sdpo.Reply(messages=(answer,), feedback=None if said == [right] else feedback)

    def verdict(self) -> sdpo.Verdict:
        solved = self.room == self.goal
        return sdpo.Verdict(
            reward=float(solved),
            solved=solved,
            feedback=None if solved else f"You never came to the {self.goal}.",
            metrics={"steps": float(self.steps)},
        )


def make_env() -> FunctionEnv:
    """Every pair of rooms; `env.path` takes it too."""
    tasks = [
        sdpo.Task(
            id=f"{start}-{goal}",
            messages=({"role": "user", "content": ASKED.format(start=start, goal=goal)},),
            reference=(start, goal),
        )
        for start in HOUSE
        for goal in HOUSE
        if start != goal
    ]
    return sdpo.env(tasks, episode=Game, max_turns=6)


SETTINGS = (
    "run=runs/text-game",
    "steps=20",
    "objective.type=hybrid",
    "objective.divergence.type=forward_kl",
    "objective.divergence.top_k=all",
    "rollout.max_completion_tokens=200",
    "teacher.context.feedback=always",
    "teacher.context.max_tokens=1000",
)

if __name__ == "__main__":
    sdpo.train(*SETTINGS, *sys.argv[1:], env=make_env())
