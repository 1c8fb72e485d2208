//! Runs of the program as a user starts it, in a folder of their own.

use serde_json::Value;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use tempfile::TempDir;

/// The head of a config: a network that learns in seconds, with an adapter. A macro, so that `concat!` takes it.
macro_rules! tiny_model {
    () => {
        "[model]
device = \"cpu\"
random = { family = \"llama\", hidden_size = 64, layers = 2, heads = 4, kv_heads = 2, intermediate_size = 128 }

[model.adapter.lora]
rank = 8
alpha = 16
"
    };
}
pub(crate) use tiny_model;

/// The prompts of a config after [`tiny_model`]: sums up to 6.
macro_rules! tiny_sums {
    () => {
        "
[prompts.arithmetic]
operations = [\"+\"]
max = 6
held_out = 8
"
    };
}
pub(crate) use tiny_sums;

/// A fresh folder to run the program in.
pub(crate) struct Sandbox {
    folder: Rc<TempDir>,
    /// Further variables in the program's environment, as name and value.
    environment: Vec<(String, String)>,
}

/// Exit code and output of a call of the program; the code is `None` after a signal.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        Self { folder: Rc::new(tempfile::tempdir().unwrap()), environment: Vec::new() }
    }

    /// A sandbox like another machine: with a cache of its own and these variables in the environment.
    pub(crate) fn machine(environment: &[(&str, &str)]) -> Self {
        let sandbox = Self::new();
        let cache = sandbox.path("cache").display().to_string();
        sandbox.with(&[("PROXRL_CACHE", &cache)]).with(environment)
    }

    /// A sandbox in the same folder, with these further variables in the environment.
    pub(crate) fn with(&self, environment: &[(&str, &str)]) -> Self {
        let mut all = self.environment.clone();
        all.extend(environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Self { folder: Rc::clone(&self.folder), environment: all }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// Everything in the folder, by relative path.
    pub(crate) fn files(&self) -> Vec<String> {
        fn walk(folder: &Path, root: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                found.push(entry.path().strip_prefix(root).unwrap().display().to_string());
                if entry.path().is_dir() {
                    walk(&entry.path(), root, found);
                }
            }
        }
        let mut found = Vec::new();
        walk(self.folder.path(), self.folder.path(), &mut found);
        found.sort();
        found
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proxrl"));
        // One thread per call: the tests themselves run side by side.
        command.args(args).current_dir(self.folder.path()).env("OMP_NUM_THREADS", "1").stdin(Stdio::null());
        command.env("HF_HUB_OFFLINE", "1");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Done {
        let output = self.command(args).output().unwrap();
        Done {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs a call that must succeed; returns its standard output.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let done = self.run(args);
        assert_eq!(done.code, Some(0), "{args:?}\n{}\n{}", done.stdout, done.stderr);
        done.stdout
    }

    /// Begins a run in the folder `run`, kills it after each of the delays, resumes it after each, and lets the last one
    /// finish.
    pub(crate) fn ok_after_kills(&self, start: &[&str], delays_ms: &[u64]) {
        let resume = ["train", "--resume", "run"];
        for delay in delays_ms {
            // Killed before it had a folder, a run has nothing to resume.
            let begun = self.path("run").join("config.toml").exists();
            let mut child = self.start(if begun { &resume } else { start });
            std::thread::sleep(std::time::Duration::from_millis(*delay));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        if self.path("run").join("config.toml").exists() {
            self.ok(&resume);
        } else {
            let _ = std::fs::remove_dir_all(self.path("run"));
            self.ok(start);
        }
    }

    /// Runs a call that must succeed, with a terminal as its standard error; returns the text shown there.
    pub(crate) fn ok_in_terminal(&self, args: &[&str]) -> String {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap().into_string().unwrap();
        let terminal = fs::File::options().read(true).write(true).open(name).unwrap();
        let mut command = self.command(args);
        let mut child = command.env("TERM", "xterm").stdout(Stdio::null()).stderr(terminal).spawn().unwrap();
        // The last handle of the terminal on this side: with the child's the output ends.
        drop(command);
        let mut shown = Vec::new();
        // A terminal that is closed on the other side reads as an error.
        let _ = fs::File::from(controller).read_to_end(&mut shown);
        assert!(child.wait().unwrap().success(), "{args:?}\n{}", String::from_utf8_lossy(&shown));
        String::from_utf8_lossy(&shown).into_owned()
    }

    /// Runs a call whose standard error takes nothing.
    pub(crate) fn run_unseen(&self, args: &[&str]) -> Done {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = self.command(args).stderr(full).output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        Done { code: output.status.code(), stdout, stderr: String::new() }
    }

    pub(crate) fn start(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Begins a call whose output can be read while it runs; its standard error goes to the file `stderr`.
    pub(crate) fn start_speaking(&self, args: &[&str]) -> Child {
        let stderr = fs::File::create(self.path("stderr")).unwrap();
        self.command(args).stdout(Stdio::piped()).stderr(stderr).spawn().unwrap()
    }

    /// The answer of `proxrl replay query`.
    pub(crate) fn query(&self, sql: &str) -> Vec<Value> {
        serde_json::from_str(&self.ok(&["replay", "query", "--format", "json", "--", sql])).unwrap()
    }

    /// The lines of a run's `metrics.jsonl`, without the keys that depend on the clock and the machine.
    pub(crate) fn metrics(&self, run: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap();
        let measured = |key: &str| key.starts_with("time/") || key.starts_with("perf/") || key == "step_time";
        let line = |line: &str| {
            let mut row: serde_json::Map<String, Value> = serde_json::from_str(line).unwrap();
            row.retain(|key, _| !measured(key));
            Value::Object(row)
        };
        text.lines().map(line).collect()
    }

    pub(crate) fn summary(&self, run: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(run).join("summary.json")).unwrap()).unwrap()
    }
}

/// A config of the checkout's `configs` folder.
pub(crate) fn config(name: &str) -> String {
    super::workspace().join("configs").join(name).display().to_string()
}
