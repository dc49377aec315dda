"""Workers of sweeps that go wrong on purpose; what a spawned process can import."""

import os
import signal

from microgpt import executors, trials

start_worker = executors._start_worker
do = trials._do
DEADLY, CLUMSY = 666, 667  # seeds of trials that kill their worker: always, and half of the time


def start(*arguments):
    """Start a worker that some seeds kill."""
    trials._do = deadly
    start_worker(*arguments)


def deadly(reply, settings, *arguments):
    if settings["seed"] == DEADLY or settings["seed"] == CLUMSY and os.getpid() % 2:
        os.kill(os.getpid(), signal.SIGKILL)
    do(reply, settings, *arguments)


def of_another_version(*arguments):
    """Start a worker that has another version of the package."""
    trials.MADE_BY = "microgpt 0.0.1, core cython"
    start_worker(*arguments)


def dead_at_once(*arguments):
    os._exit(1)
