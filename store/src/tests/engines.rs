//! The tests of the store run on `SQLite`; here they run once more, on a server.

use super::ON_POSTGRES;
use super::cluster::Cluster;
use std::process::Command;

#[test]
fn every_test_holds_on_postgresql_too() {
    let Some(cluster) = Cluster::start() else { return };
    // What is in `opening` is about files, and what is here would never end.
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["tests::", "--skip", "tests::opening::", "--skip", "tests::engines::"])
        .env(ON_POSTGRES, cluster.base_url())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let passed = said.lines().filter(|line| line.starts_with("test tests::") && line.ends_with("ok")).count();
    assert!(passed >= 40, "only {passed} tests ran:\n{said}");
}
