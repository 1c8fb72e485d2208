//! The c10d process group behind a [`super::Team`].

#![expect(unsafe_code, reason = "libtorch's c10d is reached through C++")]

use crate::{Error, Result};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::NonNull;
use std::time::Duration;
use tch::Tensor;

// `cpp/team.cpp`
unsafe extern "C" {
    fn proxrl_team_join(
        rank: c_int,
        size: c_int,
        host: *const c_char,
        port: c_int,
        serves: c_int,
        prefix: *const c_char,
        interface: *const c_char,
        meeting_ms: i64,
        patience_ms: i64,
        team: *mut *mut c_void,
    ) -> *mut c_char;
    fn proxrl_team_sum(team: *mut c_void, tensor: *mut c_void) -> *mut c_char;
    fn proxrl_team_broadcast(team: *mut c_void, tensor: *mut c_void, from: c_int) -> *mut c_char;
    fn proxrl_team_leave(team: *mut c_void);
}

/// Longest wait for the rest of the team at the start.
const MEETING: Duration = Duration::from_mins(10);

/// Longest wait for the other ranks later: they wait while rank 0 grades, evaluates and saves. A rank that has died is
/// noticed at once.
const PATIENCE: Duration = Duration::from_hours(2);

/// A process group of Gloo.
#[derive(Debug)]
pub(super) struct Wire {
    team: NonNull<c_void>,
}

/// Converts the message of a C++ call into a result; null is success.
fn check(said: *mut c_char) -> Result<()> {
    if said.is_null() {
        return Ok(());
    }
    // SAFETY: a string that C++ allocated for us.
    let reason = unsafe { CStr::from_ptr(said) }.to_string_lossy().into_owned();
    // SAFETY: as above; no other pointer to it exists.
    unsafe { libc::free(said.cast()) };
    // The lines after the first are a C++ stack trace.
    let reason = reason.lines().next().unwrap_or_default();
    Err(Error::runtime(format!(
        "the other ranks cannot be reached: {reason}. Has one of them ended? Its own words say why; the newest checkpoint stands"
    )))
}

fn variable(name: &str, default: &str) -> Result<CString> {
    let text = std::env::var(name).unwrap_or_else(|_| default.to_owned());
    CString::new(text).map_err(|_| Error::input(format!("{name} in the environment has a zero character")))
}

impl Wire {
    /// Meets the other ranks at `MASTER_ADDR`.
    pub(super) fn join(rank: usize, size: usize, port: u16) -> Result<Self> {
        let host = variable("MASTER_ADDR", "127.0.0.1")?;
        let interface = variable("GLOO_SOCKET_IFNAME", "")?;
        // Under torchrun its agent keeps the meeting point, across restarts; the keys of each start are its own.
        let agent = std::env::var("TORCHELASTIC_USE_AGENT_STORE").is_ok_and(|value| value == "True");
        let start = std::env::var("TORCHELASTIC_RESTART_COUNT").unwrap_or_else(|_| "0".into());
        let prefix = CString::new(format!("proxrl/{start}")).map_err(|error| Error::input(error.to_string()))?;
        let mut team = std::ptr::null_mut();
        // SAFETY: the strings live until the call returns, and it writes an address it made.
        check(unsafe {
            proxrl_team_join(
                rank as c_int,
                size as c_int,
                host.as_ptr(),
                c_int::from(port),
                c_int::from(rank == 0 && !agent),
                prefix.as_ptr(),
                interface.as_ptr(),
                MEETING.as_millis() as i64,
                PATIENCE.as_millis() as i64,
                &raw mut team,
            )
        })?;
        let team = NonNull::new(team).ok_or_else(|| Error::runtime("libtorch made no process group"))?;
        Ok(Self { team })
    }

    /// Replaces a tensor on the host by its sum over ranks, in place.
    pub(super) fn sum(&self, tensor: &Tensor) -> Result<()> {
        // SAFETY: both live until the call returns, which is when libtorch is done with them.
        check(unsafe { proxrl_team_sum(self.team.as_ptr(), tensor.as_ptr().cast_mut().cast()) })
    }

    /// Replaces a tensor on the host by that of one rank, in place.
    pub(super) fn broadcast(&self, tensor: &Tensor, from: usize) -> Result<()> {
        // SAFETY: as above.
        check(unsafe { proxrl_team_broadcast(self.team.as_ptr(), tensor.as_ptr().cast_mut().cast(), from as c_int) })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // SAFETY: made by `join`, and no other pointer to it is left.
        unsafe { proxrl_team_leave(self.team.as_ptr()) }
    }
}
