//! A throw-away `PostgreSQL` server: a folder of its own in the temporary folder, a socket in it and no port, an
//! unprivileged user. It is gone with the test.

use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// Environment variable that demands the server's programs: a test that needs them then fails instead of being skipped.
const REQUIRED: &str = "PROXRL_REQUIRE_POSTGRES";

/// A running server.
pub(crate) struct Cluster {
    folder: TempDir,
    programs: PathBuf,
    server: Child,
}

impl Cluster {
    /// Starts a server; `None`, with a message, if its programs are not installed.
    pub(crate) fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            let skipped = "skipped: there are no PostgreSQL server programs; install Debian's `postgresql` to run it";
            assert!(std::env::var_os(REQUIRED).is_none(), "{skipped}");
            // Not `eprintln!`, which is shown of failed tests only.
            std::io::stderr().write_all(format!("{skipped}\n").as_bytes()).unwrap();
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        // The server must not run as root, and must reach its folder.
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let data = folder.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let user = unprivileged();
        if let Some((uid, gid)) = user {
            chown(&data, Some(uid), Some(gid)).unwrap();
        }
        let made = as_user(user, &programs.join("initdb"))
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let server = serve(&programs, &data);
        let cluster = Self { folder, programs, server };
        let answers = || cluster.psql("SELECT 1");
        let ready = (0..600).any(|_| {
            std::thread::sleep(Duration::from_millis(50));
            answers()
        });
        assert!(ready, "the server in {} does not answer", data.display());
        Some(cluster)
    }

    /// Ends every connection and then the server.
    pub(crate) fn stop(&mut self) {
        let _ = Command::new("kill").args(["-INT", &self.server.id().to_string()]).status();
        let _ = self.server.wait();
    }

    /// Starts a stopped server, and does not wait until it answers.
    #[allow(dead_code, reason = "the tests of the program have this file, too, and restart no server")]
    pub(crate) fn start_again(&mut self) {
        self.server = serve(&self.programs, &self.folder.path().join("data"));
    }

    /// The address of the server's database.
    pub(crate) fn base_url(&self) -> String {
        format!("postgres://postgres@localhost/postgres?host={}", self.folder.path().join("data").display())
    }

    fn psql(&self, sql: &str) -> bool {
        psql(&self.programs, &self.base_url(), sql)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A fast shutdown: it ends every connection, and waits for its own processes alone.
        self.stop();
    }
}

fn serve(programs: &Path, data: &Path) -> Child {
    as_user(unprivileged(), &programs.join("postgres"))
        .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=200", "-k"])
        .arg(data)
        .arg("-D")
        .arg(data)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The address of a new and empty schema in the database at `base`.
pub(crate) fn new_place(base: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("place_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let programs = programs().expect("whoever made the address has the programs");
    assert!(psql(&programs, base, &format!("CREATE SCHEMA {name}")), "cannot make a schema in {base}");
    format!("{base}&options=-csearch_path%3D{name}")
}

fn psql(programs: &Path, url: &str, sql: &str) -> bool {
    let mut command = Command::new(programs.join("psql"));
    command.args(["-q", "-X", url, "-c", sql]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The folder of the newest server's programs: on the path, or in Debian's folder for them.
fn programs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    versions.sort();
    folders.extend(versions.into_iter().rev());
    folders.into_iter().find(|folder| ["initdb", "postgres", "psql"].iter().all(|it| folder.join(it).exists()))
}

/// User and group ids that root starts the server under: Debian's user for it, or the unprivileged system user. `None`
/// for all other users, who start it under their own ids.
fn unprivileged() -> Option<(u32, u32)> {
    let number = |args: &[&str]| -> Option<u32> {
        let output = Command::new("id").args(args).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    if number(&["-u"]) != Some(0) {
        return None;
    }
    let user = |name: &str| Some((number(&["-u", name])?, number(&["-g", name])?));
    user("postgres").or_else(|| user("nobody"))
}

fn as_user(user: Option<(u32, u32)>, program: &Path) -> Command {
    let Some((uid, gid)) = user else { return Command::new(program) };
    let mut command = Command::new("setpriv");
    // Should the test be killed, the server stops with it.
    command.args([format!("--reuid={uid}"), format!("--regid={gid}")]).args([
        "--clear-groups",
        "--pdeathsig=INT",
        "--",
    ]);
    command.arg(program).current_dir("/");
    command
}
