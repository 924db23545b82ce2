"""TRL's own uploads (`push_to_hub=True`, `trainer.push_to_hub()`), through the list of files of `warmup-peft push`."""

from __future__ import annotations

import functools
import shutil
import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress
from transformers.utils.logging import get_logger

from warmup_peft.export.push import files_to_push, push_folder

logger = get_logger(__name__)


class PushesListedFiles:
    """What a trainer uploads is what `push_folder` does: no data, no training state, nothing that names this machine.

    Stands before `SFTTrainer` among a trainer's bases.
    """

    @functools.cached_property
    def _hub(self) -> HfApi:
        return HfApi(token=self.args.hub_token)  # one, which uploads one folder after another

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """As in transformers' `Trainer`, but only files on `warmup_peft.export.push`'s list go up.

        Args:
            kwargs: of transformers' model card, whose place ours takes.

        Returns:
            The commit, or its future where it is not waited for; None on other ranks than the first.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self._finish_current_push()
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        options = {
            "api": self._hub if token is None else HfApi(token=token),
            "private": self.args.hub_private_repo if private is None else private,
            "commit_message": commit_message,
            "revision": revision or self.args.hub_revision,
        }
        if blocking:
            return push_folder(self.args.output_dir, self.hub_model_id, **options).commit
        return push_in_background(self.args.output_dir, self.hub_model_id, **options)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """What `hub_strategy` asks for at a checkpoint: the model, and the checkpoint's own model in a folder."""
        args = self.args
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        is_busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if is_busy and not args.hub_always_push:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        self._save(args.output_dir)
        options = {
            "api": self._hub,
            "private": args.hub_private_repo,
            "commit_message": f"Training in progress, step {self.state.global_step}",
            "revision": args.hub_revision,
        }
        jobs = [push_in_background(args.output_dir, self.hub_model_id, **options)]
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            logger.warning_once(
                "hub_strategy=%s uploads the model of each checkpoint. What resuming needs beside it (the optimizer, "
                "random numbers) stays in %s.",
                args.hub_strategy.value, args.output_dir,
            )  # fmt: skip
            is_last = args.hub_strategy == HubStrategy.CHECKPOINT
            options["path_in_repo"] = "last-checkpoint" if is_last else Path(checkpoint_folder).name
            jobs.append(push_in_background(checkpoint_folder, self.hub_model_id, **options))
        self.push_in_progress = PushInProgress([*(self.push_in_progress.jobs if is_busy else ()), *jobs])


def push_in_background(folder: str, repo_id: str, *, api: HfApi, **options: Any) -> Future[CommitInfo]:
    """`push_folder` of a copy, which the training may not write over while it goes up; a failure is logged."""
    room = tempfile.TemporaryDirectory(prefix="warmup-push-")
    copy = Path(room.name, Path(folder).resolve().name)
    for name in files_to_push(folder):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(folder, name), copy / name)

    def ended(job: Future[CommitInfo]) -> None:
        room.cleanup()
        if not job.cancelled() and job.exception() is not None:
            logger.warning("%s was not uploaded to %s: %s", folder, repo_id, job.exception())

    job = api.run_as_future(lambda: push_folder(copy, repo_id, api=api, **options).commit)
    job.add_done_callback(ended)
    return job
