//! Devices and number formats of tensors; the only file that names a device.
//!
//! Two traps of libtorch are handled here. The linker drops `libtorch_cuda` because no symbol of ours needs it, so it
//! is loaded by name; and libtorch caches its first answer about CUDA for the life of the process, so the library must
//! be loaded *before* that. One program then serves a libtorch with CUDA and one without.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;
use tch::{Device, Kind};

/// The device of the config: `cpu`, `cuda` (the first GPU), `cuda:1`, or `auto` (a GPU if one can be used).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeviceName(String);

impl DeviceName {
    /// The device with this name; an empty name means `auto`.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The device with this name.
    ///
    /// # Errors
    /// If the name is not known, or this machine has no such usable device.
    pub fn resolve(&self) -> Result<Device> {
        let name = self.0.trim();
        let index = match name {
            "" | "auto" if matches!(cuda(), Cuda::Usable { .. }) => return Ok(Device::Cuda(0)),
            "" | "auto" | "cpu" => return Ok(Device::Cpu),
            "cuda" => 0,
            _ => name.strip_prefix("cuda:").and_then(|index| index.parse::<usize>().ok()).ok_or_else(|| {
                Error::input(format!("device `{name}` is not known; use \"cpu\", \"cuda\", \"cuda:1\" or \"auto\""))
            })?,
        };
        match cuda() {
            Cuda::Usable { devices } if index < *devices => Ok(Device::Cuda(index)),
            Cuda::Usable { devices } => Err(Error::input(format!(
                "device `{name}` was asked for, but only {devices} CUDA device(s) can be used; use a number below {devices}"
            ))),
            Cuda::Missing { why } => Err(Error::input(format!(
                "device `{name}` was asked for, but {why}; set device = \"cpu\", or install the CUDA build with PROXRL_CUDA=1 make setup"
            ))),
        }
    }
}

/// The availability of CUDA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cuda {
    /// CUDA works.
    Usable {
        /// The number of GPUs that libtorch sees.
        devices: usize,
    },
    /// CUDA cannot be used.
    Missing {
        /// The reason, as a clause that follows "but".
        why: String,
    },
}

/// Loads `libtorch_cuda` if it exists, then asks libtorch for CUDA devices. The answer is cached.
pub fn cuda() -> &'static Cuda {
    static CUDA: OnceLock<Cuda> = OnceLock::new();
    CUDA.get_or_init(|| {
        if let Err(why) = load_cuda_library() {
            return Cuda::Missing { why };
        }
        if !tch::Cuda::is_available() {
            return Cuda::Missing { why: "libtorch found no usable NVIDIA GPU or driver".into() };
        }
        Cuda::Usable { devices: tch::Cuda::device_count().max(0) as usize }
    })
}

/// Loads `libtorch_cuda`; the error is the reason as a clause.
fn load_cuda_library() -> std::result::Result<(), String> {
    // SAFETY: the name is a NUL-terminated constant; loading runs libtorch's own registration code, which is what
    // linking against it would have done. What `dlerror` gives after a failure is a string that stands until this
    // thread's next call of the loader, and it is copied at once.
    #[expect(unsafe_code, reason = "dlopen is the only way to register libtorch_cuda, which the linker drops")]
    let failure = unsafe {
        if !libc::dlopen(c"libtorch_cuda.so".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL).is_null() {
            return Ok(());
        }
        let said = libc::dlerror();
        if said.is_null() { String::new() } else { std::ffi::CStr::from_ptr(said).to_string_lossy().into_owned() }
    };
    // The loader names what it missed: this library itself, or one that it needs.
    if failure.is_empty() || failure.starts_with("libtorch_cuda.so:") {
        return Err("this libtorch was built for the CPU only".into());
    }
    Err(format!("libtorch_cuda.so cannot be loaded ({failure})"))
}

/// The number format of the frozen weights, and of activations on a GPU. Adapters and optimizer states are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit floats: exact.
    #[default]
    F32,
    /// bfloat16: half the memory. On a CPU the inputs of weight products are rounded to bf16 as well, and everything
    /// else stays f32; log-probabilities are computed in f32 everywhere.
    Bf16,
}

impl Dtype {
    /// libtorch's name of the format.
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }
}

/// The CPU, for tensors made there: from files, token ids, random numbers.
pub const HOST: Device = Device::Cpu;

/// Makes the C library keep freed memory instead of returning it to the system at once. A step allocates and frees the
/// same large tensors again and again; fetching and zeroing their pages each time would cost more than some of the
/// arithmetic in them.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: these settings may be changed at any time.
    #[expect(unsafe_code, reason = "the allocator's settings are the C library's")]
    unsafe {
        // 32 MiB is the largest threshold that it allows; more than a GiB at the top of the heap is returned.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
}

/// Sets the number of threads of one libtorch operation. `None` keeps libtorch's choice (one per physical core).
/// Results on the CPU are bit-equal between runs only for the same number.
pub fn set_threads(threads: Option<usize>) {
    if let Some(threads) = threads {
        tch::set_num_threads(threads.max(1) as i32);
    }
}

/// Waits until a device has finished its queued work. A GPU runs behind its caller, so clocks need this.
pub fn wait(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_resolve_or_say_what_to_write() {
        assert_eq!(DeviceName::new("cpu").resolve().unwrap(), Device::Cpu);
        let error = DeviceName::new("gpu").resolve().unwrap_err();
        assert!(error.is_input());
        assert!(error.to_string().contains("`gpu` is not known"), "{error}");
    }

    #[test]
    fn cuda_is_refused_with_a_reason_where_it_is_missing() {
        if let Cuda::Missing { why } = cuda() {
            let error = DeviceName::new("cuda").resolve().unwrap_err().to_string();
            assert!(error.contains(why.as_str()), "{error}");
        } else {
            assert_eq!(DeviceName::new("cuda").resolve().unwrap(), Device::Cuda(0));
        }
    }
}
