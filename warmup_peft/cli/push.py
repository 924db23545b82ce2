"""`warmup-peft push`: upload a folder to the Hub, and list the uploaded files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from warmup_peft.export.push import push_folder
from warmup_peft.files import read_json
from warmup_peft.inference.folder import ADAPTER_CONFIG_NAME, is_adapter, looks_local
from warmup_peft.settings.arguments import PushArguments
from warmup_peft.settings.parsing import parse_one


def run(argv: Sequence[str]) -> None:
    options = parse_one(PushArguments, argv)
    plan = push_folder(
        options.folder,
        options.repo_id,
        private=options.private,
        create_pr=options.create_pr,
        dry_run=options.dry_run,
    )
    verb = "Would upload" if options.dry_run else "Uploaded"
    print(f"{verb} to {plan.repo_id} ({'private' if plan.private else 'public'} if it is new):")
    for name in plan.files:
        path = Path(options.folder, name)
        print(
            f"  {name}" + (f"  {path.stat().st_size:,} bytes" if path.is_file() else "  (written when it is uploaded)")
        )
    if (base := local_base(options.folder)) is not None:
        print(
            f"Its base, {base}, is a folder of this machine, and its name is left out of what is uploaded. For "
            "others to load the adapter, push the base too and train with its id, or push the merged model."
        )
    if plan.card_kept:
        print("The model card on the Hub was edited by a person, so it is kept.")
    if plan.url:
        print(plan.url)


def local_base(folder: str) -> str | None:
    """The base of an adapter, if it is a folder of this machine."""
    if not is_adapter(folder):
        return None
    base = read_json(Path(folder, ADAPTER_CONFIG_NAME))["base_model_name_or_path"]
    return base if looks_local(base) else None
