"""A run's directory: everything to resume, evaluate, serve and explain a run. Loading one never runs code.

Every file is replaced in one step (written beside, synced, renamed), so a kill at any moment leaves the old or the new one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from largerec.columns import TimeKind
from largerec.damage import check_columns, damaged, value_of
from largerec.errors import LargeRecError
from largerec.features import SIDES, Features
from largerec.lists import SHOWN
from largerec.quantised_rows import Bits
from largerec.recipe import Recipe, recipe_from
from largerec.sequences import TASK_COLUMN, Sequences, from_frame
from largerec.tokenizers import AtomicTokenizer
from largerec.writing import replacing

FORMAT = 1
CHOICE = "choice.json"
RANDOM = "random.parquet"
NOT_OF_TRAINING = ("run.", "threads", "name", "evaluate.", "train.tensorboard", "data.path", "tune.", "scale.")
"""Options that may differ between a run and its resumption; whether the data is the same, its hash says."""
HASHES = {
    "data_hash": "on other data",
    "words_hash": "on items with other words",
    "features_hash": "on other features (the tables of users or items, or columns of the log, have changed)",
    "random_hash": "beside another log of data.random",
}
"""What lineage.json keeps of all that a run read, and what to say where that is not what would be read now."""
FORGOTTEN = "forgotten.json"  # marks a run that was trained on someone who was to be forgotten
OWN_FILES = re.compile(
    r"(recipe|lineage|result|features|choice|forgotten)\.json|features-\w+\.parquet|metrics\.jsonl|(model|state)\.safetensors"
    r"|(vocabulary|histories|random|ranks-\w+|predictions-\w+|lists-\w+)\.parquet"
    r"|report\.html"
)
TENSORBOARD_FILE = re.compile(r"events\.out\.tfevents.*")
FEATURE_TABLES = tuple(f"features-{side}.parquet" for side in SIDES)
BEGINNING = (
    "vocabulary.parquet",
    "histories.parquet",
    "lineage.json",
    "features.json",
    *FEATURE_TABLES,
)  # written before recipe.json, which makes a folder a run


class Bundle:
    """Paths and safe reading and writing of a run's directory."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def file(self, name: str) -> Path:
        return self.path / name

    # --- life cycle -------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open an existing run.

        Raises:
            LargeRecError: there is no such folder, or it is not a run of this format, or the path is none.
        """
        if not isinstance(path, str | os.PathLike):
            raise LargeRecError(f"the path of a run is text or a Path, and {path!r:.80} was given; write for example runs/x.")
        bundle = cls(path)
        try:
            there = bundle.path.is_dir()
        except OSError:  # a name that is too long for any folder
            there = False
        if not there:
            raise LargeRecError(
                f"there is no run {str(path)!r:.300}; give the run.dir of a finished `largerec train` or `largerec run`."
            )
        if not bundle.file("recipe.json").is_file():
            raise LargeRecError(
                f"{bundle.path} is not a LargeRec run: it has no recipe.json. Give a folder that `largerec train` made."
            )
        given = bundle.read_json("recipe.json").get("format")
        if given != FORMAT:
            raise LargeRecError(
                f"{bundle.path}/recipe.json has format {given!r}; this version reads format {FORMAT}. Train again or upgrade."
            )
        return bundle

    @classmethod
    def start(
        cls,
        recipe: Recipe,
        sequences: Sequences,
        tokenizer: AtomicTokenizer,
        lineage: Mapping[str, Any],
        features: Features | None = None,
    ) -> Bundle:
        """Begin a run in ``recipe.run.dir``, or take up the unfinished one that is there.

        Raises:
            LargeRecError: the folder holds something else, a finished run, or a run of another recipe or other data.
        """
        bundle = cls(recipe.run.dir)
        try:
            bundle.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LargeRecError(f"run.dir={str(bundle.path)!r} cannot be made ({error}); choose another folder.") from None
        unlock = bundle._lock()  # before anything is looked at or removed: another training may be writing there
        try:
            bundle._begin(recipe, sequences, tokenizer, lineage, features)
        except BaseException:
            unlock()  # at once: the exception itself may keep this object alive
            raise
        return bundle

    def _begin(
        self,
        recipe: Recipe,
        sequences: Sequences,
        tokenizer: AtomicTokenizer,
        lineage: Mapping[str, Any],
        features: Features | None,
    ) -> None:
        """Clear, take up or begin the run in the folder that is locked."""
        if recipe.run.overwrite and self.file("recipe.json").is_file() and self.file("lineage.json").is_file():
            self._clear_unless_resumable(recipe, lineage)
        if self.file("recipe.json").is_file():
            self._check_resumable(recipe, lineage)
            return self.remove_partial_files()
        if any(file.name not in BEGINNING and not is_partial(file) for file in self.path.iterdir()):
            raise LargeRecError(f"run.dir={str(self.path)!r} is not empty and not a LargeRec run; choose another folder.")
        self.remove_partial_files()
        self.write_parquet("vocabulary.parquet", tokenizer.vocabulary)
        self.write_parquet("histories.parquet", sequences.frame())
        if features is not None:
            for side, table in features.tables.items():
                if table.width:
                    self.write_parquet(f"features-{side}.parquet", table)
            self.write_json("features.json", features.to_json())
        self.write_json("lineage.json", dict(lineage))
        kinds = {"time_kind": sequences.time_kind, **({"task_edges": dict(sequences.edges)} if sequences.edges else {})}
        self.write_json("recipe.json", {"format": FORMAT, **kinds, "recipe": recipe.to_json()})

    def _clear_unless_resumable(self, recipe: Recipe, lineage: Mapping[str, Any]) -> None:
        """Remove a run that is finished or another one; the unfinished run of the same command is taken up.

        Only what a run writes is removed; recipe.json goes last, so that a kill half-way leaves what the same command can remove.
        """
        Bundle.open(self.path)  # a folder of another format is not ours to remove
        foreign = sorted(str(file.relative_to(self.path)) for file in _foreign(self.path))
        if foreign:
            raise LargeRecError(
                f"run.dir={str(self.path)!r} also holds what no run writes ({', '.join(foreign[:3])}); run.overwrite=true "
                "removes nothing there. Move it away or choose another run.dir."
            )
        if not self.file("result.json").is_file():
            try:
                return self._check_resumable(recipe, lineage)
            except LargeRecError:
                pass  # an unfinished run of another recipe or other data: to be replaced, as asked
        families = [Bundle(folder) for folder in self.path.glob("compare/*")]  # which have locks of their own
        unlocks = [family._lock() for family in families]
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name not in ("recipe.json", *BEGINNING):
                entry.unlink()
        self.file("recipe.json").unlink()
        for unlock in unlocks:
            unlock()

    def _lock(self) -> Callable[[], object]:
        """Hold the run's folder until this object goes: two trainings in one folder would destroy each other.

        The lock is on the folder itself, not on a file in it that could be removed. Returns what lets go of it earlier.
        """
        descriptor = os.open(self.path, os.O_RDONLY)
        unlock = weakref.finalize(self, os.close, descriptor)  # which also lets go of the lock
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            unlock()
            raise LargeRecError(f"run.dir={str(self.path)!r} is in use by another training; wait or choose another.") from None
        return unlock

    def remove_partial_files(self) -> None:
        """Remove what a kill in the middle of writing left beside the files."""
        for file in self.path.iterdir():
            if is_partial(file):
                file.unlink(missing_ok=True)

    def _check_resumable(self, recipe: Recipe, lineage: Mapping[str, Any]) -> None:
        advice = "Pass run.overwrite=true to replace it, or choose another run.dir."
        if self.file("result.json").is_file():
            raise LargeRecError(f"run.dir={str(self.path)!r} holds a finished run. {advice}")
        needed = ("vocabulary.parquet", "histories.parquet", *(["features.json"] if recipe.features.any else []))
        missing = [name for name in needed if not self.file(name).is_file()]
        if missing:
            raise LargeRecError(f"run.dir={str(self.path)!r} holds a part of a run: {' and '.join(missing)} is missing. {advice}")
        self.check_same(recipe, lineage, "an unfinished run", advice)

    def check_same(self, recipe: Recipe, hashes: Mapping[str, Any], what: str, advice: str) -> None:
        """Refuse a run of another (resolved) recipe, or that read something else; ``what`` and ``advice`` complete the message.

        ``hashes``: of what the recipe reads now, by the names of ``HASHES``. A run that did not keep one of them may pass.

        Raises:
            LargeRecError: the two differ in something that the numbers depend on.
        """
        old, new = flatten(Bundle.open(self.path).recipe().to_json()), flatten(recipe.to_json())
        changed = sorted(
            key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and not key.startswith(NOT_OF_TRAINING)
        )
        if changed:
            shown = ", ".join(f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in changed[:4])
            raise LargeRecError(f"run.dir={str(self.path)!r} holds {what} of another recipe ({shown}). {advice}")
        lineage = self.read_json("lineage.json")
        for name, other in HASHES.items():
            if lineage.get(name, hashes.get(name)) != hashes.get(name):
                raise LargeRecError(f"run.dir={str(self.path)!r} holds {what} {other}. {advice}")

    def forgotten(self) -> str | None:
        """A warning where the run, or a member of it, was trained on someone who was to be forgotten since; else None."""
        marked = [one.path for one in self.member_bundles() if one.file(FORGOTTEN).is_file()]
        if not marked:
            return None
        return (
            f"{marked[0]} was trained on a person who was to be forgotten since (forgotten.json): the person's rows are gone, "
            "what the model learned of them is not. Train again on the log as it is now."
        )

    # --- reading ----------------------------------------------------------------------------------------------------

    def recipe(self) -> Recipe:
        return recipe_from(self.read_json("recipe.json").get("recipe", {}), str(self.file("recipe.json")))

    def members(self) -> list[str]:
        """The runs that an ensemble's folder stands for, relative to it; empty for a run."""
        found: list[str] = value_of(self.file("recipe.json"), self.read_json("recipe.json"), "members", list, [])
        if not all(isinstance(member, str) for member in found):
            raise damaged(self.file("recipe.json"), f"members is {found!r:.80}")
        return found

    def member_bundles(self) -> list[Bundle]:
        """The members' bundles, or this one alone.

        Raises:
            LargeRecError: a member is gone.
        """
        return [Bundle.open(self.path / member) for member in self.members()] or [self]

    def table_bits(self) -> Bits | None:
        """Bits a number of the item tables of a run that was quantised; None for any other.

        Raises:
            LargeRecError: recipe.json names a number of bits that there is not.
        """
        bits: Bits | None = self.read_json("recipe.json").get("table_bits")
        if bits not in (None, *get_args(Bits)):
            raise LargeRecError(f"{self.file('recipe.json')} says table_bits={bits!r}; there are {get_args(Bits)}. Restore it.")
        return bits

    def weights_hash(self) -> str:
        """SHA-256 of the run's weights.

        Raises:
            LargeRecError: it has none.
        """
        try:
            with self.file("model.safetensors").open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise LargeRecError(f"{self.file('model.safetensors')} is missing; an ensemble needs its members' weights.") from None

    def check_members(self) -> None:
        """Refuse an ensemble whose members have other weights than when it was made: what was measured was another one.

        Raises:
            LargeRecError: a member was trained again, or is gone.
        """
        if self.members() and self.read_json("lineage.json").get("weights") != [
            one.weights_hash() for one in self.member_bundles()
        ]:
            raise LargeRecError(
                f"{self.path} was measured with other weights than its members have now: one was trained again. Remove "
                f"{self.path} to measure anew, or choose another folder."
            )

    def tokenizer(self) -> AtomicTokenizer:
        if self.members():
            return self.member_bundles()[0].tokenizer()
        table = self.read_parquet("vocabulary.parquet", ("item_id", "train_count"))
        check_columns(self.file("vocabulary.parquet"), table, ["item_id"], ["train_count"])
        if (repeated := table["item_id"].is_duplicated()).any():
            raise damaged(
                self.file("vocabulary.parquet"), f"item {table['item_id'].filter(repeated)[0]!r:.80} stands in it twice"
            )
        return AtomicTokenizer(table)

    def sequences(self) -> Sequences:
        if self.members():
            return self.member_bundles()[0].sequences()
        document, recipe = self.read_json("recipe.json"), self.recipe()
        columns = ["user_id", "item_id", "timestamp", "stage", *(f"{TASK_COLUMN}{name}" for name in recipe.tasks)]
        columns += ["positive"] if recipe.split.positives is not None else []
        columns += [SHOWN] if recipe.lists.items is not None else []
        edges, kind = value_of(self.file("recipe.json"), document, "task_edges", dict, {}), document.get("time_kind", "timestamp")
        if not all(isinstance(one, list) and all(isinstance(edge, int | float) for edge in one) for one in edges.values()):
            raise damaged(self.file("recipe.json"), f"task_edges is {edges!r:.80}")
        if kind not in get_args(TimeKind):
            raise damaged(self.file("recipe.json"), f"time_kind is {kind!r:.80}, not one of {get_args(TimeKind)}")
        table = self.read_parquet("histories.parquet", columns)
        whole = [column for column in columns if column in ("timestamp", "stage") or column.startswith(TASK_COLUMN)]
        check_columns(self.file("histories.parquet"), table, ["user_id", "item_id"], whole)
        return from_frame(table, kind, recipe.split.targets, {name: tuple(between) for name, between in edges.items()})

    def features(self) -> Features | None:
        """The fields and columns of the run's features, if its recipe has any."""
        options = self.recipe().features
        if self.members() or not options.any:
            return None
        tables = {
            side: self.read_parquet(f"features-{side}.parquet", list(names))
            if (names := options.columns(side))
            else pl.DataFrame()
            for side in SIDES
        }
        try:
            return Features.from_json(self.read_json("features.json"), tables)
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(self.file("features.json"), error) from None

    def read_json(self, name: str) -> dict[str, Any]:
        try:
            document = json.loads(self.file(name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise LargeRecError(f"{self.file(name)} is missing; the run is unfinished or files were removed.") from None
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise damaged(self.file(name), error) from None
        if not isinstance(document, dict):
            raise LargeRecError(f"{self.file(name)} is damaged: it holds no JSON object; restore the file or train again.")
        return document

    def read_parquet(self, name: str, columns: Sequence[str] = ()) -> pl.DataFrame:
        """A table of the run, which must have ``columns``."""
        try:
            frame = pl.read_parquet(self.file(name), glob=False)  # a path may have brackets
        except FileNotFoundError:
            raise LargeRecError(f"{self.file(name)} is missing; the run is unfinished or files were removed.") from None
        except (pl.exceptions.PolarsError, OSError) as error:
            raise damaged(self.file(name), error) from None
        missing = [column for column in columns if column not in frame.columns]
        if missing:
            raise LargeRecError(
                f"{self.file(name)} is not this run's file: it has no column {missing[0]!r}; restore the file or train again."
            )
        return frame

    def read_tensors(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Tensors and metadata of a safetensors file."""
        with self._opened(name) as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118

    def read_metadata(self, name: str) -> dict[str, str]:
        """Metadata alone of a safetensors file."""
        with self._opened(name) as file:
            found: dict[str, str] = file.metadata() or {}
            return found

    @contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        try:
            with safe_open(self.file(name), framework="pt") as file:
                yield file
        except FileNotFoundError:
            raise LargeRecError(f"{self.file(name)} is missing; the run has not reached its first validation.") from None
        except (SafetensorError, OSError) as error:
            raise damaged(self.file(name), error) from None

    def load_weights(self, model: torch.nn.Module) -> None:
        """Put ``model.safetensors`` into a model.

        Raises:
            LargeRecError: the file is missing or damaged, or its tensors are not those of the recipe's model.
        """
        tensors, _ = self.read_tensors("model.safetensors")
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        for name in sorted(wanted.keys() | given.keys()):
            if wanted.get(name) != given.get(name):
                raise LargeRecError(
                    f"{self.file('model.safetensors')} does not fit the run's recipe: {name} has shape {given.get(name)}, "
                    f"the recipe's model needs {wanted.get(name)}. The files are of two runs; train again."
                )
        model.load_state_dict(tensors)

    # --- writing ----------------------------------------------------------------------------------------------------

    def write_json(self, name: str, document: Mapping[str, Any]) -> None:
        self.write_text(name, json.dumps(document, indent=1) + "\n")

    def write_text(self, name: str, text: str) -> None:
        self._replace(name, lambda path: path.write_text(text, encoding="utf-8"))

    def write_parquet(self, name: str, frame: pl.DataFrame) -> None:
        self._replace(name, lambda path: frame.write_parquet(path))

    def write_copy(self, name: str, of: Path) -> None:
        self._replace(name, lambda path: shutil.copyfile(of, path))

    def write_tensors(self, name: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
        whole = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
        self._replace(name, lambda path: save_file(whole, path, dict(metadata or {})))

    def _replace(self, name: str, write: Any) -> None:
        with replacing(self.file(name)) as beside:
            write(beside)
            beside.chmod(
                self.path.stat().st_mode & 0o666
            )  # safetensors writes for the owner alone; a run is as open as its folder


def is_partial(file: Path) -> bool:
    """Whether a kill in the middle of writing left this file."""
    return re.fullmatch(r"\..+\.\d+\.partial", file.name) is not None


def _foreign(folder: Path) -> Iterator[Path]:
    """What no run writes, in a run's folder and in those of the families that ``largerec run`` trained beside it."""
    for entry in folder.iterdir():
        if not entry.is_dir() or entry.is_symlink():
            known = entry.is_file() and (is_partial(entry) or OWN_FILES.fullmatch(entry.name))
            yield from () if known else (entry,)
        elif entry.name == "tensorboard":
            yield from (file for file in entry.iterdir() if not file.is_file() or not TENSORBOARD_FILE.fullmatch(file.name))
        elif entry.name == "compare":
            for family in entry.iterdir():
                yield from _foreign(family) if family.is_dir() and not family.is_symlink() else (family,)
        else:
            yield entry


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested groups as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def data_hash(sequences: Sequences) -> str:
    """SHA-256 of the split log: ids, order, times and stages; labels, positives, weights and lists, where there are any."""
    digest = hashlib.sha256()
    for ids in (sequences.user_ids, sequences.item_ids):
        digest.update("\n".join(ids.cast(pl.String).to_list()).encode())
    for array in (sequences.offsets_U1, sequences.item_N, sequences.time_N, sequences.stage_N):
        digest.update(np.ascontiguousarray(array).astype(np.int64).tobytes())
    for name, optional in (("/".join(sequences.tasks), sequences.label_NA), ("positives", sequences.positive_N)):
        if optional is not None:
            digest.update(name.encode() + np.ascontiguousarray(optional).astype(np.int64).tobytes())
    if sequences.propensity_N is not None:
        digest.update(b"propensities" + np.ascontiguousarray(sequences.propensity_N).tobytes())
    if sequences.lists is not None:
        for name, array in sorted(vars(sequences.lists).items()):
            digest.update(name.encode() + (b"" if array is None else np.ascontiguousarray(array).tobytes()))
    if sequences.weight_N is not None:
        digest.update(b"weights" + np.ascontiguousarray(sequences.weight_N).astype(np.float32).tobytes())
    return digest.hexdigest()
