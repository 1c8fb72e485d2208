//! `proxrl doctor`: the parts of this machine that a run needs, and those that are missing.
//!
//! Fails only if a run on the CPU would fail; everything else is only reported.

use crate::terminal::{answer, table};
use anyhow::{Context, ensure};
use model::device::{Cuda, Dtype, HOST, cuda};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tch::Tensor;

/// The model that `make setup` lays into the cache for configs/quickstart.toml.
const QUICKSTART_MODEL: &str = "models/SmolLM2-135M-Instruct.Q4_1.gguf";

/// Instruction sets that change how fast libtorch computes, as /proc/cpuinfo calls them on x86-64 and on Arm.
const INSTRUCTION_SETS: &[&str] =
    &["avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve"];

pub(crate) fn run() -> anyhow::Result<()> {
    let cache = model::hub::cache_folder();
    let cpu = Cpu::read();
    let f32_speed = product_speed(Dtype::F32);
    let rows = [
        ("proxrl", format!("{} on {} {}", env!("CARGO_PKG_VERSION"), std::env::consts::OS, std::env::consts::ARCH)),
        ("libtorch", libtorch()),
        ("CUDA", cuda_state()),
        ("CPU", format!("{}, {} core(s) usable", cpu.name, cores())),
        ("instruction sets", cpu.instruction_sets),
        ("threads", format!("{} for one operation{}", tch::get_num_threads(), named_threads())),
        ("f32", speed_state(&f32_speed)),
        ("bf16", speed_state(&product_speed(Dtype::Bf16))),
        ("memory", memory()),
        ("cache", cache_state(&cache)),
        ("disk", format!("{} free for the cache, {} free here", free_space(&cache), free_space(Path::new(".")))),
        ("quickstart model", model_state(&cache.join(QUICKSTART_MODEL))),
    ];
    answer(&table::pairs(&rows))?;
    f32_speed.context("a run on the CPU would fail: libtorch cannot multiply two f32 matrices")?;
    answer("\nA run on the CPU will work.\n")?;
    Ok(())
}

fn libtorch() -> String {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let Some(library) = loaded_library(&maps, "libtorch_cpu.so") else { return "loaded from an unknown place".into() };
    // libtorch's own archives carry this file in their top folder, an installed proxrl beside the libraries.
    let mut folders = library.ancestors().skip(1).take(2);
    let version = folders.find_map(|folder| fs::read_to_string(folder.join("build-version")).ok());
    let version = version.map_or_else(|| "version not recorded".into(), |version| version.trim().to_owned());
    format!("{version}, {}", library.display())
}

/// The path of a mapped library, from the text of /proc/self/maps.
fn loaded_library(maps: &str, name: &str) -> Option<PathBuf> {
    let path = |line: &str| Some(PathBuf::from(&line[line.find('/')?..]));
    maps.lines().filter_map(path).find(|path| path.file_name().is_some_and(|file| file == name))
}

fn cuda_state() -> String {
    match cuda() {
        Cuda::Usable { devices } => format!("usable, {devices} device(s)"),
        Cuda::Missing { why } => format!("not usable: {why}"),
    }
}

struct Cpu {
    name: String,
    instruction_sets: String,
}

impl Cpu {
    fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
    }

    fn parse(cpuinfo: &str) -> Self {
        let value = |keys: &[&str]| {
            let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
            lines.find(|(key, _)| keys.contains(&key.trim())).map(|(_, value)| value.trim())
        };
        let flags: Vec<&str> = value(&["flags", "Features"]).unwrap_or_default().split_whitespace().collect();
        let found: Vec<&str> = INSTRUCTION_SETS.iter().copied().filter(|set| flags.contains(set)).collect();
        let name = value(&["model name", "CPU part"]).unwrap_or("unknown").to_owned();
        Self { name, instruction_sets: if found.is_empty() { "none of note".into() } else { found.join(" ") } }
    }
}

/// The cores that this process may use, which in a container may be fewer than the machine has.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn named_threads() -> String {
    std::env::var("OMP_NUM_THREADS").map_or_else(|_| String::new(), |threads| format!(" (OMP_NUM_THREADS={threads})"))
}

