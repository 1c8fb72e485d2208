//! Running a program with a time limit and without deadlock.
//!
//! Pipes hold some 64 KiB: a caller that writes all input before reading any output hangs as soon as the program does the
//! same. So each pipe has its own thread. The program leads its own process group, so that at the time limit it ends
//! together with every process of the group.

use crate::{Error, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// More output than this, in bytes, is a program gone wild.
const MOST_OUTPUT: u64 = 256 << 20;

/// The limit on the kept part of the program's standard error, in bytes.
const MOST_COMPLAINT: u64 = 64 << 10;

/// The interval at which an unfinished program is polled.
const GLANCE: Duration = Duration::from_millis(2);

/// A program that exists, with its arguments and its time limit.
pub(crate) struct Program {
    path: PathBuf,
    args: Vec<String>,
    limit: Duration,
}

impl Program {
    /// Finds the program's file, on `PATH` if the name has no slash.
    ///
    /// # Errors
    ///
    /// An input error if there is no such executable file.
    pub(crate) fn find(name: &str, args: &[String], limit: Duration) -> Result<Self> {
        let path = if name.contains('/') {
            Some(PathBuf::from(name)).filter(|path| is_executable(path))
        } else {
            let folders = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| is_executable(path))
        };
        let path = path.ok_or_else(|| {
            let place = if name.contains('/') { "" } else { " on PATH" };
            Error::input(format!("there is no executable `{name}`{place}; `program` must name one"))
        })?;
        Ok(Self { path, args: args.to_vec(), limit })
    }

    /// A hash over the program's file and over those arguments that name files.
    pub(crate) fn content_hash(&self) -> [u8; 32] {
        let files = self.args.iter().map(Path::new).filter(|path| path.is_file());
        let mut hasher = Sha256::new();
        for path in std::iter::once(self.path.as_path()).chain(files) {
            hasher.update(Sha256::digest(std::fs::read(path).unwrap_or_default()));
        }
        hasher.finalize().into()
    }

    /// Runs the program on this input; returns its standard output.
    ///
    /// # Errors
    ///
    /// The reason, as a clause, if it does not start, exceeds the time limit or prints more than [`MOST_OUTPUT`] bytes
    /// (it is killed then), or ends with another status than success.
    pub(crate) fn run(&self, input: Vec<u8>) -> std::result::Result<Vec<u8>, String> {
        let deadline = Instant::now() + self.limit;
        let mut child = Command::new(&self.path)
            .args(&self.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("{} did not start: {error}", self.path.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program may answer without reading all; the broken pipe is then no failure.
            thread::spawn(move || drop(stdin.write_all(&input)));
        }
        let output = child.stdout.take().map(|stdout| drain(stdout, MOST_OUTPUT + 1));
        let complaint = child.stderr.take().map(|stderr| drain(stderr, MOST_COMPLAINT));
        let finished = output.and_then(|output| {
            let output = output.recv_timeout(left(deadline)).ok()?;
            (output.len() as u64 <= MOST_OUTPUT).then_some(())?;
            Some((output, wait(&mut child, deadline)?))
        });
        let Some((output, status)) = finished else {
            end(&mut child);
            let limit = self.limit.as_secs_f64();
            let problem = format!("the program was killed: not done after {limit} s, or more than 256 MiB printed");
            return Err(with_complaint(problem, complaint));
        };
        if status.success() {
            Ok(output)
        } else {
            Err(with_complaint(format!("the program failed ({status})"), complaint))
        }
    }
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Reads a pipe to its end on a thread of its own; hands over its first `most` bytes.
fn drain(mut pipe: impl Read + Send + 'static, most: u64) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.by_ref().take(most).read_to_end(&mut bytes);
        // The receiver is gone if the program was killed.
        let _ = sender.send(bytes);
        let _ = std::io::copy(&mut pipe, &mut std::io::sink());
    });
    receiver
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Waits for the program until the deadline.
fn wait(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().ok()? {
            return Some(status);
        }
        if left(deadline).is_zero() {
            return None;
        }
        thread::sleep(GLANCE);
    }
}

/// Kills the program with its process group.
fn end(child: &mut Child) {
    if let Ok(group) = i32::try_from(child.id()).map(Pid::from_raw)
        && let Some(group) = group
    {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

/// Adds the first line of the program's standard error, and the last, where interpreters put the cause.
fn with_complaint(problem: String, complaint: Option<Receiver<Vec<u8>>>) -> String {
    let wait = Duration::from_millis(200);
    let complaint = complaint.and_then(|complaint| complaint.recv_timeout(wait).ok()).unwrap_or_default();
    let complaint = String::from_utf8_lossy(&complaint);
    let mut lines = complaint.lines().map(str::trim).filter(|line| !line.is_empty());
    let short = |line: &str| line.chars().take(300).collect::<String>();
    match (lines.next(), lines.next_back()) {
        (None, _) => problem,
        (Some(first), None) => format!("{problem}: {}", short(first)),
        (Some(first), Some(last)) => format!("{problem}: {} … {}", short(first), short(last)),
    }
}
