"""Datasets that torchvision fetches: where their files are, and what to do when they are not there."""

import tempfile
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from filelock import FileLock

from robustbench_lab.datasets.base import Dataset, ImageSet, Split
from robustbench_lab.errors import LabError, MissingFiles


@dataclass(frozen=True, kw_only=True)
class Published(Dataset):
    """A dataset in its published files under the data root, downloaded when it is missing and that is allowed.

    Errors: LabError where files are missing, damaged (naming them) or cannot be downloaded, and where torchvision
    itself cannot be imported.
    """

    @abstractmethod
    def _files(self, split: Split) -> Mapping[str, str | None]:
        """The files that must be there, relative to the data root, each with its published MD5 or None."""

    @abstractmethod
    def _fetch(self, split: Split, folder: Path) -> None:
        """Downloads and unpacks into `folder`, in the layout of the data root."""

    @abstractmethod
    def _parse(self, split: Split, root: Path) -> ImageSet:
        """Reads the files, which are all there; any exception counts as a damaged file."""

    def _read(self, split: Split, root: Path, *, download: bool, workers: int) -> ImageSet:
        files = self._files(split)
        if self._missing(split, root):
            if not download:
                raise MissingFiles(f"{self._absence(split, root)}; set data.download=true to fetch it, or {_ELSEWHERE}")
            self._download(split, root)
        try:
            return self._parse(split, root)
        except LabError:
            raise
        except Exception as error:
            wrong = [name for name, md5 in files.items() if md5 and not has_md5(root / name, md5)]
            named = ", ".join(str(root / name) for name in wrong or files)
            raise LabError(
                f"dataset {self.name!r} cannot be read: {named} {'does not match its MD5' if wrong else 'is damaged'} "
                f"({error}); delete it and run again with data.download=true"
            ) from error

    def _missing(self, split: Split, root: Path) -> list[Path]:
        return [root / name for name in self._files(split) if not (root / name).is_file()]

    def _absence(self, split: Split, root: Path) -> str:
        first = self._missing(split, root)[0]
        return f"dataset {self.name!r} is not in {root} (looked for {first if first.parent.is_dir() else first.parent})"

    def _download(self, split: Split, root: Path) -> None:
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f".{self.name}.lock"):
                if not self._missing(split, root):  # another process fetched it while this one waited
                    return
                # Unpacked aside and renamed into place, so that no reader ever sees, and no crash leaves, half a file.
                with tempfile.TemporaryDirectory(dir=root, prefix=f".{self.name}-") as aside:
                    self._fetch(split, Path(aside))
                    for source in sorted(Path(aside).rglob("*")):
                        if source.is_file() and source.suffix != ".gz":
                            target = root / source.relative_to(aside)
                            target.parent.mkdir(parents=True, exist_ok=True)
                            source.replace(target)
        except LabError:
            raise
        except Exception as error:  # no network, a full disk, a read-only folder, a mirror that serves something else
            raise LabError(
                f"{self._absence(split, root)}, and downloading it failed ({type(error).__name__}: {error}); "
                f"set data.download=true where the network can be reached, or {_ELSEWHERE}"
            ) from error


_ELSEWHERE = "point data.root (or the environment variable ROBUSTBENCH_LAB_DATA) at a folder that has it"


def torchvision_datasets() -> ModuleType:
    """`torchvision.datasets`, imported only when something is read from it.

    Errors: LabError where it cannot be imported, as with "operator torchvision::nms does not exist".
    """
    try:
        import torchvision.datasets
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise LabError(
            f"torchvision cannot be imported ({error}); its compiled operators must match torch: install builds of "
            "torch and torchvision that were released together, both for the CPU or both for the same CUDA version"
        ) from error
    return torchvision.datasets


def has_md5(path: Path, md5: str) -> bool:
    return torchvision_datasets().utils.check_integrity(path, md5)