/// Multiplies two square matrices of ones; the speed in GFLOP/s of the fastest of a few tries.
fn product_speed(dtype: Dtype) -> anyhow::Result<f64> {
    const SIDE: i64 = 1024;
    let ones = Tensor::f_ones([SIDE, SIDE], (dtype.kind(), HOST))?;
    let mut fastest = f64::INFINITY;
    // The first product warms up; on a busy machine several are needed for one that is undisturbed.
    for _ in 0..8 {
        let start = Instant::now();
        let product = ones.f_matmul(&ones)?;
        fastest = fastest.min(start.elapsed().as_secs_f64());
        // Exact in both formats: a power of two.
        let entry = product.f_double_value(&[0, SIDE - 1])?;
        ensure!(entry == SIDE as f64, "a product of ones came out as {entry} rather than {SIDE}");
    }
    Ok(2.0 * (SIDE as f64).powi(3) / fastest / 1e9)
}

fn speed_state(speed: &anyhow::Result<f64>) -> String {
    match speed {
        Ok(speed) => format!("works, {speed:.0} GFLOP/s in a 1024 x 1024 product"),
        Err(error) => format!("does not work: {error}"),
    }
}

fn memory() -> String {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let state = |key| meminfo(&text, key).map_or_else(|| "unknown".into(), gigabytes);
    let limit = fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    let limit = limit.map_or_else(String::new, |bytes| format!(", limited to {} by the container", gigabytes(bytes)));
    format!("{} in all, {} available{limit}", state("MemTotal"), state("MemAvailable"))
}

/// An entry of /proc/meminfo in bytes.
fn meminfo(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(value.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

fn cache_state(cache: &Path) -> String {
    let Ok(entries) = fs::read_dir(cache) else { return format!("{} (not there yet: make setup)", cache.display()) };
    let mut parts: Vec<(String, u64)> = entries
        .flatten()
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), size(&entry.path())))
        .filter(|(_, bytes)| *bytes > 0)
        .collect();
    parts.sort();
    let parts: Vec<String> = parts.into_iter().map(|(name, bytes)| format!("{name} {}", gigabytes(bytes))).collect();
    format!("{} ({})", cache.display(), if parts.is_empty() { "empty".into() } else { parts.join(", ") })
}

/// The bytes in a file or below a folder; links are not followed.
fn size(path: &Path) -> u64 {
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    if !metadata.is_dir() {
        return metadata.len();
    }
    fs::read_dir(path).map_or(0, |entries| entries.flatten().map(|entry| size(&entry.path())).sum())
}

/// The space that this user may fill on the disk that holds `path`, or would hold it.
fn free_space(path: &Path) -> String {
    let existing = path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    rustix::fs::statvfs(existing).map_or_else(|_| "unknown".into(), |disk| gigabytes(disk.f_bavail * disk.f_frsize))
}

fn model_state(path: &Path) -> String {
    if path.is_file() { path.display().to_string() } else { format!("not found at {} (make setup)", path.display()) }
}

/// Bytes as decimal megabytes or gigabytes.
fn gigabytes(bytes: u64) -> String {
    if bytes < 1_000_000_000 {
        format!("{} MB", bytes.div_ceil(1_000_000))
    } else {
        format!("{:.1} GB", bytes as f64 / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_files_are_understood() {
        let maps = "7f00-7f01 r-xp 00000000 fe:01 42   /opt/my torch/lib/libtorch_cpu.so\n7f02-7f03 rw-p 0 00:00 0";
        assert_eq!(loaded_library(maps, "libtorch_cpu.so"), Some("/opt/my torch/lib/libtorch_cpu.so".into()));
        assert_eq!(loaded_library(maps, "libtorch_cuda.so"), None);

        let cpu = Cpu::parse("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 fma avx512_bf16 x\n");
        assert_eq!((cpu.name.as_str(), cpu.instruction_sets.as_str()), ("Some CPU @ 2 GHz", "avx2 fma avx512_bf16"));

        let text = "MemTotal:       16384 kB\nMemAvailable:    8192 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(16 << 20));
        assert_eq!(meminfo(text, "Mem"), None);
    }

    #[test]
    fn sizes_are_summed_and_readable() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("inner")).unwrap();
        fs::write(folder.path().join("a"), [0; 10]).unwrap();
        fs::write(folder.path().join("inner/b"), [0; 20]).unwrap();
        assert_eq!(size(folder.path()), 30);
        assert_eq!(gigabytes(1), "1 MB");
        assert_eq!(gigabytes(2_500_000_000), "2.5 GB");
    }

    #[test]
    fn both_formats_multiply() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            assert!(product_speed(dtype).unwrap() > 0.0);
        }
    }
}
