"""Pushing while training goes on, which nothing here may stop."""
from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Optional

from huggingface_hub import HfApi
from huggingface_hub.utils import get_token

from ..errors import SettingError
from .errors import LOG_IN, check_repo_id, hub_error, offline, scrub
from .push import FROM_A_RUN, create_repo, later_command, link


class BackgroundPush:
    """Pushes snapshots of a run folder, one at a time, by `python -m timm_multimix.hub push` in a process of its own.

    A thread would share locks with the data loader's forks, and the interpreter with the training loop. Where a push is
    still running when the next comes, the newest snapshot waits and the others are dropped.

    Args:
        repo_id: user/name.
        run: the run folder; its `model/` is what is pushed.
        private: of a repository that is made.
        say: prints a line for the user.

    Raises:
        SettingError: before training: no such name, no token, HF_HUB_OFFLINE, or the Hub forbids this repository. A
            Hub that cannot be reached now may be by then, so that is said and not raised.
    """

    def __init__(self, repo_id: str, run: Path, private: bool, say: Callable[[str], None]) -> None:
        self.repo_id, self.run, self.private, self.say = repo_id, run, private, say
        self.process: Optional[subprocess.Popen[bytes]] = None
        self.snapshot: Optional[Path] = None
        self.waiting: Optional[tuple[Path, str]] = None
        self.label = ''
        check_repo_id(repo_id, '--push-to-hub')
        if offline():
            raise SettingError(f'--push-to-hub is {repo_id!r}, but HF_HUB_OFFLINE is set. Unset it, or train without '
                               f'and push later: {later_command("RUN_FOLDER", repo_id)}')
        if get_token() is None:
            raise SettingError(f'--push-to-hub is {repo_id!r}, but you are not logged in. {LOG_IN} to a token that may '
                               f'write.')
        try:
            create_repo(HfApi(), repo_id, private or None)
        except Exception as e:  # of huggingface_hub or of its HTTP client
            error = hub_error(e, repo_id, writing=True)
            if not error.passing:
                raise SettingError(f'--push-to-hub is {repo_id!r}. {error}') from e
            say(f'Warning: {error} Training goes on, and pushing is tried when it is due.')
        for old in run.glob('.push-*'):  # of a run that was killed
            shutil.rmtree(old, ignore_errors=True)
        atexit.register(self.close)

    def push(self, label: str) -> None:
        """Take a snapshot of the run folder now, and push it as soon as no other push is running."""
        self.poll()
        try:
            snapshot = Path(tempfile.mkdtemp(prefix='.push-', dir=self.run))
            shutil.copytree(self.run / 'model', snapshot / 'model', copy_function=link)
            for name in FROM_A_RUN:
                if (self.run / name).is_file():
                    link(self.run / name, snapshot / name)
        except OSError as e:
            self.say(f'Warning: nothing is pushed after {label}: {e}. Training goes on.')
            return
        self._drop_waiting()
        self.waiting = snapshot, label
        self.poll()

    def poll(self) -> Optional[bool]:
        """Say how a push ended, and start one that waits. True and False where one ended well or badly."""
        ended = None
        if self.process is not None and self.process.poll() is not None:
            ended = self._ended()
        if self.process is None and self.waiting is not None:
            self._start(*self.waiting)
            self.waiting = None
        return ended

    def finish(self) -> bool:
        """Push the run folder as it is now, and wait for it; True if it is on the Hub."""
        later = f'The run is whole in {self.run}. To push it later:\n    ' + later_command(
            self.run, self.repo_id, self.private)
        try:
            self._drop_waiting()  # the last epoch replaces it
            if self.process is not None:
                self.process.wait()
                self.poll()
            self.say(f'Pushing to {self.repo_id} …')
            self.push('the last epoch')
            if self.process is not None:
                self.process.wait()
                if self.poll():
                    return True
            self.say(later)
            return False
        except KeyboardInterrupt:
            self.say(f'Not pushed to {self.repo_id}. {later}')
            raise
        finally:
            self.close()

    def close(self) -> None:
        """End what is running, and tidy up. A commit that was not sent leaves the repository as it was."""
        atexit.unregister(self.close)
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        if self.snapshot is not None:
            shutil.rmtree(self.snapshot, ignore_errors=True)
            self.snapshot = None
        self._drop_waiting()

    def _drop_waiting(self) -> None:
        if self.waiting is not None:
            shutil.rmtree(self.waiting[0], ignore_errors=True)
            self.waiting = None

    def _start(self, snapshot: Path, label: str) -> None:
        root = str(Path(__file__).resolve().parents[2])  # train.py runs from where it lies, installed or not
        env = {**os.environ, 'HF_HUB_DISABLE_PROGRESS_BARS': '1', 'PYTHONIOENCODING': 'utf-8',
               'PYTHONPATH': os.pathsep.join(filter(None, (root, os.environ.get('PYTHONPATH'))))}
        command = [sys.executable, '-m', 'timm_multimix.hub', 'push', str(snapshot), self.repo_id, '--message',
                   f'Push after {label}', *(['--private'] if self.private else [])]
        self.snapshot, self.label = snapshot, label
        try:
            with open(snapshot / 'log', 'wb') as log:
                self.process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log,
                                                stderr=subprocess.STDOUT)
        except OSError as e:
            self.say(f'Warning: nothing is pushed after {label}: {e}. Training goes on.')
            shutil.rmtree(snapshot, ignore_errors=True)

    def _ended(self) -> bool:
        assert self.process is not None and self.snapshot is not None
        code = self.process.returncode
        try:
            lines = scrub((self.snapshot / 'log').read_text(errors='replace')).strip().splitlines()
        except OSError:
            lines = []
        shutil.rmtree(self.snapshot, ignore_errors=True)
        self.process = self.snapshot = None
        said = lines[-1] if lines else f'its process ended with status {code}'
        if code == 0:
            self.say(f'Pushed {self.label}: {said.partition("Pushed: ")[2] or said}')
        else:
            self.say(f'Warning: pushing {self.label} to {self.repo_id} failed. {said.partition("error: ")[2] or said}')
        return code == 0


