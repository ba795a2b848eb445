"""The functions of the user's own that a run is made of: tried before it starts, and named in its
record."""

from __future__ import annotations

from sdpo.config.custom import CustomConfig
from sdpo.config.objective import CustomDivergenceConfig, DistillingConfig
from sdpo.config.schema import CustomEnvConfig, RunConfig
from sdpo.config.teacher import CustomContextConfig, CustomScheduleConfig
from sdpo.custom import forget_changed_files, source_of
from sdpo.losses.check_divergence import check_divergence
from sdpo.objectives import custom_divergence, routing_rule
from sdpo.teacher.context import context_function
from sdpo.teacher.schedule import share_function
from sdpo.training.weighting import token_weighting


def check_custom(config: RunConfig) -> None:
    """Import every function that `config` names, and compare the derivative of a divergence with
    its value. Raises `ConfigError` before anything is loaded or sampled."""
    forget_changed_files()
    routing_rule(config.objective)
    token_weighting(config.objective)
    if isinstance(config.teacher.context, CustomContextConfig):
        context_function(config.teacher.context)
    if isinstance(config.teacher.schedule, CustomScheduleConfig):
        share_function(config.teacher.schedule)
    if not isinstance(config.objective, DistillingConfig):
        return
    divergence = config.objective.divergence
    if isinstance(divergence, CustomDivergenceConfig):
        named = f"objective.divergence.path = {divergence.path!r}"
        check_divergence(custom_divergence(divergence), named)


def custom_sources(config: RunConfig) -> dict[str, dict[str, str]]:
    """Path, file and hash of each of them by its section, the environment included."""
    sections: dict[str, object] = {
        "env": config.env,
        "objective": config.objective,
        "teacher.context": config.teacher.context,
        "teacher.schedule": config.teacher.schedule,
    }
    if isinstance(config.objective, DistillingConfig):
        sections["objective.divergence"] = config.objective.divergence
        sections["objective.weighting"] = config.objective.weighting
    return {
        key: source_of(f"{key}.path", section.path)
        for key, section in sections.items()
        if isinstance(section, CustomConfig | CustomEnvConfig)
    }
