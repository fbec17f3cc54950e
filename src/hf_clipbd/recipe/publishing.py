# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The last step of a run, on request: its models go to the Hub, each in a repository and a commit of its own."""

from hf_clipbd.hub import by_main_process, check_login, push_run
from hf_clipbd.recipe.config import RunConfig
from hf_clipbd.recipe.world import stage_of


def check_may_push(config: RunConfig) -> None:
    """Check before hours of training that the Hub knows whoever is to push to it in the end, if anything is.

    Raises:
        PermissionError: If there is no token, or the Hub does not know it.
        ConnectionError: If the Hub cannot be reached.
    """
    if config.push.push_to_hub:
        by_main_process(check_login, "log in to the Hub")


def push(config: RunConfig) -> dict[str, str]:
    """Push what the configuration asks for and return what went up -> the commit's address; {} where nothing is.

    Every defended model; with `allow_backdoored` the victim and the poisoned dataset too. Each goes up whole or not at
    all, and a run that is started again pushes what is missing: what is there already makes no second commit. Of
    several processes the main one pushes, and the others wait for it and fail with it.

    Raises:
        ValueError: If a repository is public and should not be, or a file holds a token.
        PermissionError: If the Hub does not let you write there.
        ConnectionError: If the Hub did not take a push; those before it are there, and none is there by half.
    """
    chosen = config.push
    if not chosen.push_to_hub:
        return {}
    names = {stage_of(name): name for name in config.defenses}
    names |= {"victim": "victim", "poison": "poisoned"} if chosen.allow_backdoored else {}

    def send() -> dict[str, str]:
        return {
            what: push_run(
                config.output_dir,
                f"{chosen.hub_model_id}-{name}",
                what,
                private=chosen.hub_private_repo,
                allow_backdoored=chosen.allow_backdoored,
            )
            for what, name in names.items()
        }

    return by_main_process(send, "push the run")
